"""Servers that speak S3 unlike Amazon's, and what stands before them: what works, what is said."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from botocore.stub import Stubber

from jobs.proxies import proxy_hint
from jobs.storage.s3_address import S3Address, S3Options
from jobs.storage.s3_store import S3Store
from nst.errors import StoreAddressError, StoreError
from tests.conftest import BUCKET

KEYS = ["jobs/1/a", "jobs/1/b"]


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def on(endpoint: str, **options: str) -> S3Store:
    address = S3Address(BUCKET, "p", S3Options(endpoint_url=endpoint, region="eu-1", **options))
    return S3Store(address, patience=0.2)


def listed(stub: Stubber) -> None:
    stub.add_response("list_objects_v2", {"Contents": [{"Key": f"p/{key}"} for key in KEYS]})


@pytest.mark.parametrize(
    ("code", "status"),
    [("MissingContentMD5", 400), ("NotImplemented", 501), ("MethodNotAllowed", 405)],
)
def test_deleting_one_by_one_where_many_are_refused(
    monkeypatch: pytest.MonkeyPatch, code: str, status: int
) -> None:
    store, deleted = on("http://127.0.0.1:1"), list[str]()
    monkeypatch.setattr(store, "delete", deleted.append)
    with Stubber(store.client) as stub:
        listed(stub)
        stub.add_client_error("delete_objects", code, http_status_code=status)
        stub.add_response("list_multipart_uploads", {})
        assert store.delete_prefix("jobs/1/") == len(KEYS)
        stub.assert_no_pending_responses()
    assert sorted(deleted) == KEYS


def test_uploads_that_cannot_be_listed_keep_no_job() -> None:
    store = on("http://127.0.0.1:1")
    with Stubber(store.client) as stub:
        listed(stub)
        stub.add_response("delete_objects", {})
        stub.add_client_error("list_multipart_uploads", "NotImplemented", http_status_code=501)
        assert store.delete_prefix("jobs/1/") == len(KEYS)


def test_a_listing_that_is_denied_is_no_empty_one() -> None:
    store = on("http://127.0.0.1:1")
    with Stubber(store.client) as stub:
        listed(stub)
        stub.add_response("delete_objects", {})
        stub.add_client_error("list_multipart_uploads", "AccessDenied", http_status_code=403)
        with pytest.raises(StoreError, match="s3:ListBucketMultipartUploads"):
            store.delete_prefix("jobs/1/")


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("NotImplemented", 501, "If-None-Match"),
        ("InvalidArgument", 400, "x-amz-checksum-sha256"),
        ("MovedPermanently", 301, "redirects"),
    ],
)
def test_a_server_that_lacks_something(code: str, status: int, words: str) -> None:
    store = on("http://127.0.0.1:1")
    with Stubber(store.client) as stub:
        stub.add_client_error("put_object", code, http_status_code=status)
        with pytest.raises(StoreError, match=words) as caught:
            store.create("jobs/1/x", b"1")
    assert "free space" not in str(caught.value) and "doctor" not in str(caught.value)


@pytest.mark.parametrize("date", [{}, {"date": "soon"}])
def test_a_server_that_does_not_say_the_time(date: dict[str, str]) -> None:
    store = on("http://127.0.0.1:1")
    answer: dict[str, Any] = {
        "IsTruncated": False,
        "ResponseMetadata": {"HTTPHeaders": date, "HTTPStatusCode": 200},
    }
    with Stubber(store.client) as stub:
        stub.add_response("list_objects_v2", answer)
        with pytest.raises(StoreError, match="Date"):
            store.clock()


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("http://host:1/bucket", "leave out /bucket"),
        ("http://host:1\r", "line end of a file from Windows"),
    ],
)
def test_endpoints_as_consoles_and_files_have_them(endpoint: str, words: str) -> None:
    with pytest.raises(StoreAddressError, match=words):
        on(endpoint)
    for right in ("http://host:1", "http://host:1/", "http://[::1]:9000", "https://a.b"):
        assert on(right).address.options.endpoint_url == right


class _Answers(BaseHTTPRequestHandler):
    """Answers everything with a page, or sends it elsewhere."""

    page: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        self.send_response(200 if self.page else 301)
        self.send_header("Location", f"https://127.0.0.1{self.path}")
        self.send_header("Content-Length", str(len(self.page)))
        self.end_headers()
        self.wfile.write(self.page)

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_redirects(endpoint: str) -> None:
    with pytest.raises(StoreError, match=r"redirects.*https"):
        on(endpoint).check(0.2)


def test_a_page_is_no_s3_server(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Answers, "page", b"<html><body>Sign in</body></html>")
    with pytest.raises(StoreError, match="no S3 server"):
        on(endpoint).check(0.2)


def test_a_line_end_of_windows_in_a_key(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user\r")
    with pytest.raises(StoreError, match="line end of a file from Windows") as caught:
        on(endpoint).check(60)
    assert "user" not in str(caught.value)


def test_a_proxy_is_named(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"does not answer.*HTTP_PROXY.*127\.0\.0\.1 to NO_PROXY"):
        on(endpoint).check(0.2)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert proxy_hint(endpoint) == ""


def test_a_profile_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nope")
    with pytest.raises(StoreError, match="no profile nope"):
        on("http://127.0.0.1:1")
