"""A store in S3 or in a server that speaks its protocol."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import re
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, TypeVar

from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.loaders import create_loader
from botocore.parsers import ResponseParserError
from botocore.session import Session
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from jobs.storage.bounds import MOST_KEYS, all_of, require_size
from jobs.storage.layout import require_folder, require_key
from jobs.storage.s3_address import PATIENCE, S3Address
from jobs.storage.s3_errors import REQUEST_ERRORS, code_of, explain, is_transient, status_of
from jobs.storage.s3_http import Bounded
from nst.errors import StoreContentError, StoreError

PART = 8 << 20
"""Bytes of a part: larger blobs are uploaded in parts and downloaded in parallel ranges."""
PARALLEL = 4
"""Parts under way at once, a blob."""
CONNECT_TIMEOUT, READ_TIMEOUT = 5, 60
"""Seconds."""
QUICK_ATTEMPTS = 3
"""Attempts that botocore makes by itself, within seconds; `S3Store.patience` is for longer."""
LONGEST_WAIT = 5.0
"""Seconds between two attempts at most."""
DAMAGED_READS = 2
"""Reads of a blob that does not match its checksum: the second tells the network from the store."""
REPLACED_READS = 10
"""Reads of a blob that others replace while it is read."""
PAGE, EMPTY_PAGES, MOST_PAGES = 100, 100, 10_000
"""Names that a page of a listing has at least, pages that may have fewer, and pages of uploads."""
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})\Z")
DELETE_BATCH = 1000
"""Keys a request, S3's limit."""
SENSELESS = (ValueError, LookupError, TypeError, OverflowError, RecursionError)
"""What reading an answer raises that no S3 server gives."""
UNSUPPORTED = frozenset({405, 501})
"""What servers answer to requests that they do not know."""
LISTING = frozenset({"Name", "IsTruncated", "MaxKeys"})
"""What S3's listings say, and pages to sign in at do not."""
SHA256, WRITER = "sha256", "writer"
"""Metadata of every object; of those made by `create`, who made it."""

T = TypeVar("T")
# Service descriptions are parsed once per process, not once per store: 80 ms of CPU.
_LOADER = create_loader()


class _ReplacedError(Exception):
    """The object is another one than when its download began."""


@dataclass(frozen=True)
class _Piece:
    """One range of an object, and what the answer tells of the whole."""

    blob: bytes
    total: int
    etag: str
    sha256: str | None


