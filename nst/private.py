"""Files and folders for their owner alone, there as a whole or not at all.

What is being made has another name and a lock. A process that was killed leaves it, without the
lock: `sweep` removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from nst.folders import make_private

MAKING = ".making-"
OLD_NAMES = (".building-", "secret.partial", "book.partial", "job.partial", "pictures.partial")
"""What versions before the locks left."""
ABANDONED_S = 24 * 3600.0
"""Age by which a file system without locks tells what was left; no model takes as long."""


@contextmanager
def private_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, mode 0600, that takes the target of `path` at the end, on disk by then.

    Raises:
        OSError: if it cannot be written; what was there before is as it was.
    """
    with _locked(path.parent):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=MAKING)
        _lock(descriptor)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_private(path: Path, data: bytes) -> None:
    """Write a file; see `private_file`."""
    with private_file(path) as file:
        file.write(data)


@contextmanager
def private_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, mode 0700, that becomes `path` at the end, on disk by then.

    Raises:
        OSError: if that fails, as it does if `path` is there and not empty; nothing is left.
    """
    make_private(path.parent)
    with _locked(path.parent):
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=MAKING))
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        _lock(descriptor)
    try:
        yield partial
        for each in partial.iterdir():
            _sync(each)
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half made in a folder; what is being made stays."""
    with suppress(OSError):
        left = [p for p in folder.iterdir() if p.name.startswith((MAKING, *OLD_NAMES))]
        if not left:
            return
        with _locked(folder, fcntl.LOCK_EX):
            for path in left:
                with suppress(OSError):
                    if _abandoned(path):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _abandoned(path: Path) -> bool:
    old = time.time() - path.stat().st_mtime > ABANDONED_S
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return old and error.errno != errno.EWOULDBLOCK
    finally:
        os.close(descriptor)
    return True


def _lock(descriptor: int, how: int = fcntl.LOCK_SH) -> None:
    # Shared by makers: a folder that is being made has files that are. Without locks, age tells.
    with suppress(OSError):
        fcntl.flock(descriptor, how)


@contextmanager
def _locked(folder: Path, how: int = fcntl.LOCK_SH) -> Iterator[None]:
    """Keeps `sweep` from what is there and not locked yet."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
