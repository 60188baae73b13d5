"""A service and two customers of it, each with credentials of their own, on a real S3 server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from jobs.client.home import Home
from jobs.client.offered import Service
from jobs.execution.launch import ENTRY
from jobs.service.owner import owner_of, signing_key
from jobs.service.publishing import publish
from jobs.storage import layout
from jobs.storage.records import read_state
from jobs.storage.store import open_store
from nst.engines.base import Published
from nst.errors import StoreError
from nst.model import Model
from nst.network import levels
from tests.command_line import run
from tests.s3_server import S3Server
from tests.toy import toy_level, toy_weights
from tests.user_pairs import folder_of

IDENTITIES = Path(__file__).resolve().parents[1] / "cluster/service/seaweedfs-identities.json"
BUCKET, MODEL = "studio", "toy"
TIMEOUT = 240.0

Users = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[S3Server, Users]]:
    """The server with the identities that the documentation tells an owner to give it."""
    server = S3Server()
    users = server.allow(IDENTITIES.read_text())
    try:
        server.start()
        server.client().create_bucket(Bucket=BUCKET)
        yield server, users
    finally:
        server.close()


def become(patch: pytest.MonkeyPatch, user: dict[str, str], home: Path) -> None:
    """Credentials and data directory of a user, in the environment."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in user.items():
        patch.setenv(name, value)
    patch.setenv("NST_BATCH_HOME", str(home))


