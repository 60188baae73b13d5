"""Where ciphertexts, evaluation keys and job records live. The server side sees nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Protocol

from jobs.storage import layout
from jobs.storage.bounds import MOST_KEYS, SMALL_BYTES
from jobs.storage.local_store import LocalAddress, LocalStore
from jobs.storage.s3_address import PATIENCE, S3Address, S3Options, without_secrets
from nst.errors import StoreAddressError, StoreContentError, StoreError
from nst.parsing import parse_json

FORMAT = 1
FIRST_PATIENCE = 10.0
"""The same where a user waits at the command line and may have mistyped."""


class Store(Protocol):
    """Named blobs. Names are slash-separated (see `jobs.storage.layout`)."""

    @property
    def url(self) -> str:
        """What `open_store` reopens it by, in another process."""
        ...

    def read(self, key: str, limit: int | None = None) -> bytes:
        """The blob.

        Args:
            key: Which.
            limit: Bytes that it may have at most: not many more are ever read. Whoever reads
                what others wrote knows how large it can be.

        Raises:
            StoreContentError: if it is missing, damaged or larger.
            StoreError: if the store does not give it.
        """
        ...

    def write(self, key: str, blob: bytes) -> None:
        """Create or replace a blob in one step; raises StoreError if that fails."""
        ...

    def create(self, key: str, blob: bytes) -> bool:
        """Create a blob unless it exists; of several racers exactly one gets True."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is such a blob."""
        ...

    def children(self, prefix: str, limit: int = MOST_KEYS) -> list[str]:
        """The names between a prefix that ends with a slash and the next slash, sorted.

        Raises StoreContentError if there are more than `limit`.
        """
        ...

    def list(self, prefix: str, limit: int = MOST_KEYS) -> list[str]:
        """All keys that start with a prefix, sorted; StoreContentError if more than `limit`."""
        ...

    def delete(self, key: str) -> None:
        """Remove a blob; that there is none is no error. Raises StoreError if it stays."""
        ...

    def delete_prefix(self, prefix: str) -> int:
        """Remove all blobs below a prefix that ends with a slash; says how many there were.

        What killed writers have left half written there goes as well.
        """
        ...

    def clock(self) -> float:
        """Seconds since the epoch by the store's clock."""
        ...

    def credentials(self) -> tuple[str, bool] | None:
        """Where credentials come from, and whether they end unrenewed; None if it takes none."""
        ...


class Address(Protocol):
    """What a store's URL tells without reaching the store.

    Attributes:
        remote: Whether what is written and read crosses this machine's uplink.
        takes: Names of the options that a URL of this kind may hold.
    """

    remote: ClassVar[bool]
    takes: ClassVar[frozenset[str]]

    @property
    def url(self) -> str:
        """The whole URL; it holds no secrets once it has been checked."""
        ...

    @property
    def name(self) -> str:
        """The URL as messages show it, without options."""
        ...

    @property
    def folder(self) -> Path | None:
        """The folder of this machine that it is, if it is one."""
        ...

    @property
    def path(self) -> str:
        """Where it is: a folder, or what all keys of a bucket begin with."""
        ...

    def at(self, path: str) -> Address:
        """The store at another path, where `.` is the shortest, reached in the same way."""
        ...

    def with_options(self, given: Mapping[str, str]) -> Address:
        """With options that win over its own; raises StoreAddressError if one is wrong."""
        ...

    def portable(self) -> Address:
        """For another machine: without what only this one can resolve."""
        ...


@dataclass(frozen=True)
class Scheme:
    """A kind of store.

    Attributes:
        address: What a URL of it tells.
        reach: Opens one by URL, seconds of patience, and whether to make what is missing.
    """

    address: Callable[[str], Address]
    reach: Callable[[str, float, bool], Store]


def _reach_folder(url: str, patience: float, make: bool) -> Store:
    store = LocalStore(LocalAddress(url).folder)
    if make:
        store.make()
    return store


def _reach_bucket(url: str, patience: float, make: bool) -> Store:
    # It brings boto3 along, which a folder need not wait for.
    from jobs.storage.s3_store import S3Store

    store = S3Store(S3Address.parse(url))
    store.check(patience)
    return store


