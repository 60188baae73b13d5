"""A store in a folder of this machine or of a shared file system."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jobs.storage.bounds import MOST_KEYS, all_of, require_size
from jobs.storage.layout import require_folder, require_key
from nst.errors import StoreAddressError, StoreContentError, StoreError
from nst.folders import make_private

PARTIAL = ".partial-"
"""How names of files that are still being written begin."""
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""There is no such blob: what is below a blob, or is a folder, is none."""
FOLDER_TRIES = 100
"""How often to make a folder that others remove."""
DEEPEST = 16
"""Folders below each other that are walked through; keys have six."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO waits for whoever writes into it.
BLOB = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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

    @property
    def path(self) -> str:
        """See `Address`."""
        return self.url

    def at(self, path: str) -> LocalAddress:
        """See `Address`."""
        return LocalAddress(path)

    def with_options(self, given: Mapping[str, str]) -> LocalAddress:
        """See `Address`: a folder takes none."""
        return self

    def portable(self) -> LocalAddress:
        """See `Address`."""
        return self


class LocalStore:
    """Blobs as files below a folder; where the folder is missing, its disk is away.

    Others may write into it, so no link below the folder is followed and only regular files are
    blobs: each component of a key is opened in the one above.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self) -> None:
        """Make the folder, for this user alone, if it is missing; raises StoreError."""
        with self.explaining("make it"):
            make_private(self.root)

    @property
    def url(self) -> str:
        """The folder's absolute path."""
        return str(self.root.resolve())

    def read(self, key: str, limit: int | None = None) -> bytes:
        """See `Store`."""
        parts = self._parts(key)
        with self.explaining(f"read {key}"):
            try:
                with self._folder(parts[:-1]) as folder:
                    descriptor = os.open(parts[-1], BLOB, dir_fd=folder)
                    with os.fdopen(descriptor, "rb") as file:
                        if stat.S_ISREG(os.fstat(descriptor).st_mode):
                            blob = file.read(-1 if limit is None else limit + 1)
                            require_size(str(self.root), key, len(blob), limit)
                            return blob
            except ABSENT as error:
                raise StoreContentError(
                    f"store {self.root} has no {key}; was the job deleted?"
                ) from error
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENXIO):
                    raise
        raise StoreContentError(f"store {self.root}: {key} is a link or no regular file; remove it")

    def write(self, key: str, blob: bytes) -> None:
        """See `Store`."""
        with self._partial(key, blob) as (folder, partial), self.explaining(f"write {key}"):
            os.replace(partial, key.split("/")[-1], src_dir_fd=folder, dst_dir_fd=folder)

    def create(self, key: str, blob: bytes) -> bool:
        """See `Store`."""
        with self._partial(key, blob) as (folder, partial), self.explaining(f"write {key}"):
            try:
                # A hard link fails if the name exists, and shows the whole blob or nothing.
                os.link(
                    partial,
                    key.split("/")[-1],
                    src_dir_fd=folder,
                    dst_dir_fd=folder,
                    follow_symlinks=False,
                )
            except FileExistsError:
                return False
            return True

    def exists(self, key: str) -> bool:
        """See `Store`."""
        parts = self._parts(key)
        with (
            self.explaining(f"read {key}"),
            contextlib.suppress(*ABSENT),
            self._folder(parts[:-1]) as folder,
        ):
            return stat.S_ISREG(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode)
        return False

    def children(self, prefix: str, limit: int = MOST_KEYS) -> list[str]:
        """See `Store`."""
        with (
            self.explaining(f"list {prefix}"),
            contextlib.suppress(*ABSENT),
            self._folder(self._parts(prefix.rstrip("/"))) as folder,
            os.scandir(folder) as entries,
        ):
            found = (e.name for e in entries if e.is_dir(follow_symlinks=False))
            return all_of(found, str(self.root), prefix, limit)
        return []

    def list(self, prefix: str, limit: int = MOST_KEYS) -> list[str]:
        """See `Store`."""
        below = self._below(prefix.rpartition("/")[0])
        found = (key for key, is_blob in below if is_blob and key.startswith(prefix))
        return all_of(found, str(self.root), prefix, limit)

    def delete(self, key: str) -> None:
        """See `Store`; folders that become empty go too."""
        parts = self._parts(key)
        with (
            self.explaining(f"delete {key}"),
            contextlib.suppress(*ABSENT),
            self._folder(parts[:-1]) as folder,
        ):
            os.unlink(parts[-1], dir_fd=folder)
        # The first folder stays: another job may be about to write into it.
        for depth in range(len(parts) - 2, 0, -1):
            with contextlib.suppress(OSError), self._folder(parts[:depth]) as folder:
                os.rmdir(parts[depth], dir_fd=folder)

    def delete_prefix(self, prefix: str) -> int:
        """See `Store`; links and the like go too, not what they lead to."""
        require_folder(str(self.root), prefix)
        found = list(self._below(prefix[:-1]))
        for key, _ in found:
            self.delete(key)
        parts = self._parts(prefix[:-1])
        with contextlib.suppress(OSError, StoreContentError), self._folder(parts[:-1]) as folder:
            os.rmdir(parts[-1], dir_fd=folder)
        return sum(is_blob for _, is_blob in found)

    def clock(self) -> float:
        """See `Store`: what a new file is dated, which on a shared file system its server says."""
        with self._partial("clock", b"") as (folder, partial), self.explaining("read its clock"):
            return os.stat(partial, dir_fd=folder, follow_symlinks=False).st_mtime

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

    def _parts(self, key: str) -> Sequence[str]:
        """The components of a key."""
        require_key(str(self.root), key)
        return key.split("/")

    @contextlib.contextmanager
    def _folder(self, parts: Sequence[str], make: bool = False) -> Iterator[int]:
        """Descriptor of a folder below the root, which is made if need be.

        Raises:
            OSError: if it is not there or cannot be opened.
            StoreContentError: if a link would lead to it.
            StoreError: if the root is not there.
        """
        try:
            descriptor = os.open(self.root, FOLDER & ~os.O_NOFOLLOW)
        except ABSENT as error:
            raise StoreError(
                f"store {self.root} is not there; plug in or mount its disk, or check its name"
            ) from error
        except OSError as error:
            raise StoreError(f"store {self.root}: cannot open it: {error.strerror}") from error
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=descriptor)
                above, descriptor = descriptor, self._opened(part, descriptor)
                os.close(above)
            yield descriptor
        finally:
            os.close(descriptor)

    def _opened(self, name: str, above: int) -> int:
        """Descriptor of a folder in another; raises as `_folder` does."""
        try:
            return os.open(name, FOLDER, dir_fd=above)
        except OSError:
            if stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
                raise StoreContentError(
                    f"store {self.root}: {name} is a link, which is not followed; remove it"
                ) from None
            raise

    def _below(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """Keys of all that is below a folder, folders left out, and whether each is a blob."""
        with (
            self.explaining(f"list {prefix}"),
            contextlib.suppress(*ABSENT),
            self._folder(self._parts(prefix) if prefix else ()) as folder,
        ):
            yield from self._walk(folder, f"{prefix}/" if prefix else "", DEEPEST)

    def _walk(self, folder: int, prefix: str, depth: int) -> Iterator[tuple[str, bool]]:
        with os.scandir(folder) as entries:
            found = list(entries)
        for entry in found:
            if not entry.is_dir(follow_symlinks=False):
                is_blob = entry.is_file(follow_symlinks=False)
                yield prefix + entry.name, is_blob and not entry.name.startswith(PARTIAL)
            elif depth:
                # Others may delete a folder, or put a link in its place, meanwhile.
                with contextlib.suppress(*ABSENT, StoreContentError):
                    below = self._opened(entry.name, folder)
                    try:
                        yield from self._walk(below, f"{prefix}{entry.name}/", depth - 1)
                    finally:
                        os.close(below)

    @contextlib.contextmanager
    def _partial(self, key: str, blob: bytes) -> Iterator[tuple[int, str]]:
        """The blob in a new file beside its destination, which is gone at the end.

        Gives the folder's descriptor and the file's name in it.
        """
        parts = self._parts(key)
        partial = f"{PARTIAL}{secrets.token_hex(8)}"
        advice = "; free some space or choose another --store"
        with contextlib.ExitStack() as opened:
            with self.explaining(f"write {key}", advice):
                for tries in range(FOLDER_TRIES):
                    # Whoever deletes the last blob of a folder removes the folder, perhaps now.
                    try:
                        folder = opened.enter_context(self._folder(parts[:-1], make=True))
                        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                        descriptor = os.open(partial, flags, 0o600, dir_fd=folder)
                        break
                    except FileNotFoundError:
                        opened.close()
                        if tries == FOLDER_TRIES - 1:
                            raise
            try:
                with self.explaining(f"write {key}", advice), os.fdopen(descriptor, "wb") as file:
                    file.write(blob)
                yield folder, partial
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(partial, dir_fd=folder)
