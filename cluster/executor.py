"""Runs tasks on a set of actors; results stay in Ray's object store until they are used."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from cluster.actors import EvaluatorActor, as_blob
from cluster.reasons import reason_of_death, why
from cluster.types import Completion, LostError, tasks_per_worker
from nst.engines.base import Evaluator
from nst.engines.tasks import Task
from nst.errors import ClusterError, first_line

LOADS, DEATHS = 4, 20
"""Actors in a row that may fail to load their model, and that may die while they load."""
PAUSE = 2.0
"""Seconds before the next actor is started after one that could not load."""
OBJECT_STORE_SHARE = 0.8
"""Of the object stores' memory, what results may take; arguments have copies on other nodes."""
MEMORY_SECONDS = 10.0
"""How long to believe what the cluster said of its memory: nodes come and go."""
SUSPECT_SECONDS = 10.0
"""For the copy of a result whose node is gone: it is on another node, or nowhere."""
DEAD = (RayActorError, OutOfMemoryError, WorkerCrashedError)
"""What Ray raises of an actor that is gone."""


@dataclass(frozen=True)
class Held:
    """A ciphertext in the object store; `node` is where it was made, if not on the driver's."""

    reference: Any
    node: str = ""


@dataclass
class _Running:
    """A task that an actor has: the scheduler's number, its result and its arguments."""

    index: int
    result: Any
    inputs: Sequence[Held]


@dataclass
class _Slot:
    """The place of one actor, taken by another if that one dies.

    Attributes:
        actor: Who is there, None until the next one may be started.
        coming: Reference that is ready once it has loaded its model; None when it has.
        node: Where it is.
        tasks: What it has to do, by the reference that tells the end, the running one first.
        not_before: When its next actor may be started.
    """

    actor: Any = None
    coming: Any = None
    node: str = ""
    tasks: dict[Any, _Running] = field(default_factory=dict)
    not_before: float = 0.0

    @property
    def up(self) -> bool:
        return self.actor is not None and self.coming is None


