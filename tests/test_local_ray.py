"""The Ray that a job on this machine starts: another user of the machine has no part in it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.worker import global_worker

from cluster.local import local_ray, running_ray

STRANGER = 65534
JOIN = f"""
import os, sys
from ray._raylet import GcsClient
address, folder = sys.argv[1:]
os.setgroups([])
os.setgid({STRANGER})
os.setuid({STRANGER})
try:
    os.listdir(folder)
    print("read its files")
except PermissionError:
    pass
try:
    GcsClient(address=address).internal_kv_keys(b"", b"", timeout=10)
    print("joined")
except Exception as error:
    print("refused", error)
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One that was started with a HOME that cannot be written and a careless umask; its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", "/nonexistent")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_AUTH_TOKEN", "of another cluster")
        before = os.umask(0)
        try:
            with local_ray(1):
                yield Path(global_worker.node.temp_dir).parent
            assert os.umask(0) == 0
        finally:
            os.umask(before)
        assert os.environ["RAY_AUTH_TOKEN"] == "of another cluster"


@pytest.mark.slow
def test_it_listens_on_loopback_and_its_folder_is_closed(running: Path) -> None:
    assert running.stat().st_mode & 0o077 == 0
    me = psutil.Process()
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}

    @ray.remote
    def told() -> tuple[int, int]:
        return os.umask(0o077), len(os.environ["RAY_AUTH_TOKEN"])

    assert ray.get(told.remote()) == (0o077, 64)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_cannot_join_it(running: Path) -> None:
    """With its token he could: the test knows how to join."""
    assert join(running, None).startswith("refused")
    assert join(running, "0" * 64).startswith("refused")
    assert join(running, os.environ["RAY_AUTH_TOKEN"]) == "joined\n"


def test_a_cluster_with_an_address_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def connect(where: object, _: float) -> socket.socket:
        asked.append(where)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(ray, "init", lambda address, **_: asked.append(address))
    with running_ray("[::1]:6379"):
        assert asked == [("::1", 6379), "[::1]:6379"]


def join(folder: Path, token: str | None) -> str:
    """What another user meets who tries."""
    environment = {"HOME": "/tmp", "PATH": os.environ["PATH"], "RAY_AUTH_MODE": "disabled"}
    if token:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    done = subprocess.run(
        [sys.executable, "-c", JOIN, global_worker.node.address, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout or done.stderr
