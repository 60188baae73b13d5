"""The walk-through of docs/service.md, run as it stands there."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.client.gallery import GALLERY
from jobs.storage.store import open_store
from tests.s3_server import weed_binary

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "service.md"
TIMEOUT = 300.0


class Terminal:
    """A shell that runs one block after the other."""

    def __init__(self, folder: Path, log: Path) -> None:
        path = os.pathsep.join([str(Path(sys.executable).parent), str(weed_binary().parent)])
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "NST_BATCH"))}
        self.log = log
        self.shell = subprocess.Popen(
            ["bash", "-e"],
            stdin=subprocess.PIPE,
            stdout=log.open("ab"),
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**kept, "PATH": f"{path}{os.pathsep}{kept['PATH']}"},
            start_new_session=True,
        )

    def type(self, block: str) -> None:
        """Run a block to its end."""
        done = self.log.with_name(secrets.token_hex(4))
        assert self.shell.stdin
        self.shell.stdin.write(f"{block}\ntouch {done}\n".encode())
        self.shell.stdin.flush()
        deadline = time.monotonic() + TIMEOUT
        while not done.exists():
            assert self.shell.poll() is None, f"{block}\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"{block}\n{self.log.read_text()}"
            time.sleep(0.1)

    def close(self) -> None:
        """End it and all that it has started."""
        subprocess.run(["pkill", "-9", "--session", str(self.shell.pid)], check=False)
        self.shell.wait()


def assert_published_once(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The pair has one end, made by one driver; and what only the owner has is not in the store."""
    patch.setenv("AWS_ACCESS_KEY_ID", "owner-access-key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "owner-secret-key")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    store = open_store("s3://studio?endpoint=http://127.0.0.1:8333")
    keys = store.list("")
    (end,) = (key for key in keys if "/marks/pair-" in key)
    attempt = json.loads(store.read(end))["attempt"]
    results = [key for key in keys if "/results/" in key]
    assert results and all(f"/results/{attempt}/" in key for key in results)
    (bundle,) = folder.glob("owner/models/*/server.zip")
    blobs = [store.read(key) for key in keys]
    assert bundle.read_bytes() not in blobs
    blobs += [p.read_bytes() for home in ("ann", "owner") for p in (folder / home).rglob("*.json")]
    for who in ("ann", "owner"):
        assert not any(f"{who}-secret-key".encode() in blob for blob in blobs)
    assert not any(key.startswith("claims/") for key in keys)


@pytest.mark.slow
def test_the_walk_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```\n# (owner|customer)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [who for who, _ in blocks] == ["owner", "owner", "customer", "owner", "customer"]
    for name in ("cluster", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    terminals = {who: Terminal(tmp_path, tmp_path / f"{who}.log") for who, _ in blocks}
    try:
        for who, block in blocks:
            if block.startswith("kill"):
                # In the middle, and not before it has begun.
                running = "until nst-batch status --json $(ls ann/jobs) | grep -q running"
                terminals["customer"].type(f"{running}; do sleep 0.5; done")
            elif block.startswith("job="):
                assert_published_once(tmp_path, monkeypatch)
            terminals[who].type(block)
    finally:
        for terminal in terminals.values():
            terminal.close()
    assert (tmp_path / "stylized" / "cat.png").exists()
    assert (tmp_path / "stylized" / GALLERY).exists()
    told = (tmp_path / "customer.log").read_text()
    assert "2 cents" in told and "Traceback" not in told
    weights = [p for p in (tmp_path / "ann").rglob("*") if p.suffix in (".safetensors", ".zip")]
    assert {p.name for p in weights} == {"last.safetensors", "client.zip"}
    served = (tmp_path / "serve.log").read_text() + (tmp_path / "owner.log").read_text()
    assert "Traceback" not in served and "cat" not in served