class RayExecutor:
    """Hands tasks to the actor that has the fewest, and replaces actors that die."""

    def __init__(self, count: int, load: Callable[[], Evaluator], needs: int = 0) -> None:
        """Ask for actors; they come while `wait` is called.

        Args:
            count: How many.
            load: Makes an actor's model and keys, in its process.
            needs: Bytes of an actor, for messages; 0 if that is not known.
        """
        # A task's second reference tells how it ended; the result of one that failed is not asked
        # for, and Ray would print a stack trace of that.
        os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"
        self.load, self.needs = load, needs
        self._slots = [_Slot() for _ in range(count)]
        self._ended: deque[Completion[Held]] = deque()
        self._failed_loads = self._early_deaths = 0
        self._longest = 0.0
        self._memory, self._memory_known = 0.0, -math.inf
        for slot in self._slots:
            self._fill(slot)

    @property
    def capacity(self) -> int:
        """Tasks wanted at once: none before an actor is there."""
        return tasks_per_worker(self._longest) * sum(slot.up for slot in self._slots)

    @property
    def memory(self) -> float:
        """Bytes that the object stores of all nodes take before they write to disk."""
        if time.monotonic() > self._memory_known + MEMORY_SECONDS:
            resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
            self._memory = OBJECT_STORE_SHARE * resources.get("object_store_memory", 0.0)
            self._memory_known = time.monotonic()
        return self._memory

    @property
    def nodes(self) -> int:
        """Nodes that have actors which are there."""
        return len({slot.node for slot in self._slots if slot.up})

    def put(self, blob: bytes) -> Held:
        """A ciphertext into the object store."""
        return Held(ray.put(as_blob(blob)))

    def get(self, handle: Held) -> bytes:
        """A ciphertext out of the object store."""
        try:
            return bytes(ray.get(handle.reference))
        except ObjectLostError as error:
            raise LostError(first_line(error)) from error

    def submit(self, task: Task, inputs: Sequence[Held]) -> None:
        """Start a task on the least busy actor."""
        self._longest = max(self._longest, task.seconds)
        slot = min((s for s in self._slots if s.up), key=lambda s: len(s.tasks))
        result, took = slot.actor.run.remote(task.stage, *(held.reference for held in inputs))
        slot.tasks[took] = _Running(task.index, result, inputs)

    def wait(self, timeout: float) -> list[Completion[Held]]:
        """Block until a task has ended or an actor has come, or for so many seconds.

        Raises:
            RayError: if actors cannot load their model and keys; `why` says it.
            ClusterError: if actors die of loading them.
        """
        for slot in self._slots:
            if slot.actor is None and time.monotonic() >= slot.not_before:
                self._fill(slot)
        slots = {took: slot for slot in self._slots for took in slot.tasks}
        slots |= {slot.coming: slot for slot in self._slots if slot.coming is not None}
        if slots:
            done, _ = ray.wait(list(slots), num_returns=1, timeout=timeout, fetch_local=False)
        else:
            time.sleep(timeout)
            done = []
        for reference in done:
            if reference == slots[reference].coming:
                self._arrived(slots[reference])
            elif reference in slots[reference].tasks:
                self._task_ended(slots[reference], reference)
        ended, self._ended = list(self._ended), deque()
        return ended

    def close(self) -> None:
        """Kill all actors."""
        for slot in self._slots:
            self._kill(slot)
            slot.not_before = float("inf")

    def _fill(self, slot: _Slot) -> None:
        slot.actor = EvaluatorActor.remote(self.load)  # type: ignore[attr-defined]
        slot.coming = slot.actor.ready.remote()

    @staticmethod
    def _kill(slot: _Slot) -> None:
        if slot.actor is not None:
            # It may be dead already, or on a node that does not answer.
            with contextlib.suppress(RayError, ValueError):
                ray.kill(slot.actor)
        slot.actor = slot.coming = None
        slot.tasks = {}

    def _arrived(self, slot: _Slot) -> None:
        try:
            slot.node = ray.get(slot.coming)
        except RayError as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                self._failed_loads += 1
            else:
                self._early_deaths += 1
            # A wrong model or keys will not get better, a store or a node that is away may.
            if self._failed_loads >= LOADS:
                raise
            if self._early_deaths >= DEATHS:
                raise ClusterError(
                    f"{DEATHS} workers died while they loaded the model; of the last one: "
                    f"{reason_of_death(error, self.needs)}"
                ) from None
            self._kill(slot)
            slot.not_before = time.monotonic() + PAUSE
            return
        slot.coming = None
        self._failed_loads = self._early_deaths = 0

    def _task_ended(self, slot: _Slot, took: Any) -> None:
        try:
            spent = ray.get(took)
        except DEAD as error:
            self._actor_gone(slot, error)
            return
        except RayError as error:
            task = slot.tasks.pop(took)
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, ObjectLostError):
                gone, reason = self._gone(task.inputs, cause), "what it needs was lost with a node"
                self._end(task.index, reason, blamed=False, lost=gone)
            else:
                reason = why(cause) if isinstance(cause, RayError) else first_line(cause or error)
                self._end(task.index, reason, blamed=True)
            return
        task = slot.tasks.pop(took)
        self._ended.append(Completion(task.index, Held(task.result, slot.node), None, **spent))

    def _end(self, index: int, error: str, blamed: bool, lost: tuple[int, ...] = ()) -> None:
        self._ended.append(Completion(index, None, error, blamed=blamed, lost=lost))

    def _actor_gone(self, slot: _Slot, error: Exception) -> None:
        """Give back what an actor had to do; of these, the first may have been its death."""
        whole_node = isinstance(error, ActorUnavailableError) or not self._alive(slot.node)
        for position, task in enumerate(slot.tasks.values()):
            blamed = position == 0 and not whole_node
            reason = (
                reason_of_death(error, self.needs)
                if blamed
                else "its worker was lost with others' work"
            )
            self._end(task.index, reason, blamed)
        self._kill(slot)
        self._fill(slot)

    def _gone(self, inputs: Sequence[Held], error: Exception) -> tuple[int, ...]:
        """Which of a task's arguments are lost: the one that the error names, and its like."""
        named = getattr(error, "object_ref_hex", "")
        gone = []
        alive: dict[str, bool] = {}
        for position, held in enumerate(inputs):
            if held.node and held.node not in alive:
                alive[held.node] = self._alive(held.node)
            if held.reference.hex() == named or (
                held.node and not alive[held.node] and not self._reachable(held)
            ):
                gone.append(position)
        return tuple(gone)

    @staticmethod
    def _reachable(held: Held) -> bool:
        try:
            ray.get(held.reference, timeout=SUSPECT_SECONDS)
        except GetTimeoutError:
            return True
        except RayError:
            return False
        return True

    @staticmethod
    def _alive(node: str) -> bool:
        return any(n["NodeID"] == node and n["Alive"] for n in ray.nodes())  # type: ignore[no-untyped-call]
