"""Where a user's keys and published models are."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_data_path

from nst.errors import InputError

HOME_VARIABLE = "NST_BATCH_HOME"
PASSPHRASE_VARIABLE = "NST_BATCH_PASSPHRASE"
"""Passphrase of secret keys, for those who cannot be asked."""


def default_folder() -> Path:
    """`$NST_BATCH_HOME`, or the platform's place for a user's data.

    Raises:
        InputError: if this user has no home, as one that is only a number.
    """
    if named := os.environ.get(HOME_VARIABLE):
        return Path(named)
    folder = user_folder(user_data_path)
    if folder is None:
        raise InputError(
            f"this user has no home directory; set {HOME_VARIABLE} to a folder of your own"
        )
    return folder


def user_folder(place: Callable[[str], Path]) -> Path | None:
    """This program's folder at one of the platform's places; None if the user has no home."""
    try:
        folder = place("nst-batch")
    except RuntimeError:  # of platformdirs since 4.14
        return None
    return folder if folder.is_absolute() else None


@contextmanager
def explaining(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn an OSError on something of the data directory into an InputError."""
    try:
        yield
    except OSError as error:
        room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise InputError(
            f"cannot {doing} {path} ({error.strerror}); {room}set {HOME_VARIABLE} to another folder"
        ) from error


def subfolders(folder: Path) -> list[Path]:
    """What is in a folder, sorted by name, but what is hidden; nothing if there is no folder.

    Unlike `Path.glob`, it does not take a folder that may not be read for an empty one.

    Raises:
        InputError: if it cannot be read.
    """
    with explaining(folder, "read"), suppress(FileNotFoundError):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return []


def make_private(folder: Path) -> None:
    """Make a folder that only its owner enters, and so any folder above it that is missing.

    `Path.mkdir` leaves those above to the umask. Raises OSError.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


class Folders:
    """The part of a user's data directory that knows nothing of jobs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def keys(self) -> Path:
        """Key sets."""
        return self.root / "keys"

    @property
    def models(self) -> Path:
        """Published models by id."""
        return self.root / "models"
