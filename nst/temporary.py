"""Temporary folders of processes that may be killed: the next one removes what they left."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path

LOCK = ".lock"
"""File that the owner holds as long as it lives: ids of processes differ between containers."""
YOUNG = 60.0
"""Seconds for which a folder stays in any case: its owner may be about to take the lock."""


class TemporaryFolder(tempfile.TemporaryDirectory[str]):
    """A new folder, which goes with this process, or with the next one that makes its like."""

    def __init__(self, prefix: str, base: str | None = None) -> None:
        """Make it, and remove those whose owners are gone.

        Args:
            prefix: How its name begins.
            base: Where; None for the system's folder for temporary files.
        """
        base = base or tempfile.gettempdir()
        _remove_left(base, prefix)
        super().__init__(prefix=prefix, dir=base, ignore_cleanup_errors=True)
        lock = os.open(Path(self.name) / LOCK, os.O_RDONLY | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, lock)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_left(base: str, prefix: str) -> None:
    for folder in Path(base).glob(f"{prefix}*"):
        with suppress(OSError):
            lock = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                found = os.fstat(lock)
                if found.st_uid == os.geteuid() and found.st_mtime < time.time() - YOUNG:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
