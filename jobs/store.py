"""Where ciphertexts, evaluation keys and job records live. The server side sees nothing else."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Protocol

from jobs import layout
from nst.errors import StoreError

FORMAT = 1
PARTIAL = ".partial-"
"""How names of files that are still being written begin."""


class Store(Protocol):
    """Named blobs. Names are slash-separated (see `jobs.layout`)."""

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
        folder = self.root / prefix.rpartition("/")[0]
        files = (p for p in folder.rglob("*") if not p.name.startswith(PARTIAL) and p.is_file())
        found = (p.relative_to(self.root).as_posix() for p in files)
        return sorted(k for k in found if k.startswith(prefix))

    def _path(self, key: str) -> Path:
        """Where a blob is. Ids in keys come out of records that others wrote."""
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise StoreError(f"store {self.root}: {key!r} is no key; submit the job again")
        return self.root / key

    def _partial(self, key: str, blob: bytes) -> Path:
        """The blob in a temporary file beside its destination."""
        folder = self._path(key).parent
        partial = None
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=folder, prefix=PARTIAL)
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


def open_store(url: str) -> Store:
    """Open a store, marking a new one with this version's format.

    Raises:
        StoreError: if it cannot be reached or was written by another version.
    """
    if "://" in url:
        raise StoreError(f"store {url}: only folders are supported; give a path")
    store = LocalStore(Path(url).expanduser())
    marker = json.dumps({"format": FORMAT}).encode()
    if store.exists(layout.STORE) or not store.create(layout.STORE, marker):
        try:
            form = json.loads(store.read(layout.STORE))["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"store {url}: {layout.STORE} is damaged; is this a folder of nst-batch?"
            ) from error
        if form != FORMAT:
            raise StoreError(
                f"store {url} has format {form}, this version reads {FORMAT}; "
                "use the version that wrote it, or another --store"
            )
    return store
