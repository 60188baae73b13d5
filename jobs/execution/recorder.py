"""What a driver tells the store: parts of results, the end of pairs, and how far the job is.

Several drivers may have the same job at once, by mistake or because one was taken for dead. Each
writes parts under its own attempt; of those that finish a pair one publishes it, by a marker that
can be made only once, and the others delete their parts.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from dataclasses import replace
from typing import Literal

from cluster.types import Callback, Completion, Handle
from jobs.execution.scheduler import Control
from jobs.storage import layout
from jobs.storage.records import (
    FEW,
    STALE_AFTER,
    JobRecord,
    JobState,
    PairEnd,
    PairRecord,
    TaskTrace,
    read_marks,
    read_record,
    read_state,
    write_ends,
    write_record,
)
from jobs.storage.store import Store
from nst.engines.base import Plan
from nst.engines.tasks import Task, TaskGraph, is_style_group
from nst.errors import StoreError
from nst.plain import plain

log = logging.getLogger("nst-batch.driver")
"""What a driver prints: ids and reasons, which is all that it knows."""
STATE_EVERY = 2.0
"""Seconds between two writes of the job's state, which is also the sign of life."""
LOOK_EVERY = 2.0
"""Seconds between two looks at the job's markers: cancelled, or pairs ended by another driver."""
ENDS_EVERY, ENDS_SHARE = 10.0, 0.05
"""Seconds between two writes of what all markers say, and the share of the time that these take."""


