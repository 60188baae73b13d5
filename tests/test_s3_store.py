"""What a store in S3 promises besides: parts, patience, checksums, errors that help, no secrets."""

from __future__ import annotations

import hashlib
import os
import pickle
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from botocore.stub import ANY, Stubber

from jobs.execution.loading import EvaluatorLoader
from jobs.storage.s3_address import S3Address, S3Options
from jobs.storage.s3_store import S3Store
from jobs.storage.store import StoreOptions, connect, open_store
from nst.errors import StoreError
from tests.conftest import BUCKET
from tests.s3_server import S3Server, free_ports

SMALLEST_PART = 5 << 20
BLOB = os.urandom(4 * SMALLEST_PART - 7)
ROOT = Path(__file__).resolve().parent.parent


def address_on(server: S3Server, bucket: str = BUCKET, **options: str) -> S3Address:
    return S3Address(
        bucket, secrets.token_hex(4), S3Options(endpoint_url=server.endpoint, **options)
    )


@pytest.fixture
def store(s3_server: S3Server) -> S3Store:
    """An empty store with small parts."""
    return S3Store(address_on(s3_server), part_bytes=SMALLEST_PART)


@pytest.fixture
def calls(store: S3Store) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Every request's operation and its parameters, as they are made."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        seen.append((model.name, dict(params)))

    store.client.meta.events.register("provide-client-params.s3.*", note)
    yield seen


def impatient(address: S3Address) -> S3Store:
    return S3Store(address, patience=0.5)


def failure(call: Callable[[], Any]) -> str:
    with pytest.raises(StoreError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        S3Address("bucket"),
        S3Address("bucket", "a/b c/ü%20#?&"),
        S3Address(
            "my.bucket-1",
            "p",
            S3Options(endpoint_url="http://[::1]:8333", region="eu-west-1", profile="a b&c=d"),
        ),
        S3Address(
            "bucket", "", S3Options(sse="aws:kms", sse_kms_key_id="arn:aws:kms:eu:1:key/2-3")
        ),
        S3Address("bucket", "p", S3Options(sse="AES256")),
    ],
)
def test_an_address_comes_back_from_its_url(address: S3Address) -> None:
    assert S3Address.parse(address.url) == address


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "no name of a bucket"),
        ("s3://b", "no name of a bucket"),
        ("s3:///prefix", "no name of a bucket"),
        ("s3://bucket/a//b", "empty part"),
        ("s3://bucket/a/../b", "empty part"),
        ("s3://bucket/a#b", "%23"),
        ("s3://bucket?endpoint=localhost:9000", "http://host:port"),
        ("s3://bucket?endpoint=ftp://host", "http://host:port"),
        ("s3://bucket?endpoint=http://host:port", "http://host:port"),
        ("s3://bucket?endpoint=", "empty"),
        ("s3://bucket?sse=rot13", "AES256, aws:kms"),
        ("s3://bucket?kms_key_id=k", "--sse aws:kms"),
        ("s3://bucket?sse=AES256&kms_key_id=k", "--sse aws:kms"),
        ("s3://bucket?regoin=eu", "'regoin' is unknown"),
        ("s3://bucket?region=eu&region=us", "'region' is given twice"),
        ("s3://bucket?x", "malformed"),
    ],
)
def test_wrong_addresses_are_explained(url: str, words: str) -> None:
    assert words in failure(lambda: open_store(url))