def client_of(server: S3Server, user: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=user["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=user["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )


def test_a_customer_reaches_offers_and_the_own_part_only(
    server: tuple[S3Server, Users], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3, users = server
    root = f"s3://{BUCKET}?endpoint={s3.endpoint}"
    become(monkeypatch, users["owner"], tmp_path / "owner")
    open_store(root, create=True)
    open_store(f"s3://{BUCKET}/offers?endpoint={s3.endpoint}", create=True)
    open_store(root).write(layout.claim("ann", "job", 1), b"{}")
    parts = {c: f"s3://{BUCKET}/customers/{c}?endpoint={s3.endpoint}" for c in ("ann", "bob")}
    for name, url in parts.items():
        become(monkeypatch, users[name], tmp_path / name)
        store = open_store(url, create=True)
        store.write("jobs/a/inputs/b.ct", name.encode())
        assert store.create("jobs/a/marks/end.json", b"{}")
        assert store.list("jobs/") == ["jobs/a/inputs/b.ct", "jobs/a/marks/end.json"]
        assert Service.of(Home(tmp_path / name), url).offers() == []
    with pytest.raises(StoreError):
        open_store(parts["ann"])
    with pytest.raises(StoreError):
        open_store(root)
    offers = open_store(f"s3://{BUCKET}/offers?endpoint={s3.endpoint}")
    for lie in (layout.offer("evil"), layout.offer_file("0" * 64), layout.STORE):
        with pytest.raises(StoreError):
            offers.write(lie, b"{}")
    bob = client_of(s3, users["bob"])
    of_ann = "customers/ann/jobs/a/inputs/b.ct"
    for act in (
        lambda: bob.get_object(Bucket=BUCKET, Key=of_ann),
        lambda: bob.head_object(Bucket=BUCKET, Key=of_ann),
        lambda: bob.put_object(Bucket=BUCKET, Key=of_ann, Body=b""),
        lambda: bob.delete_object(Bucket=BUCKET, Key=of_ann),
        lambda: bob.copy_object(
            Bucket=BUCKET, Key="customers/bob/x", CopySource={"Bucket": BUCKET, "Key": of_ann}
        ),
        lambda: bob.list_objects_v2(Bucket=BUCKET, Prefix="customers/"),
        lambda: bob.list_objects_v2(Bucket=BUCKET, Prefix="customers/ann/"),
        lambda: bob.get_object(Bucket=BUCKET, Key=layout.claim("ann", "job", 1)),
        lambda: bob.put_object(Bucket=BUCKET, Key=layout.claim("bob", "job", 1), Body=b""),
        lambda: bob.put_object(Bucket=BUCKET, Key=layout.usage("bob", "day"), Body=b""),
    ):
        with pytest.raises(ClientError, match=r"AccessDenied|Forbidden|403"):
            act()
    bob.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": of_ann}]})
    become(monkeypatch, users["ann"], tmp_path / "ann")
    assert open_store(parts["ann"]).read("jobs/a/inputs/b.ct") == b"ann"


def serving(root: str, log: Path, *more: str) -> subprocess.Popen[bytes]:
    """A server in a process of its own, with the environment of this one."""
    command = [sys.executable, "-P", "-c", "import sys; sys.argv[0] = 'nst-batch';"]
    command[-1] += f"sys.path.insert(0, {str(ENTRY.parent)!r}); import nst_batch; nst_batch.main()"
    with log.open("ab") as output:
        return subprocess.Popen(
            [*command, "serve", "--store", root, "--actors", "2", *more],
            stdout=output,
            stderr=output,
        )


@pytest.mark.slow
def test_a_server_killed_in_the_middle_loses_nothing(
    server: tuple[S3Server, Users],
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Real circuits, a real local Ray, a real store; the owner's process is killed and followed."""
    s3, users = server
    root = f"s3://{BUCKET}?endpoint={s3.endpoint}"
    owner, log = Home(tmp_path / "owner"), tmp_path / "serve.log"
    monkeypatch.setitem(levels.LEVELS, "toy", toy_level(toy_weights(tmp_path / "toy.safetensors")))
    become(monkeypatch, users["owner"], owner.root)
    open_store(root, create=True)
    offers = open_store(f"s3://{BUCKET}/offers?endpoint={s3.endpoint}", create=True)
    cache = published.folder.parent
    key = signing_key(owner.signing_key)
    publish(Model.load("toy", cache), offers, key, str(cache), MODEL, "")
    # The customer has no level of that name, and no weights.
    monkeypatch.delitem(levels.LEVELS, "toy")
    url = f"s3://{BUCKET}/customers/ann"
    pairs = folder_of(tmp_path / "pairs", ["lake", "sea"])
    become(monkeypatch, users["ann"], tmp_path / "ann")
    sent = run(
        *("submit", pairs, "--store", url, "--endpoint-url", s3.endpoint),
        *("--model", MODEL, "--owner", owner_of(owner.signing_key), "--no-wait"),
    )
    assert sent.exit_code == 0, sent.output
    (local,) = Home(tmp_path / "ann").jobs()
    store = open_store(local.store)

    def until(done: int) -> None:
        deadline = time.monotonic() + TIMEOUT
        while read_state(store, local.job_id).pairs_done < done:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    become(monkeypatch, users["owner"], owner.root)
    first = serving(root, log, "--private", str(cache))
    try:
        until(1)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    second = serving(root, log, "--private", str(cache), "--once")
    try:
        assert second.wait(TIMEOUT) == 0, log.read_text()
    finally:
        second.kill()
    text = log.read_text()
    assert "Traceback" not in text and "lake" not in text
    become(monkeypatch, users["ann"], tmp_path / "ann")
    assert run("status", local.job_id).exit_code == 0
    fetched = run("fetch", local.job_id, "--out", tmp_path / "out")
    assert fetched.exit_code == 0, fetched.output
    assert (tmp_path / "out" / "lake.png").exists() and (tmp_path / "out" / "sea.png").exists()
    ends = [json.loads(store.read(key)) for key in store.list(layout.marks(local.job_id))]
    assert sum(end.get("status") == "succeeded" and "pair_id" in end for end in ends) == 2
    bundle = published.server_bundle.read_bytes()
    s3_client = client_of(s3, users["owner"])
    listed = s3_client.list_objects_v2(Bucket=BUCKET)["Contents"]
    assert all(each["Size"] != len(bundle) for each in listed)
    assert run("delete", local.job_id, "--yes").exit_code == 0