SCHEMES = {
    "": Scheme(LocalAddress, _reach_folder),
    "s3": Scheme(S3Address.parse, _reach_bucket),
}
"""By what stands before `://` in a URL, the kind of store."""


@dataclass(frozen=True, kw_only=True)
class StoreOptions(S3Options):
    """What may be said of a store beside its URL: the options of every kind that has any."""

    def fold(self, url: str, refused: Iterable[str] = ()) -> str:
        """A store's URL with the options in it that its kind takes; they win over its own.

        Args:
            url: Of any kind.
            refused: Names of options that must not be set if the kind does not take them; others
                may have been set for other stores.

        Raises:
            StoreAddressError: if the URL is wrong, or such an option is set.
        """
        address = address_of(url)
        named = {field.name: getattr(self, field.name) for field in fields(StoreOptions)}
        given = {name: value for name, value in named.items() if value is not None}
        foreign = [n.replace("_", " ") for n in refused if n in given and n not in address.takes]
        if foreign:
            raise StoreAddressError(
                f"store {address.name} takes no {', '.join(foreign)}; leave that out, or give a "
                "--store that does, as s3://bucket/prefix"
            )
        return address.with_options({n: v for n, v in given.items() if n in address.takes}).url


def address_of(url: str) -> Address:
    """What a store's URL tells.

    Args:
        url: A folder, or `s3://bucket/prefix` (see `jobs.storage.s3_address`).

    Raises:
        StoreAddressError: if the URL is wrong.
    """
    return _scheme_of(url).address(url)


def _scheme_of(url: str) -> Scheme:
    name, colon, _ = url.partition("://")
    if colon and name not in SCHEMES:
        raise StoreAddressError(
            f"store {without_secrets(url)}: only folders and s3://bucket/prefix are supported"
        )
    return SCHEMES[name if colon else ""]


def connect(url: str, patience: float = PATIENCE, make: bool = True) -> Store:
    """A store that may have no format yet; no blob is written.

    Args:
        url: See `address_of`.
        patience: Seconds for which a server that does not answer is asked again.
        make: Whether to make a folder that is missing; a bucket is never made.

    Raises:
        StoreAddressError: if the URL is wrong.
        StoreError: if it cannot be made or reached.
    """
    return _scheme_of(url).reach(url, patience, make)


def check_format(store: Store) -> None:
    """Raise StoreContentError if a store was written by another version."""
    try:
        record = parse_json(store.read(layout.STORE, SMALL_BYTES))
        form = record["format"] if isinstance(record, dict) else None
        if type(form) is not int:
            raise ValueError("no format")
    except (ValueError, KeyError) as error:
        raise StoreContentError(
            f"store {store.url}: {layout.STORE} is damaged; is this a store of nst-batch?"
        ) from error
    if form != FORMAT:
        raise StoreContentError(
            f"store {store.url} has format {form}, this version reads {FORMAT}; "
            "use the version that wrote it, or another --store"
        )


def open_store(url: str, patience: float = PATIENCE, *, create: bool = False) -> Store:
    """Open a store that is there.

    Args:
        url: See `address_of`.
        patience: Seconds for which a server that does not answer is asked again on opening;
            later requests have `PATIENCE`.
        create: Whether a place that is no store yet becomes one. Only what submits asks for that:
            the store of a job that exists may be on a disk that is not plugged in.

    Raises:
        StoreError: if it cannot be reached, or there is none and `create` does not hold.
        StoreContentError: if it was written by another version.
    """
    store = connect(url, patience, create)
    if not store.exists(layout.STORE):
        marker = json.dumps({"format": FORMAT}).encode()
        if create and store.create(layout.STORE, marker):
            return store
        if not create:
            raise StoreError(
                f"store {store.url} is not there: it has no {layout.STORE}; plug in or mount its "
                "disk, or check its name"
            )
    check_format(store)
    return store


def names_below(store: Store, prefix: str, limit: int = MOST_KEYS) -> list[str]:
    """Names of the blobs right below a prefix that ends with a slash, sorted.

    What lies deeper is listed and left out: a prefix for this has little of that.

    Raises:
        StoreContentError: if more than `limit` keys start with the prefix.
        StoreError: if the store does not answer.
    """
    found = (key.removeprefix(prefix) for key in store.list(prefix, limit))
    return [name for name in found if "/" not in name]
