"""What walks a task graph and what runs its tasks agree on; no Ray is in it.

`Task` and `TaskGraph` are an engine's (`nst.engines.tasks`). An `Executor` runs tasks somewhere and
says how they ended; a `Callback` is told of everything that happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from nst.engines.tasks import Task, TaskGraph

__all__ = ["Callback", "Completion", "Executor", "LostError", "Task", "TaskGraph"]

Handle = TypeVar("Handle")
"""An executor's reference to a ciphertext it holds."""


class LostError(Exception):
    """An executor no longer has a ciphertext that it held."""


@dataclass(frozen=True)
class Completion(Generic[Handle]):
    """The end of one attempt at a task: a handle to its result, or an error in one line.

    Attributes:
        index: The task.
        handle: Its result.
        error: Why there is none.
        start: Seconds since the epoch.
        end: Likewise.
        cpu_s: Core-seconds that it took.
        blamed: Whether the error may be the task's own doing.
        lost: Positions of the arguments that the executor no longer has.
    """

    index: int
    handle: Handle | None
    error: str | None = None
    start: float = 0.0
    end: float = 0.0
    cpu_s: float = 0.0
    blamed: bool = True
    lost: tuple[int, ...] = ()


class Executor(Protocol[Handle]):
    """Runs tasks somewhere."""

    @property
    def capacity(self) -> int:
        """Tasks that it wants to have at once, running and queued; may change, may be 0."""
        ...

    @property
    def memory(self) -> float:
        """Bytes of ciphertexts that it can hold; may change, infinite if there is no telling."""
        ...

    @property
    def nodes(self) -> int:
        """Machines that have actors now."""
        ...

    def put(self, blob: bytes) -> Handle:
        """Take over a ciphertext."""
        ...

    def get(self, handle: Handle) -> bytes:
        """Hand out a ciphertext; raises LostError if it is gone."""
        ...

    def submit(self, task: Task, inputs: Sequence[Handle]) -> None:
        """Start a task."""
        ...

    def wait(self, timeout: float) -> list[Completion[Handle]]:
        """Block until a started task has ended, or for so many seconds."""
        ...

    def close(self) -> None:
        """Stop what is running and give back what it runs on."""
        ...


QUEUED_AHEAD = 2
"""Tasks per worker at a time: one running, one whose arguments are already on their way."""
LONG_S = 15.0
"""Seconds of a task from which no other waits at its worker: another worker may be free, or come,
long before it ends, and arguments are there in no time beside it."""


def tasks_per_worker(longest_s: float) -> int:
    """How many tasks a worker is given at a time, by the seconds of the longest task so far."""
    return 1 if longest_s > LONG_S else QUEUED_AHEAD


class Callback(Generic[Handle]):
    """Told what happens while a graph is walked; each method does nothing unless overridden.

    An exception that a callback raises ends the walk.
    """

    def on_start(self, graph: TaskGraph) -> None:
        """The walk of a graph begins."""

    def on_tick(self, under_way: int, nodes: int, live_bytes: int) -> None:
        """Called every second or more often.

        Args:
            under_way: Tasks that run or wait for an actor.
            nodes: Machines that have actors.
            live_bytes: Bytes of results that are held.
        """

    def on_task_start(self, task: Task) -> None:
        """A task is on its way to the executor."""

    def on_task_end(self, task: Task, completion: Completion[Handle], live_bytes: int) -> None:
        """A task has ended well, for the first time or again."""

    def on_attempt_failed(self, task: Task, reason: str) -> None:
        """A task did not end well, or its result was lost at once; it may be begun again."""

    def on_result_part(self, result: str, part: int, ciphertext: bytes) -> None:
        """A part of a result is there."""

    def on_pair_done(self, pair_id: str) -> None:
        """All parts of the result that a pair has a part in have been told."""

    def on_pair_failed(self, pair_id: str, reason: str) -> None:
        """A pair cannot be finished."""

    def on_end(self) -> None:
        """The walk is over: all pairs have ended, or the walk was stopped."""
