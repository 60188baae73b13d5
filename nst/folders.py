"""Where a user's keys and published models are."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_data_path

HOME_VARIABLE = "NST_BATCH_HOME"
PASSPHRASE_VARIABLE = "NST_BATCH_PASSPHRASE"
"""Passphrase of secret keys, for those who cannot be asked."""


def default_folder() -> Path:
    """`$NST_BATCH_HOME`, or the platform's place for a user's data."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else user_data_path("nst-batch")


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
