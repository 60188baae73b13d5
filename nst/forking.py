"""The same work on many items, by as many processes as there are cores.

Concrete holds the interpreter's lock while it encrypts, so that threads would not help, and new
interpreters would have to load it again. The processes are forks that compute, write into a pipe
and end. A pipe holds so much and no more: they are never far ahead of who takes the results.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import struct
from collections.abc import Callable, Generator, Sequence
from typing import BinaryIO, TypeVar

Item = TypeVar("Item")
Work = Callable[[Item], bytes]
PIPE_BYTES = 2**20
"""Results that a process may be ahead, a pair or more at low."""
_LENGTH = struct.Struct("<Q")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def spread(
    items: Sequence[Item], make: Callable[[], Work[Item]], processes: int
) -> Generator[bytes, None, None]:
    """What `make()` makes of every item, in order, each as soon as it is there.

    Args:
        items: What there is to do.
        make: Called once in every process. What must not be the same in two of them, as the state
            of a random generator, has to be made by it.
        processes: How many at most. A process that dies leaves its share to this one.
    """
    processes = min(processes, len(items))
    if processes < 2:
        yield from map(make(), items)
        return
    children: list[_Child | None] = []
    here: Work[Item] | None = None
    try:
        for first in range(processes):
            children.append(_Child.start(items, range(first, len(items), processes), make))
        for index, item in enumerate(items):
            child = children[index % processes]
            result = None if child is None else child.next()
            if result is None:
                # Whatever it would have sent next it will not: all that follows is made here.
                children[index % processes] = None
                here = here or make()
                result = here(item)
            yield result
    finally:
        for child in children:
            if child is not None:
                child.end()


class _Child:
    """A process that does its share of the items."""

    def __init__(self, process: int, pipe: BinaryIO) -> None:
        self._process, self._pipe = process, pipe

    @staticmethod
    def start(items: Sequence[Item], share: range, make: Callable[[], Work[Item]]) -> _Child | None:
        """None if there can be no more processes."""
        source, target = os.pipe()
        with contextlib.suppress(OSError):  # a user's pipes may be limited
            fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            process = os.fork()
        except OSError:
            os.close(source)
            os.close(target)
            return None
        if process:
            os.close(target)
            return _Child(process, os.fdopen(source, "rb"))
        try:
            # Nothing of the parent's may be finalized here.
            gc.disable()
            # Only the parent keeps the other end of the pipe: when it is gone, writing must fail.
            os.close(source)
            work = make()
            with os.fdopen(target, "wb") as pipe:
                for index in share:
                    result = work(items[index])
                    pipe.write(_LENGTH.pack(len(result)) + result)
                    pipe.flush()
        finally:
            # Whatever happened: a second copy of the caller must not go on.
            os._exit(0)

    def next(self) -> bytes | None:
        """Its next result, or None, and it has ended, if there will be none."""
        prefix = self._pipe.read(_LENGTH.size)
        if len(prefix) == _LENGTH.size:
            (length,) = _LENGTH.unpack(prefix)
            result = self._pipe.read(length)
            if len(result) == length:
                return result
        self.end()
        return None

    def end(self) -> None:
        """Whether or not it is done."""
        self._pipe.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._process, 0)
