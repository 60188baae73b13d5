"""Runs row tasks on a set of actors; results stay in Ray's object store until they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.actors import as_blob

QUEUED_AHEAD = 2
"""Tasks an actor has at a time: one running, one whose arguments are already on their way."""


class RayExecutor:
    """Hands tasks to the actor that has the fewest; handles are Ray object references.

    Completions are built by the `completion` callable, so that this package need not know the
    scheduler's types.
    """

    def __init__(self, actors: Sequence[Any], completion: Any) -> None:
        self.actors = list(actors)
        self.completion = completion
        self._load = [0] * len(self.actors)
        self._running: dict[Any, tuple[int, int, Any]] = {}

    @property
    def capacity(self) -> int:
        """Tasks wanted at once."""
        return QUEUED_AHEAD * len(self.actors)

    def put(self, blob: bytes) -> Any:
        """A ciphertext into the object store."""
        return ray.put(as_blob(blob))

    def get(self, handle: Any) -> bytes:
        """A ciphertext out of the object store."""
        return bytes(ray.get(handle))

    def submit(self, task: Any, inputs: Sequence[Any]) -> None:
        """Start a task on the least busy actor."""
        actor = min(range(len(self.actors)), key=self._load.__getitem__)
        result, took = self.actors[actor].run.remote(task.stage, *inputs)
        self._load[actor] += 1
        self._running[took] = (task.index, actor, result)

    def wait(self) -> list[Any]:
        """Block until a task has ended."""
        done, _ = ray.wait(list(self._running), num_returns=1, fetch_local=False)
        ended = []
        for took in done:
            index, actor, result = self._running.pop(took)
            self._load[actor] -= 1
            try:
                ended.append(self.completion(index, result, None, **ray.get(took)))
            except RayTaskError as error:
                ended.append(self.completion(index, None, _one_line(error.cause or error)))
            except RayError as error:
                ended.append(self.completion(index, None, _one_line(error)))
        return ended


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
