"""The same work on many items, by as many processes as there are cores.

Concrete holds the interpreter's lock while it encrypts, so that threads would not help, and new
interpreters would have to load it again. The processes are forks that compute, write into a pipe
and end.
"""

from __future__ import annotations

import contextlib
import gc
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Work = Callable[[Item], bytes]
_LENGTH = struct.Struct("<Q")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def spread(items: Sequence[Item], make: Callable[[], Work[Item]], processes: int) -> list[bytes]:
    """What `make()` makes of every item, in order.

    Args:
        items: What there is to do.
        make: Called once in every process. What must not be the same in two of them, as the state
            of a random generator, has to be made by it.
        processes: How many at most. A process that dies leaves its share to this one.
    """
    processes = min(processes, len(items))
    if processes < 2:
        return list(map(make(), items))
    shares = [range(first, len(items), processes) for first in range(processes)]
    children = [_start(items, share, make) for share in shares]
    out: list[bytes] = [b""] * len(items)
    # All pipes are read at once: a process whose pipe is full would wait.
    with ThreadPoolExecutor(processes) as readers:
        results = list(readers.map(_results, children))
    for share, found in zip(shares, results, strict=True):
        if len(found) < len(share):
            found = list(map(make(), [items[i] for i in share]))
        for index, result in zip(share, found, strict=True):
            out[index] = result
    return out


def _start(
    items: Sequence[Item], share: range, make: Callable[[], Work[Item]]
) -> tuple[int, int] | None:
    """A process that does its share: its id and its pipe; None if there can be none."""
    source, target = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(source)
        os.close(target)
        return None
    if child:
        os.close(target)
        return child, source
    try:
        # Nothing of the parent's may be finalized here.
        gc.disable()
        work = make()
        with os.fdopen(target, "wb") as pipe:
            for index in share:
                result = work(items[index])
                pipe.write(_LENGTH.pack(len(result)) + result)
    finally:
        # Whatever happened: a second copy of the caller must not go on.
        os._exit(0)


def _results(child: tuple[int, int] | None) -> list[bytes]:
    """All whole results of a process, when it has ended."""
    if child is None:
        return []
    identifier, source = child
    with os.fdopen(source, "rb") as pipe:
        blob = pipe.read()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(identifier, 0)
    out, at = [], 0
    while at + _LENGTH.size <= len(blob):
        (length,) = _LENGTH.unpack_from(blob, at)
        at += _LENGTH.size
        if at + length <= len(blob):
            out.append(blob[at : at + length])
        at += length
    return out
