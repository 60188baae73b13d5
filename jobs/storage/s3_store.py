"""A store in S3 or in a server that speaks its protocol."""

from __future__ import annotations

import base64
import hashlib
import io
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.loaders import create_loader
from botocore.session import Session
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from jobs.storage.layout import require_folder, require_key
from jobs.storage.s3_address import PATIENCE, S3Address
from jobs.storage.s3_errors import REQUEST_ERRORS, code_of, explain, is_transient, status_of
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
DELETE_BATCH = 1000
"""Keys a request, S3's limit."""
UNSUPPORTED = frozenset({405, 501})
"""What servers answer to requests that they do not know."""
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
        return self._session.create_client(
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

    @property
    def url(self) -> str:
        """Bucket, prefix and options; no credentials."""
        return self.address.url

    def check(self, patience: float) -> None:
        """Raise StoreError if the bucket cannot be listed; a silent server gets so many seconds."""
        self._request("cannot open it", self._list_one, patience)

    def read(self, key: str) -> bytes:
        """See `Store`: a blob that does not match its checksum is damaged."""
        self._require(key)
        damaged = replaced = 0
        while damaged < DAMAGED_READS and replaced < REPLACED_READS:
            try:
                blob, recorded = self._download(key)
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

    def children(self, prefix: str) -> list[str]:
        """See `Store`."""
        cut = len(self.address.key(prefix))
        found = (f for page in self._pages(prefix, "/") for f in page.get("CommonPrefixes", []))
        return sorted(folder["Prefix"][cut:-1] for folder in found)

    def list(self, prefix: str) -> list[str]:
        """See `Store`."""
        cut = len(self.address.key(""))
        pages = self._pages(prefix)
        return sorted(found["Key"][cut:] for page in pages for found in page.get("Contents", []))

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
        answer = self._request("cannot read its clock", self._list_one)
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        try:
            return parsedate_to_datetime(date).timestamp()
        except ValueError as error:
            raise self._error(
                "the server does not say the time (no header Date), by which a job is known to be "
                "alive; take away the proxy before it, or use another --store"
            ) from error

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

    def _pages(self, prefix: str, delimiter: str = "") -> Sequence[dict[str, Any]]:
        """All answers to a listing; below a delimiter, names only."""
        listing = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.address.bucket, Prefix=self.address.key(prefix), Delimiter=delimiter
        )
        return self._request(f"cannot list {prefix}", lambda: [*listing])

    def _list_one(self) -> dict[str, Any]:
        # Not HEAD of the bucket: its refusals have no body, so no reason.
        answer: dict[str, Any] = self.client.list_objects_v2(
            Bucket=self.address.bucket, Prefix=self.address.key(""), MaxKeys=1
        )
        return answer

    def _download(self, key: str) -> tuple[bytes, str | None]:
        """A blob and its recorded SHA-256; ranges belong to one version of the object."""
        doing = f"cannot read {key}"
        first = self._request(doing, lambda: self._first_piece(key))
        starts = range(len(first.blob), first.total, self.part_bytes)
        if not starts:
            return first.blob, first.sha256

        def piece(start: int) -> bytes:
            return self._request(doing, lambda: self._later_piece(key, start, first.etag)).blob

        with ThreadPoolExecutor(PARALLEL) as threads:
            return b"".join([first.blob, *threads.map(piece, starts)]), first.sha256

    def _first_piece(self, key: str) -> _Piece:
        try:
            return self._get(key, Range=f"bytes=0-{self.part_bytes - 1}")
        except ClientError as error:
            if status_of(error) != 416:
                raise
            return self._get(key)  # An empty object has no range.

    def _later_piece(self, key: str, start: int, etag: str) -> _Piece:
        try:
            return self._get(
                key, Range=f"bytes={start}-{start + self.part_bytes - 1}", IfMatch=etag
            )
        except ClientError as error:
            if status_of(error) in (412, 416):
                raise _ReplacedError from error
            raise

    def _get(self, key: str, **conditions: str) -> _Piece:
        try:
            answer = self.client.get_object(
                Bucket=self.address.bucket, Key=self.address.key(key), **conditions
            )
        except ClientError as error:
            if code_of(error) == "NoSuchKey":
                raise self._damage(f"there is no {key}; was the job deleted?") from error
            raise
        blob = answer["Body"].read()
        _, _, total = answer.get("ContentRange", "").rpartition("/")
        sha256 = answer.get("Metadata", {}).get(SHA256)
        return _Piece(blob, int(total or len(blob)), answer.get("ETag", ""), sha256)

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
        try:
            uploads = [upload for page in pages for upload in page.get("Uploads", [])]
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


def _explained(address: S3Address, call: Callable[[], T], doing: str = "cannot open it") -> T:
    try:
        return call()
    except (*REQUEST_ERRORS, OSError, ValueError) as error:
        raise explain(error, address, doing) from error
