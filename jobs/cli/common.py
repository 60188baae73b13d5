"""What commands share: consoles, stores, levels, exit codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.storage.store import Store
    from nst.network.integers import IntegerNetwork
    from nst.network.levels import QualityLevel

EXIT_SOME_FAILED, EXIT_USAGE, EXIT_UNREACHABLE = 1, 2, 3


def new_console() -> Console:
    """Where a command shows what it does."""
    from rich.console import Console

    return Console()


def open_for_user(url: str) -> Store:
    """A store for somebody who waits for the answer."""
    from jobs.storage.store import FIRST_PATIENCE, open_store

    return open_store(url, FIRST_PATIENCE)


def level_and_network(quality: str) -> tuple[QualityLevel, IntegerNetwork]:
    """A quality level and its weights."""
    from nst.network.levels import get_level
    from nst.network.weights import load_weights

    level = get_level(quality)
    return level, load_weights(level.weights)


def exit_if(some_failed: bool) -> None:
    """End with the exit code for failed pairs, if there are any."""
    if some_failed:
        raise SystemExit(EXIT_SOME_FAILED)