@pytest.mark.parametrize(
    "url",
    [
        "s3://me:hunter2@bucket/p",
        "s3://hunter2@bucket/p",
        "s3://bucket/p?aws_secret_access_key=hunter2",
        "s3://bucket/p?secret=hunter2&x",
        "s3://bucket/p?endpoint=http://me:hunter2@host:1",
        "ftp://me:hunter2@host/p?hunter2",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    assert "hunter2" not in failure(lambda: open_store(url))


def test_options_are_folded_into_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    given = StoreOptions(profile="p", sse="AES256")
    assert given.fold("s3://bucket/a?region=r&sse=aws:kms") == (
        "s3://bucket/a?region=r&profile=p&sse=AES256"
    )
    # Where the data is does not depend on tomorrow's environment.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://host:1")
    assert StoreOptions().fold("s3://bucket") == "s3://bucket?endpoint=http://host:1"
    there = StoreOptions(endpoint_url="http://host:2")
    assert there.fold("s3://bucket") == "s3://bucket?endpoint=http://host:2"
    # What a file says of stores in S3 is no reason to refuse a folder; an option of the call is.
    assert given.fold("./folder", refused=["region"]) == "./folder"
    assert "takes no profile" in failure(lambda: given.fold("./folder", refused=["profile"]))


# Parts


def test_large_blobs_travel_in_parts(
    store: S3Store, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    store.write("big", BLOB)
    names = [name for name, _ in calls]
    assert names.count("UploadPart") == 4 and "PutObject" not in names
    (begun,) = [p for name, p in calls if name == "CreateMultipartUpload"]
    assert begun["Metadata"] == {"sha256": hashlib.sha256(BLOB).hexdigest()}
    calls.clear()
    assert store.read("big") == BLOB
    assert {name for name, _ in calls} == {"GetObject"}
    ranges = sorted(p["Range"] for _, p in calls)
    step, last = SMALLEST_PART, 4 * SMALLEST_PART - 1
    assert ranges == sorted(f"bytes={i}-{min(i + step - 1, last)}" for i in range(0, last, step))
    # All later ranges are of the version that the first came from.
    assert len({p.get("IfMatch") for _, p in calls if not p["Range"].startswith("bytes=0-")}) == 1
    assert all("IfMatch" in p for _, p in calls if not p["Range"].startswith("bytes=0-"))


@pytest.mark.parametrize("size", [0, 1, SMALLEST_PART, SMALLEST_PART + 1])
def test_sizes_around_a_part(store: S3Store, size: int) -> None:
    store.write("blob", BLOB[:size])
    assert store.read("blob") == BLOB[:size]


def test_ranges_of_two_versions_are_never_joined(store: S3Store) -> None:
    other = BLOB[::-1]
    store.write("big", BLOB)
    once = threading.Event()

    def replace_after_first(**_: Any) -> None:
        if not once.is_set():
            once.set()
            store.write("big", other)

    store.client.meta.events.register("after-call.s3.GetObject", replace_after_first)
    assert store.read("big") == other
    assert once.is_set()


# Checksums


def test_a_damaged_blob_is_named(store: S3Store, s3_server: S3Server) -> None:
    for key, blob in (("small", b"picture"), ("big", BLOB)):
        store.write(key, blob)
        damaged = bytes([blob[0] ^ 1]) + blob[1:]
        s3_server.client().put_object(
            Bucket=BUCKET,
            Key=store.address.key(key),
            Body=damaged,
            Metadata={"sha256": hashlib.sha256(blob).hexdigest()},
        )
        begun = time.monotonic()
        message = failure(lambda key=key: store.read(key))  # type: ignore[misc]
        assert key in message and "SHA-256" in message
        assert time.monotonic() - begun < 30


def test_a_blob_without_checksum_is_refused(store: S3Store, s3_server: S3Server) -> None:
    s3_server.client().put_object(Bucket=BUCKET, Key=store.address.key("alien"), Body=b"1")
    assert "no checksum" in failure(lambda: store.read("alien"))


def test_a_body_damaged_on_its_way_is_refused_by_the_server(store: S3Store) -> None:
    def damage(request: Any, **_: Any) -> None:
        request.data = b"damaged"

    store.client.meta.events.register("before-sign.s3.PutObject", damage)
    failure(lambda: store.write("a", b"correct"))
    assert not store.exists("a")


# Patience


def test_a_server_that_dies_and_comes_back_is_waited_for(
    store: S3Store, s3_server: S3Server
) -> None:
    store.write("a", b"1")
    s3_server.kill()
    restart = threading.Timer(2, s3_server.start)
    restart.start()
    try:
        assert store.read("a") == b"1"
        store.write("b", b"2")
        assert store.list("") == ["a", "b"]
    finally:
        restart.join()


@pytest.mark.parametrize("operation", ["GetObject", "UploadPart"])
def test_a_server_that_dies_in_the_middle_of_a_blob(
    store: S3Store, s3_server: S3Server, operation: str
) -> None:
    if operation == "GetObject":
        store.write("big", BLOB)
    restart = threading.Timer(2, s3_server.start)
    once = threading.Lock()

    def crash(**_: Any) -> None:
        if once.acquire(blocking=False):
            s3_server.kill()
            restart.start()

    store.client.meta.events.register(f"after-call.s3.{operation}", crash)
    try:
        if operation == "UploadPart":
            store.write("big", BLOB)
        assert store.read("big") == BLOB
    finally:
        assert once.locked()
        restart.join()


def test_a_creator_whose_answer_was_lost_has_won(store: S3Store) -> None:
    lost = []

    def lose(http_response: Any, parsed: dict[str, Any], **_: Any) -> None:
        if not lost:
            lost.append(True)
            raise ClientError(
                {"Error": {"Code": "500"}, "ResponseMetadata": {"HTTPStatusCode": 500}}, "PutObject"
            )

    store.client.meta.events.register("after-call.s3.PutObject", lose)
    assert store.create("a", b"1")
    assert lost
    assert not store.create("a", b"1")


def test_conflicts_of_creators_are_repeated(store: S3Store) -> None:
    with Stubber(store.client) as stub:
        stub.add_client_error("put_object", "ConditionalRequestConflict", http_status_code=409)
        stub.add_response("put_object", {})
        assert store.create("a", b"1")
        stub.assert_no_pending_responses()


# Errors


def test_wrong_credentials(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    address = address_on(s3_server)
    wrong = secrets.token_hex(20)
    for variable in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, wrong)
            begun = time.monotonic()
            message = failure(lambda: open_store(address.url))
            assert "credentials are wrong" in message and variable in message
            assert wrong not in message and s3_server.secret_key not in message
            store = impatient(address)
            assert "credentials are wrong" in failure(lambda s=store: s.write("a", b""))  # type: ignore[misc]
            assert "denied" in failure(lambda s=store: s.exists("a"))  # type: ignore[misc]
            assert time.monotonic() - begun < 20


def test_no_credentials(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    message = failure(lambda: open_store(address_on(s3_server).url))
    assert "AWS_ACCESS_KEY_ID" in message and "--profile" in message
    message = failure(lambda: open_store(address_on(s3_server, profile="missing").url))
    assert "missing" in message and "--profile" in message


def test_a_profile_holds_the_credentials(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "credentials").write_text(
        f"[studio]\naws_access_key_id = {s3_server.access_key}\n"
        f"aws_secret_access_key = {s3_server.secret_key}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    store = open_store(address_on(s3_server, profile="studio").url, create=True)
    store.write("a", b"1")
    assert open_store(store.url).read("a") == b"1"


def test_a_missing_bucket(s3_server: S3Server) -> None:
    message = failure(lambda: open_store(address_on(s3_server, "no-such-bucket").url))
    assert "no bucket no-such-bucket" in message
    assert f"aws s3 mb s3://no-such-bucket --endpoint-url {s3_server.endpoint}" in message


def test_a_server_that_is_not_there(s3_server: S3Server) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    address = S3Address(BUCKET, "p", S3Options(endpoint_url=endpoint))
    message = failure(lambda: connect(address.url, patience=0.5))
    assert endpoint in message and "--endpoint-url" in message


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("QuotaExceeded", 403, "full"),
        ("XMinioStorageFull", 507, "full"),
        ("", 507, "full"),
        ("AccessDenied", 403, "s3:PutObject"),
        ("ExpiredToken", 400, "renew"),
        ("RequestTimeTooSkewed", 403, "clock"),
        ("PermanentRedirect", 301, "--region"),
        ("KMS.NotFoundException", 400, "--sse"),
        ("NotImplemented", 501, "HTTP 501"),
        ("Unheard", 418, "doctor"),
    ],
)
def test_refusals_say_what_to_do(s3_server: S3Server, code: str, status: int, words: str) -> None:
    store = impatient(address_on(s3_server))
    with Stubber(store.client) as stub:
        stub.add_client_error(
            "put_object", code, f"a text with {s3_server.access_key}", http_status_code=status
        )
        message = failure(lambda: store.write("jobs/1/x", b"1"))
        stub.assert_no_pending_responses()
    assert "jobs/1/x" in message and words in message
    assert s3_server.access_key not in message


def test_a_refused_deletion_is_named(store: S3Store) -> None:
    store.write("jobs/1/x", b"1")
    with Stubber(store.client) as stub:
        stub.add_response("list_objects_v2", {"Contents": [{"Key": store.address.key("jobs/1/x")}]})
        stub.add_response("delete_objects", {"Errors": [{"Code": "AccessDenied"}]})
        message = failure(lambda: store.delete_prefix("jobs/1/"))
    assert "jobs/1/" in message and "s3:DeleteObject" in message


def test_half_uploads_of_killed_writers_are_deleted(store: S3Store, s3_server: S3Server) -> None:
    def begun() -> list[str]:
        listed = store.client.list_multipart_uploads(
            Bucket=BUCKET, Prefix=store.address.key("")
        ).get("Uploads", [])
        return sorted(upload["Key"].removeprefix(store.address.key("")) for upload in listed)

    for key in ("jobs/1/inputs/x", "jobs/2/inputs/x"):
        store.client.create_multipart_upload(Bucket=BUCKET, Key=store.address.key(key))
    assert begun() == ["jobs/1/inputs/x", "jobs/2/inputs/x"]
    assert store.delete_prefix("jobs/1/") == 0
    assert begun() == ["jobs/2/inputs/x"]


# Encryption and secrets


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"sse": "AES256"}, {"ServerSideEncryption": "AES256"}),
        (
            {"sse": "aws:kms", "sse_kms_key_id": "key-1"},
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key-1"},
        ),
    ],
)
def test_encryption_is_passed_on(
    s3_server: S3Server, options: dict[str, str], expected: dict[str, str]
) -> None:
    store = S3Store(address_on(s3_server, **options), part_bytes=SMALLEST_PART)
    written = {
        "Bucket": BUCKET, "Key": store.address.key("a"), "Body": b"1", "Metadata": ANY,
        "ChecksumSHA256": ANY, **expected,
    }  # fmt: skip
    with Stubber(store.client) as stub:
        stub.add_response("put_object", {}, written)
        stub.add_response("put_object", {}, {**written, "IfNoneMatch": "*"})
        store.write("a", b"1")
        assert store.create("a", b"1")
    begun: list[dict[str, Any]] = []

    def stop(params: dict[str, Any], **_: Any) -> None:
        begun.append(dict(params))
        raise ClientError({"Error": {"Code": "Stop"}}, "CreateMultipartUpload")

    store.client.meta.events.register("provide-client-params.s3.CreateMultipartUpload", stop)
    failure(lambda: store.write("big", BLOB))
    assert {k: v for k, v in begun[0].items() if k.startswith("S")} == expected


