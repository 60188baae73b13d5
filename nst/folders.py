"""Where a user's keys and published models are."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named)
    try:
        return user_data_path("nst-batch")
    except RuntimeError as error:
        raise InputError(
            f"this user has no home directory; set {HOME_VARIABLE} to a folder of your own"
        ) from error


@contextmanager
def explaining(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn an OSError on something of the data directory into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot {doing} {path} ({error.strerror}); set {HOME_VARIABLE} to another folder"
        ) from error


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder by name, but hidden ones; nothing if there is no folder.

    Unlike `Path.glob`, it does not take a folder that may not be read for an empty one.

    Raises:
        InputError: if it cannot be read.
    """
    with explaining(folder, "read"), suppress(FileNotFoundError):
        return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_dir())
    return []


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
