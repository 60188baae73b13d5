"""A job whose store is in S3, as a user runs it: client, driver and actors find it by its URL."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from jobs.client.home import Home
from jobs.storage import layout
from jobs.storage.store import open_store
from tests.command_line import run
from tests.conftest import BUCKET
from tests.s3_server import S3Server
from tests.toy import offer_toy, toy_weights
from tests.user_pairs import folder_of


@pytest.mark.slow
def test_a_job_in_s3(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = toy_weights(tmp_path / "toy.safetensors")
    offer_toy(monkeypatch, weights, tmp_path / "home")
    source, out = folder_of(tmp_path / "pairs", ["sea"]), tmp_path / "out"
    prefix = f"s3://{BUCKET}/{secrets.token_hex(4)}"
    result = run(
        *("submit", source, "--quality", "toy", "--actors", 1, "--out", out),
        *("--store", prefix, "--endpoint-url", s3_server.endpoint, "--sse", "AES256"),
    )
    assert result.exit_code == 0, result.output
    assert (out / "sea.png").is_file()

    (local,) = Home(tmp_path / "home").jobs()
    assert local.store == f"{prefix}?endpoint={s3_server.endpoint}&sse=AES256"
    assert run("status", local.job_id).exit_code == 0
    assert run("fetch", local.job_id, "--out", out, "--force").exit_code == 0
    store = open_store(local.store)
    assert store.exists(layout.state(local.job_id))
    kept = [store.read(key) for key in store.list("")]
    kept += [p.read_bytes() for p in (tmp_path / "home").rglob("*") if p.is_file()]
    for secret in (s3_server.access_key, s3_server.secret_key):
        assert secret not in result.output
        assert not any(secret.encode() in blob for blob in kept)
