"""What a driver tells the store: rows, the end of pairs, and how far the job is.

Several drivers may have the same job at once, by mistake or because one was taken for dead. Each
writes rows under its own attempt; of those that finish a pair one publishes it, by a marker that
can be made only once, and the others delete their rows.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from typing import TYPE_CHECKING

from jobs.execution.checkpoints import without_done
from jobs.execution.graph import Task, TaskGraph, pair_group
from jobs.execution.saved import Checkpoints, take_over_results
from jobs.execution.scheduler import Completion, Orders
from jobs.storage import layout
from jobs.storage.records import (
    JobRecord,
    JobState,
    PairEnd,
    PairRecord,
    TaskTrace,
    read_marks,
    read_record,
    read_state,
    write_record,
)
from jobs.storage.store import Store
from nst.errors import StoreError
from nst.engines.concrete.plan import CircuitPlan
from nst.engines.concrete.switching import switched, word_bits

if TYPE_CHECKING:
    from cluster.metrics import DriverMetrics

log = logging.getLogger("nst-batch.driver")
"""What a driver prints: ids and reasons, which is all that it knows."""
STATE_EVERY = 2.0
"""Seconds between two writes of the job's state, which is also the sign of life."""
LOOK_EVERY = 2.0
"""Seconds between two looks at the job's markers: cancelled, or pairs ended by another driver."""