def test_a_server_that_encrypts(s3_server: S3Server) -> None:
    store = open_store(address_on(s3_server, sse="AES256").url, create=True)
    store.write("a", b"1")
    assert open_store(store.url).read("a") == b"1"


def test_no_credentials_in_what_is_shown_or_sent(
    s3_server: S3Server, store: S3Store, caplog: pytest.LogCaptureFixture
) -> None:
    loader = EvaluatorLoader(store.url, "c", "k")
    store.write("a", b"1")
    bad = replace(store.address, bucket="no-such-bucket")
    shown = [
        *(store.url, repr(store), str(store), repr(store.address), caplog.text),
        pickle.dumps(loader).decode("latin1"),
        failure(lambda: impatient(bad).read("a")),
        failure(lambda: store.read("nothing")),
    ]
    for text in shown:
        assert s3_server.secret_key not in text and s3_server.access_key not in text


# Processes


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sealed_process_reads_it(store: S3Store) -> None:
    """As drivers and actors do: credentials come with the environment, the URL names the rest."""
    open_store(store.url, create=True).write("a", b"1")
    code = """
import sys
from nst.sealing import seal
import jobs.execution.driver, jobs.execution.loading
seal()
from jobs.storage.store import open_store
store = open_store(sys.argv[1])
store.write("b", store.read("a") + b"2")
seal()
"""
    run_python(code, store.url)
    assert store.read("b") == b"12"


@pytest.mark.parametrize(
    "module",
    ["jobs.cli.main", "jobs.storage.store", "jobs.execution.driver", "jobs.execution.loading"],
)
def test_boto3_waits_until_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'boto3', 'botocore'}} & set(sys.modules)))"
    assert run_python(code).strip() == "[]"
