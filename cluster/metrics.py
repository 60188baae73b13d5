"""What Prometheus gets to see of actors and drivers, through Ray's agent on every node.

Labels hold stages of the network and ids of jobs; there are no names here to hold. Ray puts `ray_`
in front of each name. The label of a job is not `job`, which is what Prometheus calls its targets.
`cluster/grafana/nst-batch.json` shows all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cluster.types import Callback, Completion, Handle
from nst.engines.tasks import Task, TaskGraph

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)
"""Upper bounds of the classes of how long a task takes."""
EXPORT_EVERY = 2.0
"""Seconds between two exports."""
RATE_SECONDS = 5.0
"""Over which work per second is counted, at least."""


@dataclass(frozen=True)
class Definition:
    """A metric: its kind, its name without Ray's prefix, what it is, its labels."""

    kind: Literal["Counter", "Gauge", "Histogram"]
    name: str
    description: str
    labels: tuple[str, ...]

    def make(self) -> Any:
        """The metric in this process."""
        from ray.util import metrics

        more = {"boundaries": list(SECONDS)} if self.kind == "Histogram" else {}
        kind = getattr(metrics, self.kind)
        return kind(self.name, self.description, tag_keys=self.labels, **more)


WORK = Definition(
    "Counter",
    "nst_batch_work_seconds_total",
    "Work done, in core-seconds at measured rates",
    ("job_id", "stage"),
)
BYTES = Definition(
    "Counter",
    "nst_batch_ciphertext_bytes_total",
    "Ciphertexts that actors read (in) and made (out)",
    ("direction",),
)
TASK = Definition(
    "Histogram", "nst_batch_task_seconds", "How long tasks take on their core", ("stage",)
)
RATE = Definition(
    "Gauge", "nst_batch_work_rate", "Core-seconds of work per second of a job, now", ("job_id",)
)
QUEUE = Definition(
    "Gauge", "nst_batch_tasks_under_way", "Tasks that run or wait for an actor", ("job_id",)
)
LEFT = Definition(
    "Gauge", "nst_batch_work_seconds_left", "Core-seconds of work that a job has left", ("job_id",)
)
PAIRS = Definition("Gauge", "nst_batch_pairs", "Pairs of a job by state", ("job_id", "state"))
HELD = Definition("Gauge", "nst_batch_live_bytes", "Ciphertexts that a job holds", ("job_id",))
RETRIES = Definition(
    "Counter", "nst_batch_attempts_failed_total", "Tasks that did not end well", ("job_id",)
)
DEFINITIONS = (WORK, BYTES, TASK, RATE, QUEUE, LEFT, PAIRS, HELD, RETRIES)


class ActorMetrics:
    """What one actor does."""

    def __init__(self) -> None:
        self._bytes, self._task = BYTES.make(), TASK.make()

    def task_done(self, stage: str, seconds: float, bytes_in: int, bytes_out: int) -> None:
        """A task has ended well."""
        self._task.observe(seconds, {"stage": stage})
        for direction, size in (("in", bytes_in), ("out", bytes_out)):
            if size:  # Ray takes no 0, and counting must not cost a task
                self._bytes.inc(size, {"direction": direction})


class DriverMetrics(Callback[Handle]):
    """How far one job is."""

    def __init__(self, job_id: str, pairs: Callable[[], dict[str, int]]) -> None:
        """Export nothing yet.

        Args:
            job_id: Which job.
            pairs: How many pairs it has, by state.
        """
        self._job, self._pairs = {"job_id": job_id}, pairs
        self._gauges = {each.name: each.make() for each in (RATE, QUEUE, LEFT, PAIRS, HELD)}
        self._work, self._retries = WORK.make(), RETRIES.make()
        self._total = self._done = 0.0
        self._counted: set[int] = set()
        self._since, self._done_then = time.monotonic(), 0.0
        self._exported = -math.inf

    def on_start(self, graph: TaskGraph) -> None:
        """See `Callback`."""
        self._total = graph.seconds

    def on_tick(self, under_way: int, nodes: int, live_bytes: int) -> None:
        """See `Callback`."""
        if time.monotonic() - self._exported > EXPORT_EVERY:
            self._export(under_way, live_bytes)

    def on_task_end(self, task: Task, completion: Completion[Handle], live_bytes: int) -> None:
        """See `Callback`."""
        if task.index not in self._counted:
            self._counted.add(task.index)
            self._done += task.seconds
        if task.seconds:  # Ray takes no 0, and counting must not cost a task
            self._work.inc(task.seconds, {**self._job, "stage": task.stage})

    def on_attempt_failed(self, task: Task, reason: str) -> None:
        """See `Callback`."""
        self._retries.inc(1, self._job)

    def on_end(self) -> None:
        """See `Callback`."""
        self._export(0, 0)

    def _export(self, under_way: int, live_bytes: int) -> None:
        self._exported = now = time.monotonic()
        spent = now - self._since
        if spent >= RATE_SECONDS:
            self._set(RATE, (self._done - self._done_then) / spent)
            self._since, self._done_then = now, self._done
        self._set(QUEUE, under_way)
        self._set(LEFT, self._total - self._done)
        self._set(HELD, live_bytes)
        for state, count in self._pairs().items():
            self._set(PAIRS, count, state=state)

    def _set(self, definition: Definition, value: float, **labels: str) -> None:
        self._gauges[definition.name].set(value, {**self._job, **labels})
