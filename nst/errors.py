"""The errors a user can meet. Each message is one line: what is wrong, where, what to do."""

from typing import ClassVar


class NstBatchError(Exception):
    """Base of the named errors; the command line prints it without a stack trace.

    Attributes:
        exit_code: Of a command that it ends: 2 for usage, input and damaged things, 3 for a store
            or a cluster out of reach.
    """

    exit_code: ClassVar[int] = 2


class InputError(NstBatchError):
    """Something the user pointed at cannot be used: a folder, a picture, an option, a name."""


class CircuitError(NstBatchError):
    """Circuits, weights or keys do not belong together or do not fit this installation."""


class StoreError(NstBatchError):
    """The store is out of reach: it cannot be read or written."""

    exit_code = 3


class StoreContentError(StoreError):
    """The store answers, and what it holds is missing, damaged or of another version."""

    exit_code = 2


class StoreAddressError(StoreError):
    """A store's name cannot be right, whatever answers there: wrong usage."""

    exit_code = 2


class ClusterError(NstBatchError):
    """A Ray cluster cannot be reached, or refuses a job."""

    exit_code = 3


def first_line(error: BaseException | None) -> str:
    """What an error says in one line: its first, or its name if it says nothing."""
    lines = str(error or "").strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def last_line(error: BaseException) -> str:
    """The last line: of an error that carries another process's stack trace, what happened."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