class Recorder(Callback[Handle]):
    """Writes what happens to a job into the store; as `control`, says what others want of it."""

    def __init__(self, store: Store, job: JobRecord, actors: int) -> None:
        """Take up a job: from here on its state says `queued`.

        Args:
            store: Where the job is.
            job: Its record.
            actors: How many actors will be asked for.
        """
        self.store, self.job = store, job
        self.attempt = secrets.token_hex(6)
        marks = read_marks(store, job)
        self.ended, self.cancelled = marks.ended, marks.cancelled
        self._clock_ahead = store.clock() - time.time()
        self._written = self._looked = self._ends_due = 0.0
        self._ends_written = 0
        self._result_of = {pair.pair_id: pair.result for pair in job.pairs}
        self._started: set[str] = set()
        self._counted: set[int] = set()
        self._depth: dict[str, int] = {}
        self._ended_elsewhere: set[str] = set()
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

    def take_plan(self, plan: Plan) -> None:
        """Learn what the job's results look like; needed before the walk begins."""
        self._plan = plan

    def control(self) -> Control:
        """What others want: the job cancelled, pairs that another driver has ended left out."""
        drop, self._ended_elsewhere = frozenset(self._ended_elsewhere), set()
        return Control(self.cancelled, drop)

    def keep_alive(self) -> None:
        """Give a sign of life, if the last one is old enough."""
        if time.monotonic() - self._written > STATE_EVERY:
            self.write_state()

    def pair_counts(self) -> dict[str, int]:
        """Pairs by state."""
        state = self.state
        running = len(state.pairs_running)
        over = state.pairs_done + state.pairs_failed
        return {
            "succeeded": state.pairs_done,
            "failed": state.pairs_failed,
            "running": running,
            "queued": state.pairs_total - over - running,
        }

    def on_start(self, graph: TaskGraph) -> None:
        """See `Callback`."""
        self.graph = graph
        self.state.seconds_total = graph.seconds
        self.write_state()
        log.info(
            "job %s: %d to do, %s core-seconds",
            *(self.job.job_id, len(self.left), f"{graph.seconds:,.0f}"),
        )

    def on_tick(self, under_way: int, nodes: int, live_bytes: int) -> None:
        """See `Callback`: the wishes of others, and the sign of life."""
        self.state.nodes = nodes
        self.state.peak_live_bytes = max(self.state.peak_live_bytes, live_bytes)
        if time.monotonic() - self._looked > LOOK_EVERY:
            self._read_marks()
        if time.monotonic() > self._ends_due:
            self._write_ends()
        self.keep_alive()

    def on_task_start(self, task: Task) -> None:
        """See `Callback`."""
        self.state.status = "running"
        for pair_id in self._pairs_alone(task):
            if pair_id not in self._started:
                self._started.add(pair_id)
                log.info("pair %s: running", pair_id)

    def on_attempt_failed(self, task: Task, reason: str) -> None:
        """See `Callback`."""
        self.state.attempts_failed += 1
        for pair_id in self.graph.pairs_of[task.group]:
            log.info("pair %s: task %s part %d: %s", pair_id, task.stage, task.part, plain(reason))

    def on_task_end(self, task: Task, completion: Completion[Handle], live_bytes: int) -> None:
        """See `Callback`."""
        state = self.state
        if task.index not in self._counted:
            self._counted.add(task.index)
            state.seconds_done += task.seconds
        for pair_id in self._pairs_alone(task):
            if task.depth > self._depth.get(pair_id, -1):
                self._depth[pair_id] = task.depth
                state.stages[pair_id] = task.stage
        state.first_task = min(state.first_task or completion.start, completion.start)
        state.last_task = max(state.last_task, completion.end)
        state.peak_live_bytes = max(state.peak_live_bytes, live_bytes)

    def _pairs_alone(self, task: Task) -> tuple[str, ...]:
        """Pairs whose result a task is for; none of a style, which any pair may wait for."""
        return () if is_style_group(task.group) else self.graph.pairs_of[task.group]

    def on_result_part(self, result: str, part: int, ciphertext: bytes) -> None:
        """See `Callback`."""
        place = layout.result_place(self.job.job_id, result, part)
        envelope = replace(self._plan.pack_result(self.job.key_id, ciphertext), place=place)
        key = layout.result_part(self.job.job_id, self.attempt, result, part)
        self.store.write(key, envelope.pack())

    def on_pair_done(self, pair_id: str) -> None:
        """See `Callback`."""
        self._publish(pair_id, "succeeded", parts=self._plan.stored.result_parts)

    def on_pair_failed(self, pair_id: str, reason: str) -> None:
        """See `Callback`."""
        self._delete_parts(pair_id)
        self._publish(pair_id, "failed", reason=reason)

    def on_end(self) -> None:
        """Write the final state of a job that has ended or was cancelled."""
        self._read_marks()
        self._write_ends()
        self._delete_unpublished()
        if self.left:
            self.state.status = "cancelled" if self.cancelled else "failed"
        else:
            self._count()
            self.state.status = "failed" if self.state.pairs_failed else "succeeded"
        # The state before the marker: who sees the marker must find no driver at work.
        self.write_state()
        if not self.left:
            self.store.delete_prefix(layout.checkpoints(self.job.job_id))
            self.store.create(
                layout.job_end(self.job.job_id), self.state.model_dump_json().encode()
            )

    def could_not_go_on(self, reason: str) -> None:
        """Say why the job stopped with pairs left, unless another driver goes on with it."""
        # If the store is full, this is what makes room for the state.
        with contextlib.suppress(StoreError):
            self._delete_unpublished()
        with contextlib.suppress(StoreError):
            self._read_marks()
            self._write_ends()
        with contextlib.suppress(StoreError):
            other = read_state(self.store, self.job.job_id)
            if other.attempt not in ("", self.attempt) and not other.stale(self._now()):
                return
        self.state.status, self.state.reason = "failed", plain(reason)
        self.write_state()

    def write_state(self) -> None:
        """Replace the job's state, with a sign of life."""
        self._count()
        self.state.heartbeat = self._now()
        write_record(self.store, layout.state(self.job.job_id), self.state)
        self._written = time.monotonic()

    def _now(self) -> float:
        """Seconds since the epoch by the store's clock."""
        return time.time() + self._clock_ahead

    def _read_marks(self) -> None:
        # After a long sleep this driver may have been taken for dead, and markers made anew.
        asleep = self._looked and time.monotonic() - self._looked > STALE_AFTER
        marks = read_marks(self.store, self.job, {} if asleep else self.ended)
        elsewhere = set(marks.ended) - set(self.ended)
        self._ended_elsewhere |= elsewhere
        for pair_id in self._started & elsewhere:
            self._delete_parts(pair_id)
        self.ended, self.cancelled = marks.ended, marks.cancelled
        self._looked = time.monotonic()

    def _write_ends(self) -> None:
        """Spare clients, and the next driver, reading the marker of each pair that has ended."""
        count, start = len(self.ended), time.monotonic()
        if count > FEW and count != self._ends_written:
            write_ends(self.store, self.job.job_id, self.ended.values())
            self._ends_written = count
        took = time.monotonic() - start
        self._ends_due = start + max(ENDS_EVERY, took / ENDS_SHARE)

    def _publish(
        self,
        pair_id: str,
        status: Literal["succeeded", "failed"],
        parts: int = 0,
        reason: str = "",
    ) -> None:
        key = layout.pair_end(self.job.job_id, pair_id)
        end = PairEnd(
            pair_id=pair_id,
            status=status,
            attempt=self.attempt,
            parts=parts,
            reason=reason,
            finished=time.time(),
        )
        if not self.store.create(key, end.model_dump_json().encode()):
            # Another driver was first, and its result is as good.
            self._delete_parts(pair_id)
            end = read_record(self.store, key, PairEnd)
        self.ended[pair_id] = end
        log.info("pair %s: %s", pair_id, ": ".join(x for x in (end.status, end.reason) if x))
        self.write_state()

    def _count(self) -> None:
        ends = list(self.ended.values())
        self.state.pairs_done = sum(end.status == "succeeded" for end in ends)
        self.state.pairs_failed = sum(end.status == "failed" for end in ends)
        self.state.pairs_running = sorted(self._started - set(self.ended))
        for pair_id in set(self.state.stages) & set(self.ended):
            del self.state.stages[pair_id]

    def _delete_parts(self, pair_id: str) -> None:
        """Delete this driver's parts of a pair's result, unless another pair may need them."""
        result = self._result_of[pair_id]
        ends = [self.ended.get(p) for p in self.graph.pairs(result) if p != pair_id]
        if all(end and end.attempt != self.attempt for end in ends):
            self.store.delete_prefix(layout.attempt_result(self.job.job_id, self.attempt, result))

    def _delete_unpublished(self) -> None:
        """Delete this driver's parts that no pair needs; when all is done, those of dead ones."""
        job_id = self.job.job_id
        published = {
            layout.attempt_result(job_id, end.attempt, self._result_of[end.pair_id])
            for end in self.ended.values()
            if end.status == "succeeded"
        }
        mine, all_parts = layout.attempt_results(job_id, self.attempt), layout.results(job_id)
        prefix = mine if self.left else all_parts
        for key in self.store.list(prefix):
            if f"{key.rpartition('/')[0]}/" not in published:
                self.store.delete(key)


class Tracer(Callback[Handle]):
    """Writes down when each task ran; `nst-batch logs --pair` and `estimate --like` read it."""

    def __init__(self, store: Store, job_id: str) -> None:
        self.store, self.job_id = store, job_id
        self.trace: list[TaskTrace] = []

    def on_task_end(self, task: Task, completion: Completion[Handle], live_bytes: int) -> None:
        """See `Callback`."""
        self.trace.append(
            TaskTrace(
                stage=task.stage,
                group=task.group,
                part=task.part,
                seconds=task.seconds,
                start=completion.start,
                end=completion.end,
                cpu_s=completion.cpu_s,
            )
        )

    def on_end(self) -> None:
        """See `Callback`."""
        lines = [entry.model_dump_json() for entry in self.trace]
        self.store.write(layout.trace(self.job_id), f"[{','.join(lines)}]".encode())