class S3Store:
    """Blobs as objects below a prefix of a bucket.

    Credentials come from a profile, the environment or the machine, as boto3 finds them. Every
    object carries the SHA-256 of its blob, which is compared with what is read.
    """

    def __init__(
        self, address: S3Address, patience: float = PATIENCE, part_bytes: int = PART
    ) -> None:
        """Prepare connections; none is made yet.

        Args:
            address: Which store.
            patience: Seconds for which a request to a server that does not answer is repeated.
            part_bytes: Bytes of a part, at least S3's 5 MiB.

        Raises:
            StoreError: if the profile is missing or the AWS configuration damaged.
        """
        self.address, self.patience, self.part_bytes = address, patience, part_bytes
        options = address.options
        self._session = Session(profile=options.profile)
        self._session.register_component("data_loader", _LOADER)
        self.client = _explained(address, self._connect)
        self._transfer = TransferConfig(
            multipart_threshold=part_bytes + 1,
            multipart_chunksize=part_bytes,
            max_concurrency=PARALLEL,
        )
        encryption = {"ServerSideEncryption": options.sse, "SSEKMSKeyId": options.sse_kms_key_id}
        self._encryption = {name: value for name, value in encryption.items() if value}

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    def _connect(self) -> Any:
        client = self._session.create_client(
            "s3",
            region_name=self.address.options.region,
            endpoint_url=self.address.options.endpoint_url,
            config=Config(
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                # Exponential backoff with jitter.
                retries={"mode": "standard", "max_attempts": QUICK_ATTEMPTS},
                max_pool_connections=4 * PARALLEL,
            ),
        )
        # Botocore takes answers in whole, however large or slow, and has no setting for that.
        endpoint = client._endpoint
        endpoint.http_session = Bounded(endpoint.http_session, self.address.name)
        return client

    @property
    def url(self) -> str:
        """Bucket, prefix and options; no credentials."""
        return self.address.url

    def check(self, patience: float) -> None:
        """Raise StoreError if the bucket cannot be listed; a silent server gets so many seconds."""
        self._request("cannot open it", self._list_one, patience)

    def read(self, key: str, limit: int | None = None) -> bytes:
        """See `Store`: a blob that does not match its checksum is damaged."""
        self._require(key)
        damaged = replaced = 0
        while damaged < DAMAGED_READS and replaced < REPLACED_READS:
            try:
                blob, recorded = self._download(key, limit)
            except _ReplacedError:
                replaced += 1
                continue
            if recorded is None:
                raise self._damage(
                    f"{key} carries no checksum, so it was not written by nst-batch or lost it in "
                    "a copy; copy with metadata, or submit the job again"
                )
            if hashlib.sha256(blob).hexdigest() == recorded:
                return blob
            damaged += 1
        if damaged:
            raise self._damage(
                f"{key} does not match its SHA-256: it is damaged; "
                "restore it from a backup, or submit the job again"
            )
        raise self._error(f"{key} is replaced faster than it can be read; stop one of its writers")

    def write(self, key: str, blob: bytes) -> None:
        """See `Store`."""
        self._require(key)
        if len(blob) <= self.part_bytes:
            self._request(f"cannot write {key}", lambda: self._put(key, blob))
            return
        arguments = {
            "Metadata": {SHA256: hashlib.sha256(blob).hexdigest()},
            **self._encryption,
        }

        def upload() -> None:
            with create_transfer_manager(self.client, self._transfer) as manager:
                manager.upload(
                    io.BytesIO(blob), self.address.bucket, self.address.key(key), arguments
                ).result()

        self._request(f"cannot write {key}", upload)

    def create(self, key: str, blob: bytes) -> bool:
        """See `Store`."""
        self._require(key)
        writer = secrets.token_hex(8)

        def put() -> bool:
            try:
                self._put(key, blob, {WRITER: writer}, IfNoneMatch="*")
                return True
            except ClientError as error:
                if status_of(error) != 412:
                    raise
                return False

        def is_ours() -> bool:
            head = self._head(key)
            return head is not None and head["Metadata"].get(WRITER) == writer

        # A request that is repeated because its answer was lost meets its own object.
        doing = f"cannot write {key}"
        return self._request(doing, put) or self._request(doing, is_ours)

    def exists(self, key: str) -> bool:
        """See `Store`."""
        self._require(key)
        return self._request(f"cannot read {key}", lambda: self._head(key)) is not None

    def children(self, prefix: str, limit: int = MOST_KEYS) -> list[str]:
        """See `Store`."""
        cut = len(self.address.key(prefix))
        return [name[cut:-1] for name in self._listed(prefix, "CommonPrefixes", limit, "/")]

    def list(self, prefix: str, limit: int = MOST_KEYS) -> list[str]:
        """See `Store`."""
        cut = len(self.address.key(""))
        return [name[cut:] for name in self._listed(prefix, "Contents", limit)]

    def delete(self, key: str) -> None:
        """See `Store`."""
        self._require(key)
        self._request(
            f"cannot delete {key}",
            lambda: self.client.delete_object(
                Bucket=self.address.bucket, Key=self.address.key(key)
            ),
        )

    def delete_prefix(self, prefix: str) -> int:
        """See `Store`."""
        require_folder(self.address.name, prefix)
        keys = self.list(prefix)
        for start in range(0, len(keys), DELETE_BATCH):
            self._delete_batch(prefix, keys[start : start + DELETE_BATCH])
        self._request(f"cannot delete {prefix}", lambda: self._abort_uploads(prefix))
        return len(keys)

    def clock(self) -> float:
        """See `Store`; to the second."""

        def dated() -> float:
            date = self._list_one()["ResponseMetadata"]["HTTPHeaders"].get("date", "")
            try:
                return parsedate_to_datetime(date).timestamp()
            except SENSELESS as error:
                raise self._error(
                    "the server does not say the time (no header Date), by which a job is known to "
                    "be alive; take away the proxy before it, or use another --store"
                ) from error

        return self._request("cannot read its clock", dated)

    def credentials(self) -> tuple[str, bool]:
        """Where the credentials come from, and whether they end without being renewed.

        Raises:
            StoreError: if there are none.
        """
        found = _explained(self.address, self._session.get_credentials)
        if found is None:
            raise self._error(
                "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or name a profile with --profile"
            )
        return found.method, not hasattr(found, "refresh_needed") and found.token is not None

    def _put(
        self, key: str, blob: bytes, metadata: dict[str, str] | None = None, **conditions: str
    ) -> None:
        digest = hashlib.sha256(blob)
        self.client.put_object(
            Bucket=self.address.bucket,
            Key=self.address.key(key),
            Body=blob,
            Metadata={SHA256: digest.hexdigest(), **(metadata or {})},
            # The server refuses a body that was damaged on its way.
            ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
            **self._encryption,
            **conditions,
        )

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            head: dict[str, Any] = self.client.head_object(
                Bucket=self.address.bucket, Key=self.address.key(key)
            )
            return head
        except ClientError as error:
            if status_of(error) == 404:
                return None
            raise

    def _listed(self, prefix: str, kind: str, limit: int, delimiter: str = "") -> Sequence[str]:
        """All names of a listing, whole: keys, or below a delimiter what stands before it."""
        whole = self.address.key(prefix)
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.address.bucket, Prefix=whole, Delimiter=delimiter
        )

        def names() -> Iterator[str]:
            for number, page in enumerate(pages):
                found = page.get(kind, [])
                # A page may be empty, but not page after page.
                if number > limit // PAGE + EMPTY_PAGES:
                    raise self._damage(f"the listing of {prefix} does not end")
                for entry in found:
                    name = str(entry["Key" if kind == "Contents" else "Prefix"])
                    if name.startswith(whole):
                        yield name

        def everything() -> Sequence[str]:
            return all_of(names(), self.address.name, prefix, limit)

        return self._request(f"cannot list {prefix}", everything)

    def _list_one(self) -> dict[str, Any]:
        # Not HEAD of the bucket: its refusals have no body, so no reason.
        answer: dict[str, Any] = self.client.list_objects_v2(
            Bucket=self.address.bucket, Prefix=self.address.key(""), MaxKeys=1
        )
        if LISTING.isdisjoint(answer):
            raise ResponseParserError("no listing")
        return answer

    def _download(self, key: str, limit: int | None) -> tuple[bytes, str | None]:
        """A blob and its recorded SHA-256; ranges belong to one version of the object."""
        doing = f"cannot read {key}"
        first = self._request(doing, lambda: self._first_piece(key, limit))
        require_size(self.address.name, key, first.total, limit)
        starts = range(len(first.blob), first.total, self.part_bytes)
        if not starts:
            return first.blob, first.sha256

        def piece(start: int) -> bytes:
            wanted = min(self.part_bytes, first.total - start)
            found = self._request(doing, lambda: self._later_piece(key, start, wanted, first.etag))
            if found.total != first.total or len(found.blob) != wanted:
                raise self._damage(f"{key} comes in pieces that do not fit; read it again")
            return found.blob

        with ThreadPoolExecutor(PARALLEL) as threads:
            return b"".join([first.blob, *threads.map(piece, starts)]), first.sha256

    def _first_piece(self, key: str, limit: int | None) -> _Piece:
        try:
            return self._get(key, 0, self.part_bytes, Range=f"bytes=0-{self.part_bytes - 1}")
        except ClientError as error:
            if status_of(error) != 416:
                raise
            return self._get(key, 0, 0)  # An empty object has no range.

    def _later_piece(self, key: str, start: int, wanted: int, etag: str) -> _Piece:
        try:
            asked = f"bytes={start}-{start + self.part_bytes - 1}"
            return self._get(key, start, wanted, Range=asked, IfMatch=etag)
        except ClientError as error:
            if status_of(error) in (412, 416):
                raise _ReplacedError from error
            raise

    def _get(self, key: str, start: int, most: int, **conditions: str) -> _Piece:
        """A range of an object that begins at a byte and has so many at most."""
        try:
            answer = self.client.get_object(
                Bucket=self.address.bucket, Key=self.address.key(key), **conditions
            )
        except ClientError as error:
            if code_of(error) == "NoSuchKey":
                raise self._damage(f"there is no {key}; was the job deleted?") from error
            raise
        # Whatever length is announced, no more than was asked for is taken.
        blob = b""
        with contextlib.closing(answer["Body"]) as body:
            # To its end, where what broke off on its way is told from what is whole.
            while len(blob) <= most and (more := body.read(most + 1 - len(blob))):
                blob += more
        total = _total(answer.get("ContentRange"), start, len(blob))
        if total is None or len(blob) > most:
            raise self._damage(f"{key}: what came is not what was asked for; ask its operator")
        return _Piece(blob, total, answer.get("ETag", ""), answer.get("Metadata", {}).get(SHA256))

    def _delete_batch(self, prefix: str, keys: Sequence[str]) -> None:
        objects = [{"Key": self.address.key(key)} for key in keys]

        def delete() -> dict[str, Any] | None:
            try:
                answer: dict[str, Any] = self.client.delete_objects(
                    Bucket=self.address.bucket, Delete={"Objects": objects, "Quiet": True}
                )
                return answer
            except ClientError as error:
                if status_of(error) not in {400, 411, *UNSUPPORTED}:
                    raise
                return None

        answer = self._request(f"cannot delete {prefix}", delete)
        if answer is None:
            # Older servers want Content-MD5, which boto3 does not send, or delete one by one only.
            with ThreadPoolExecutor(PARALLEL) as threads:
                deque(threads.map(self.delete, keys), maxlen=0)
            return
        for refused in answer.get("Errors", []):
            raise self._error(
                f"cannot delete {prefix}: {refused.get('Code')}; give these credentials "
                "s3:DeleteObject and delete again"
            )

    def _abort_uploads(self, prefix: str) -> None:
        """Give up uploads that a writer has left half done: no listing shows them."""
        bucket = self.address.bucket
        pages = self.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=bucket, Prefix=self.address.key(prefix)
        )
        begun = (u for page in islice(pages, MOST_PAGES) for u in page.get("Uploads", []))
        try:
            uploads = [u for u in begun if u["Key"].startswith(self.address.key(prefix))]
        except ClientError as error:
            if status_of(error) not in UNSUPPORTED:
                raise
            return  # A server that cannot list them must give them up by itself.
        for upload in uploads:
            try:
                self.client.abort_multipart_upload(
                    Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )
            except ClientError as error:
                # Its writer has finished it meanwhile, or given it up.
                if code_of(error) != "NoSuchUpload":
                    raise

    def _request(self, doing: str, request: Callable[[], T], patience: float | None = None) -> T:
        """A request, repeated while the server is away; raises StoreError otherwise."""
        retrying = Retrying(
            retry=retry_if_exception(is_transient),
            stop=stop_after_delay(self.patience if patience is None else patience),
            wait=wait_random_exponential(multiplier=0.25, max=LONGEST_WAIT),
            reraise=True,
        )
        return _explained(self.address, lambda: retrying(request), doing)

    def _require(self, key: str) -> None:
        require_key(self.address.name, key)

    def _damage(self, text: str) -> StoreContentError:
        return StoreContentError(f"store {self.address.name}: {text}")

    def _error(self, text: str) -> StoreError:
        return StoreError(f"store {self.address.name}: {text}")


def _total(content_range: str | None, start: int, length: int) -> int | None:
    """Bytes of the whole object, by an answer's header; None if that cannot be true."""
    if content_range is None:
        return length if start == 0 else None
    found = CONTENT_RANGE.match(content_range)
    if not found:
        return None
    first, last, total = (int(number) for number in found.groups())
    honest = first == start and last == start + length - 1 and last < total
    return total if honest else None


def _explained(address: S3Address, call: Callable[[], T], doing: str = "cannot open it") -> T:
    try:
        return call()
    except (*REQUEST_ERRORS, *SENSELESS, OSError) as error:
        raise explain(error, address, doing) from error
