"""The section with examples that ends the help of every command."""

from __future__ import annotations

HEADING = "Examples:"


def examples(*calls: str) -> str:
    """An epilog for a command, in which each call stands on a line of its own.

    Args:
        calls: What to type, without `nst-batch`; a line that goes on ends in a backslash.
    """
    lines = [f"  nst-batch {call}" for call in calls]
    return "\n".join(["\b", HEADING, *lines])


def calls_of(epilog: str) -> list[str]:
    """The calls in an epilog, as it is or as help shows it, without `nst-batch`."""
    lines = [line.split(maxsplit=1) for line in epilog.replace("\\\n", " ").splitlines()]
    return [line[1] for line in lines if line and line[0] == "nst-batch"]
