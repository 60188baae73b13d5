"""A service and two customers of it, each with credentials of their own, on a real S3 server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from jobs.client.home import Home
from jobs.client.offered import Service
from jobs.storage import layout
from jobs.storage.store import open_store
from nst.errors import StoreError
from tests.s3_server import S3Server

IDENTITIES = Path(__file__).resolve().parents[1] / "cluster/service/seaweedfs-identities.json"
BUCKET = "studio"

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