class JobWriter:
    """Listens to a walk and writes what happens into the store."""

    def __init__(self, store: Store, job: JobRecord, actors: int) -> None:
        """Take up a job: from here on its state says `queued`.

        Args:
            store: Where the job is.
            job: Its record.
            actors: How many actors will be asked for.
        """
        self.store, self.job = store, job
        self.attempt = secrets.token_hex(6)
        self.meter: DriverMetrics | None = None
        self._tasks_under_way = 0
        self.trace: list[TaskTrace] = []
        marks = read_marks(store, job)
        self.ended, self.cancelled = marks.ended, marks.cancelled
        self._clock_ahead = store.clock() - time.time()
        self._written = self._looked = 0.0
        self._started: set[str] = set()
        self._counted: set[int] = set()
        self.state = JobState(
            status="queued",
            attempt=self.attempt,
            pairs_total=len(job.pairs),
            actors=actors,
            driver_started=time.time(),
        )
        self.write_state()

    @property
    def left(self) -> list[PairRecord]:
        """Pairs that have not ended."""
        return [pair for pair in self.job.pairs if pair.pair_id not in self.ended]

    def begin(self, plan: CircuitPlan, whole: TaskGraph, checkpoints: Checkpoints) -> TaskGraph:
        """Say what is about to be walked.

        Args:
            plan: The circuits.
            whole: All that the pairs that are left consist of.
            checkpoints: What is stored of it, and where more is to be stored.

        Returns:
            What of it is still to be computed.

        Raises:
            CircuitError: if results of these circuits cannot be stored.
        """
        self.checkpoints, self.word_bits = checkpoints, word_bits(plan)
        self._rows = plan.stages[-1].rows
        self._depth = {stage.name: depth for depth, stage in enumerate(plan.stages)}
        pairs = {pair.pair_id for pair in self.left}
        there = take_over_results(
            self.store, self.job, self.attempt, pairs, self.word_bits, self._rows
        )
        self.graph = without_done(whole, checkpoints.stored(whole), there)
        self.state.pbs_total = self.graph.pbs
        self.write_state()
        log.info("job %s: %d to do, %s PBS", self.job.job_id, len(pairs), f"{self.graph.pbs:,}")
        for pair_id, missing in self.graph.outputs.items():
            if not missing:
                self.pair_done(pair_id)
        return self.graph

    def look(self, live_bytes: int) -> Orders:
        """See `Listener`: the wishes of others, and the sign of life."""
        self.state.peak_live_bytes = max(self.state.peak_live_bytes, live_bytes)
        before = set(self.ended)
        if time.monotonic() - self._looked > LOOK_EVERY:
            self._read_marks()
        if time.monotonic() - self._written > STATE_EVERY:
            self.write_state()
            self._measure(live_bytes)
        return Orders(self.cancelled, frozenset(set(self.ended) - before))

    def task_started(self, task: Task) -> None:
        """See `Listener`."""
        self.state.status = "running"
        for pair_id in self.graph.pairs_of[task.group]:
            if task.group == pair_group(pair_id) and pair_id not in self._started:
                self._started.add(pair_id)
                log.info("pair %s: running", pair_id)

    def under_way(self, tasks: int, nodes: int) -> None:
        """See `Observer`."""
        self.state.nodes, self._tasks_under_way = nodes, tasks

    def attempt_failed(self, task: Task, reason: str) -> None:
        """See `Observer`."""
        self.state.attempts_failed += 1
        if self.meter:
            self.meter.attempt_failed()
        for pair_id in self.graph.pairs_of[task.group]:
            log.info("pair %s: task %s row %d: %s", pair_id, task.stage, task.row, reason)

    def task_done(self, task: Task, completion: Completion, live_bytes: int) -> None:
        """See `Listener`."""
        self.trace.append(
            TaskTrace(
                stage=task.stage,
                group=task.group,
                row=task.row,
                pbs=task.pbs,
                start=completion.start,
                end=completion.end,
                cpu_s=completion.cpu_s,
            )
        )
        if self.meter:
            self.meter.task_done(task.stage, task.pbs)
        self.checkpoints.offer(task, completion.handle)
        state = self.state
        if task.index not in self._counted:
            self._counted.add(task.index)
            state.pbs_done += task.pbs
        for pair_id in self.graph.pairs_of[task.group]:
            reached = state.stages.get(pair_id)
            if task.group == pair_group(pair_id) and (
                reached is None or self._depth[task.stage] > self._depth[reached]
            ):
                state.stages[pair_id] = task.stage
        state.first_task = min(state.first_task or completion.start, completion.start)
        state.last_task = max(state.last_task, completion.end)
        state.peak_live_bytes = max(state.peak_live_bytes, live_bytes)

    def row_done(self, pair_id: str, row: int, ciphertext: bytes) -> None:
        """See `Listener`."""
        job = self.job
        envelope = switched(job.key_id, job.model_id, (ciphertext,), self.word_bits)
        key = layout.result_row(job.job_id, self.attempt, pair_id, row)
        self.store.write(key, envelope.pack())

    def pair_done(self, pair_id: str) -> None:
        """See `Listener`."""
        self._publish(
            PairEnd(pair_id=pair_id, status="succeeded", attempt=self.attempt, rows=self._rows)
        )

    def pair_failed(self, pair_id: str, reason: str) -> None:
        """See `Listener`."""
        self._delete_rows(pair_id)
        self._publish(
            PairEnd(pair_id=pair_id, status="failed", attempt=self.attempt, reason=reason)
        )

    def end(self) -> None:
        """Write trace and final state of a job that has ended or was cancelled."""
        self._read_marks()
        self._delete_unpublished()
        lines = [entry.model_dump_json() for entry in self.trace]
        self.store.write(layout.trace(self.job.job_id), f"[{','.join(lines)}]".encode())
        self._count()
        if self.left:
            self.state.status = "cancelled" if self.cancelled else "failed"
        else:
            self.state.status = "failed" if self.state.pairs_failed else "succeeded"
        # The state before the marker: who sees the marker must find no driver at work.
        self.write_state()
        self._tasks_under_way = 0
        self._measure(live_bytes=0)
        if not self.left:
            self.checkpoints.drop_all()
            self.store.create(
                layout.job_end(self.job.job_id), self.state.model_dump_json().encode()
            )

    def could_not_go_on(self, reason: str) -> None:
        """Say why the job stopped with pairs left, unless another driver goes on with it."""
        # If the store is full, this is what makes room for the state.
        with contextlib.suppress(StoreError):
            self._delete_unpublished()
        with contextlib.suppress(StoreError):
            other = read_state(self.store, self.job.job_id)
            if other.attempt not in ("", self.attempt) and not other.stale(self._now()):
                return
        self.state.status, self.state.reason = "failed", reason
        self.write_state()

    def write_state(self) -> None:
        """Replace the job's state, with a sign of life."""
        self._count()
        self.state.heartbeat = self._now()
        write_record(self.store, layout.state(self.job.job_id), self.state)
        self._written = time.monotonic()

    def _measure(self, live_bytes: int) -> None:
        """Tell Prometheus how far the job is."""
        if self.meter is None:
            return
        state = self.state
        running = len(state.pairs_running)
        pairs = {
            "succeeded": state.pairs_done,
            "failed": state.pairs_failed,
            "running": running,
            "queued": state.pairs_total - state.pairs_done - state.pairs_failed - running,
        }
        self.meter.progress(
            state.pbs_done, state.pbs_total, self._tasks_under_way, live_bytes, pairs
        )

    def _now(self) -> float:
        """Seconds since the epoch by the store's clock."""
        return time.time() + self._clock_ahead

    def _read_marks(self) -> None:
        marks = read_marks(self.store, self.job, self.ended)
        for pair_id in self._started & (set(marks.ended) - set(self.ended)):
            self._delete_rows(pair_id)
            self.checkpoints.drop(pair_group(pair_id))
        self.ended, self.cancelled = marks.ended, marks.cancelled
        self._looked = time.monotonic()

    def _publish(self, end: PairEnd) -> None:
        key = layout.pair_end(self.job.job_id, end.pair_id)
        end.finished = time.time()
        if not self.store.create(key, end.model_dump_json().encode()):
            # Another driver was first, and its result is as good.
            self._delete_rows(end.pair_id)
            end = read_record(self.store, key, PairEnd)
        self.ended[end.pair_id] = end
        log.info("pair %s: %s", end.pair_id, ": ".join(x for x in (end.status, end.reason) if x))
        self.checkpoints.drop(pair_group(end.pair_id))
        self.write_state()

    def _count(self) -> None:
        ends = list(self.ended.values())
        self.state.pairs_done = sum(end.status == "succeeded" for end in ends)
        self.state.pairs_failed = sum(end.status == "failed" for end in ends)
        self.state.pairs_running = sorted(self._started - set(self.ended))
        for pair_id in set(self.state.stages) & set(self.ended):
            del self.state.stages[pair_id]

    def _delete_rows(self, pair_id: str) -> None:
        self.store.delete_prefix(layout.attempt_rows(self.job.job_id, self.attempt, pair_id))

    def _delete_unpublished(self) -> None:
        """Delete this driver's rows that nobody will read; when all is done, those of dead ones."""
        job_id = self.job.job_id
        published = tuple(
            layout.attempt_rows(job_id, end.attempt, end.pair_id)
            for end in self.ended.values()
            if end.status == "succeeded"
        )
        mine, all_rows = layout.attempt_results(job_id, self.attempt), layout.results(job_id)
        prefix = mine if self.left else all_rows
        for key in self.store.list(prefix):
            if not key.startswith(published):
                self.store.delete(key)
