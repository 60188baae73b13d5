"""What Prometheus gets to see of actors and drivers, through Ray's agent on every node.

Labels hold stages of the network and ids of jobs; there are no names here to hold. Ray puts `ray_`
in front of each name. The label of a job is not `job`, which is what Prometheus calls its targets.
`cluster/grafana/nst-batch.json` shows all of them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)
"""Upper bounds of the classes of how long a row task takes."""
RATE_SECONDS = 5.0
"""Over which PBS a second are counted, at least."""


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


PBS = Definition("Counter", "nst_batch_pbs_total", "PBS done", ("job_id", "stage"))
BYTES = Definition(
    "Counter",
    "nst_batch_ciphertext_bytes_total",
    "Ciphertexts that actors read (in) and made (out)",
    ("direction",),
)
TASK = Definition(
    "Histogram", "nst_batch_task_seconds", "How long row tasks take on their core", ("stage",)
)
RATE = Definition("Gauge", "nst_batch_pbs_per_second", "PBS a second of a job, now", ("job_id",))
QUEUE = Definition(
    "Gauge", "nst_batch_tasks_under_way", "Row tasks that run or wait for an actor", ("job_id",)
)
LEFT = Definition("Gauge", "nst_batch_pbs_left", "PBS that a job has before it", ("job_id",))
PAIRS = Definition("Gauge", "nst_batch_pairs", "Pairs of a job by state", ("job_id", "state"))
HELD = Definition("Gauge", "nst_batch_live_bytes", "Ciphertexts that a job holds", ("job_id",))
RETRIES = Definition(
    "Counter", "nst_batch_attempts_failed_total", "Row tasks that did not end well", ("job_id",)
)
DEFINITIONS = (PBS, BYTES, TASK, RATE, QUEUE, LEFT, PAIRS, HELD, RETRIES)


class ActorMetrics:
    """What one actor does."""

    def __init__(self) -> None:
        self._bytes, self._task = BYTES.make(), TASK.make()

    def task_done(self, stage: str, seconds: float, bytes_in: int, bytes_out: int) -> None:
        """A row task has ended well."""
        self._task.observe(seconds, {"stage": stage})
        for direction, size in (("in", bytes_in), ("out", bytes_out)):
            if size:  # Ray takes no 0, and counting must not cost a task
                self._bytes.inc(size, {"direction": direction})


class DriverMetrics:
    """How far one job is."""

    def __init__(self, job_id: str) -> None:
        self._job = {"job_id": job_id}
        self._gauges = {each.name: each.make() for each in (RATE, QUEUE, LEFT, PAIRS, HELD)}
        self._pbs_done, self._retries = PBS.make(), RETRIES.make()
        self._since, self._pbs = time.monotonic(), 0

    def progress(
        self, pbs_done: int, pbs_total: int, tasks: int, live_bytes: int, pairs: dict[str, int]
    ) -> None:
        """Where a job stands.

        Args:
            pbs_done: Of this driver.
            pbs_total: That it found to do.
            tasks: That run or wait for an actor.
            live_bytes: Of results that are held.
            pairs: How many, by state.
        """
        spent = time.monotonic() - self._since
        if spent >= RATE_SECONDS:
            self._set(RATE, (pbs_done - self._pbs) / spent)
            self._since, self._pbs = time.monotonic(), pbs_done
        self._set(QUEUE, tasks)
        self._set(LEFT, pbs_total - pbs_done)
        self._set(HELD, live_bytes)
        for state, count in pairs.items():
            self._set(PAIRS, count, state=state)

    def task_done(self, stage: str, pbs: int) -> None:
        """A row task has ended well."""
        if pbs:
            self._pbs_done.inc(pbs, {**self._job, "stage": stage})

    def attempt_failed(self) -> None:
        """A row task did not end well."""
        self._retries.inc(1, self._job)

    def _set(self, definition: Definition, value: float, **labels: str) -> None:
        self._gauges[definition.name].set(value, {**self._job, **labels})
