"""An executor that tells what the scheduler does not: what is under way, and what was in vain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jobs.execution.graph import Task
from jobs.execution.scheduler import Completion, Executor, Handle


class Observer(Protocol):
    """Who wants to know."""

    def under_way(self, tasks: int, nodes: int) -> None:
        """So many tasks run or wait for an actor, whose actors are on so many nodes."""
        ...

    def attempt_failed(self, task: Task, reason: str) -> None:
        """A task did not end well; it may be begun again."""
        ...


class ObservedExecutor:
    """Hands everything on to another executor."""

    def __init__(self, executor: Executor, observer: Observer) -> None:
        self._inner, self._observer = executor, observer
        self._tasks: dict[int, Task] = {}

    @property
    def capacity(self) -> int:
        """See `Executor`."""
        return self._inner.capacity

    @property
    def memory(self) -> float:
        """See `Executor`."""
        return self._inner.memory

    def put(self, blob: bytes) -> Handle:
        """See `Executor`."""
        return self._inner.put(blob)

    def get(self, handle: Handle) -> bytes:
        """See `Executor`."""
        return self._inner.get(handle)

    def submit(self, task: Task, inputs: Sequence[Handle]) -> None:
        """See `Executor`."""
        self._tasks[task.index] = task
        self._inner.submit(task, inputs)

    def wait(self, timeout: float) -> list[Completion]:
        """See `Executor`."""
        # Executors without nodes are this machine.
        self._observer.under_way(len(self._tasks), getattr(self._inner, "nodes", 1))
        ended = self._inner.wait(timeout)
        for completion in ended:
            task = self._tasks.pop(completion.index)
            if completion.error is not None:
                self._observer.attempt_failed(task, completion.error)
        return ended

    def close(self) -> None:
        """See `Executor`."""
        self._inner.close()
