"""Where ciphertexts, evaluation keys and job records live. The server side sees nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Protocol

from jobs.storage import layout
from jobs.storage.layout import require_folder, require_key
from jobs.storage.s3_address import PATIENCE, SCHEME, S3Address, without_secrets
from nst.errors import StoreAddressError, StoreError

FORMAT = 1
FIRST_PATIENCE = 10.0
"""The same where somebody waits at the command line and may have mistyped."""
PARTIAL = ".partial-"
"""How names of files that are still being written begin."""
FOLDER_TRIES = 100
"""How often to make a folder that others remove."""


class Store(Protocol):
    """Named blobs. Names are slash-separated (see `jobs.storage.layout`)."""

    @property
    def url(self) -> str:
        """What `open_store` reopens it by, in another process."""
        ...

    def read(self, key: str) -> bytes:
        """The blob; raises StoreError if it is missing or unreadable."""
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

    def list(self, prefix: str) -> list[str]:
        """All keys that start with a prefix, sorted."""
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


class LocalStore:
    """A store in a folder of this machine or of a shared file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        """The folder's absolute path."""
        return str(self.root.resolve())

    def read(self, key: str) -> bytes:
        """See `Store`."""
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError as error:
            raise StoreError(f"store {self.root} has no {key}; was the job deleted?") from error
        except OSError as error:
            raise StoreError(f"store {self.root}: cannot read {key}: {error.strerror}") from error

    def write(self, key: str, blob: bytes) -> None:
        """See `Store`."""
        path, partial = self._path(key), self._partial(key, blob)
        try:
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise StoreError(f"store {self.root}: cannot write {key}: {error.strerror}") from error

    def create(self, key: str, blob: bytes) -> bool:
        """See `Store`."""
        path, partial = self._path(key), self._partial(key, blob)
        try:
            # A hard link fails if the name exists, and shows the whole blob or nothing.
            os.link(partial, path)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            raise StoreError(f"store {self.root}: cannot write {key}: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        """See `Store`."""
        try:
            return self._path(key).is_file()
        except OSError as error:
            raise StoreError(f"store {self.root}: cannot read {key}: {error.strerror}") from error

    def list(self, prefix: str) -> list[str]:
        """See `Store`."""
        # Unlike Path.rglob, os.walk goes on where somebody deletes a folder meanwhile.
        walk = os.walk(self.root / prefix.rpartition("/")[0])
        found = (
            (Path(folder) / name).relative_to(self.root).as_posix()
            for folder, _, names in walk
            for name in names
            if not name.startswith(PARTIAL)
        )
        return sorted(k for k in found if k.startswith(prefix))

    def delete(self, key: str) -> None:
        """See `Store`; folders that become empty go too."""
        path = self._path(key)
        try:
            # What is below a blob, or is a folder, is no blob.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                path.unlink()
        except OSError as error:
            raise StoreError(f"store {self.root}: cannot delete {key}: {error.strerror}") from error
        # The first folder stays: another job may be about to write into it.
        for _ in range(key.count("/") - 1):
            path = path.parent
            with contextlib.suppress(OSError):
                path.rmdir()

    def delete_prefix(self, prefix: str) -> int:
        """See `Store`."""
        require_folder(str(self.root), prefix)
        keys = self.list(prefix)
        for key in keys:
            self.delete(key)
        for partial in list((self.root / prefix).rglob(f"{PARTIAL}*")):
            self.delete(partial.relative_to(self.root).as_posix())
        return len(keys)

    def clock(self) -> float:
        """See `Store`: what a new file is dated, which on a shared file system its server says."""
        partial = self._partial("clock", b"")
        try:
            return partial.stat().st_mtime
        except OSError as error:
            raise StoreError(
                f"store {self.root}: cannot read its clock: {error.strerror}"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        """Where a blob is."""
        require_key(str(self.root), key)
        return self.root / key

    def _partial(self, key: str, blob: bytes) -> Path:
        """The blob in a temporary file beside its destination."""
        folder = self._path(key).parent
        partial = None
        try:
            handle, name = _temporary(folder)
            partial = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(blob)
            return partial
        except OSError as error:
            if partial is not None:
                partial.unlink(missing_ok=True)
            raise StoreError(
                f"store {self.root}: cannot write {key}: {error.strerror}; "
                "free some space or choose another --store"
            ) from error


def _temporary(folder: Path) -> tuple[int, str]:
    """A new file in a folder that is made if need be: as `tempfile.mkstemp`."""

    def once() -> tuple[int, str]:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return tempfile.mkstemp(dir=folder, prefix=PARTIAL)

    for _ in range(FOLDER_TRIES):
        # Whoever deletes the last blob of a folder removes the folder, perhaps just now.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            return once()
    return once()


def connect(url: str, patience: float = PATIENCE) -> Store:
    """A store that may have no format yet; nothing is written.

    Args:
        url: A folder, or `s3://bucket/prefix` (see `jobs.storage.s3_address`).
        patience: Seconds for which a server that does not answer is asked again.

    Raises:
        StoreAddressError: if the URL is wrong.
        StoreError: if a bucket cannot be reached.
    """
    if url.startswith(SCHEME):
        from jobs.storage.s3_store import S3Store

        store = S3Store(S3Address.parse(url))
        store.check(patience)
        return store
    if "://" in url:
        raise StoreAddressError(
            f"store {without_secrets(url)}: only folders and s3://bucket/prefix are supported"
        )
    return LocalStore(Path(url).expanduser())


def check_format(store: Store) -> None:
    """Raise StoreError if a store was written by another version."""
    try:
        form = json.loads(store.read(layout.STORE))["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"store {store.url}: {layout.STORE} is damaged; is this a store of nst-batch?"
        ) from error
    if form != FORMAT:
        raise StoreError(
            f"store {store.url} has format {form}, this version reads {FORMAT}; "
            "use the version that wrote it, or another --store"
        )


def open_store(url: str, patience: float = PATIENCE) -> Store:
    """Open a store, marking a new one with this version's format.

    Args:
        url: A folder, or `s3://bucket/prefix` (see `jobs.storage.s3_address`).
        patience: Seconds for which a server that does not answer is asked again on opening;
            later requests have `PATIENCE`.

    Raises:
        StoreError: if it cannot be reached or was written by another version.
    """
    store = connect(url, patience)
    marker = json.dumps({"format": FORMAT}).encode()
    if store.exists(layout.STORE) or not store.create(layout.STORE, marker):
        check_format(store)
    return store
