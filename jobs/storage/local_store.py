"""A store in a folder of this machine or of a shared file system."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jobs.storage.layout import require_folder, require_key
from nst.errors import StoreAddressError, StoreContentError, StoreError

PARTIAL = ".partial-"
"""How names of files that are still being written begin."""
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""There is no such blob: what is below a blob, or is a folder, is none."""
FOLDER_TRIES = 100
"""How often to make a folder that others remove."""


@dataclass(frozen=True)
class LocalAddress:
    """A folder that is or becomes a store; see `jobs.storage.store.Address`."""

    url: str
    remote: ClassVar[bool] = False
    takes: ClassVar[frozenset[str]] = frozenset()

    @property
    def name(self) -> str:
        """See `Address`."""
        return self.url

    @property
    def folder(self) -> Path:
        """See `Address`; raises StoreAddressError if its ~ is no user's home."""
        try:
            return Path(self.url).expanduser()
        except RuntimeError as error:
            raise StoreAddressError(
                f"store {self.url}: that user has no home directory here; give the whole path"
            ) from error

    def with_options(self, given: Mapping[str, str]) -> LocalAddress:
        """See `Address`: a folder takes none."""
        return self

    def portable(self) -> LocalAddress:
        """See `Address`."""
        return self

    def connect(self, patience: float, make: bool) -> LocalStore:
        """See `Address`."""
        store = LocalStore(self.folder)
        if make:
            with store.explaining("make it"):
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return store


class LocalStore:
    """Blobs as files below a folder; where the folder is missing, its disk is away."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        """The folder's absolute path."""
        return str(self.root.resolve())

    def read(self, key: str) -> bytes:
        """See `Store`."""
        with self.explaining(f"read {key}"):
            try:
                return self._path(key).read_bytes()
            except ABSENT as error:
                self._require_root()
                raise StoreContentError(
                    f"store {self.root} has no {key}; was the job deleted?"
                ) from error

    def write(self, key: str, blob: bytes) -> None:
        """See `Store`."""
        with self._partial(key, blob) as partial, self.explaining(f"write {key}"):
            partial.replace(self._path(key))

    def create(self, key: str, blob: bytes) -> bool:
        """See `Store`."""
        with self._partial(key, blob) as partial, self.explaining(f"write {key}"):
            try:
                # A hard link fails if the name exists, and shows the whole blob or nothing.
                os.link(partial, self._path(key))
            except FileExistsError:
                return False
            return True

    def exists(self, key: str) -> bool:
        """See `Store`."""
        with self.explaining(f"read {key}"):
            if self._path(key).is_file():
                return True
            self._require_root()
            return False

    def children(self, prefix: str) -> list[str]:
        """See `Store`."""
        self._require_root()
        with self.explaining(f"list {prefix}"), contextlib.suppress(FileNotFoundError):
            return sorted(path.name for path in (self.root / prefix).iterdir() if path.is_dir())
        return []

    def list(self, prefix: str) -> list[str]:
        """See `Store`."""
        self._require_root()
        # Unlike Path.rglob, os.walk goes on where others delete a folder meanwhile.
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
        self._require_root()
        path = self._path(key)
        with self.explaining(f"delete {key}"), contextlib.suppress(*ABSENT):
            path.unlink()
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
        with self._partial("clock", b"") as partial, self.explaining("read its clock"):
            return partial.stat().st_mtime

    def credentials(self) -> None:
        """See `Store`: the file system asks for none."""

    @contextlib.contextmanager
    def explaining(self, doing: str, advice: str = "") -> Iterator[None]:
        """Turn an OSError of what is being done into a StoreError."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"store {self.root}: cannot {doing}: {error.strerror}{advice}"
            ) from error

    def _require_root(self) -> None:
        with self.explaining("open it"):
            if not self.root.is_dir():
                raise StoreError(
                    f"store {self.root} is not there; plug in or mount its disk, or check its name"
                )

    def _path(self, key: str) -> Path:
        """Where a blob is."""
        require_key(str(self.root), key)
        return self.root / key

    @contextlib.contextmanager
    def _partial(self, key: str, blob: bytes) -> Iterator[Path]:
        """The blob in a temporary file beside its destination, which is gone at the end."""
        folder, partial = self._path(key).parent, None
        self._require_root()
        advice = "; free some space or choose another --store"
        try:
            with self.explaining(f"write {key}", advice):
                handle, name = _temporary(folder)
                partial = Path(name)
                with os.fdopen(handle, "wb") as file:
                    file.write(blob)
            yield partial
        finally:
            if partial is not None:
                partial.unlink(missing_ok=True)


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
