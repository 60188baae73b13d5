"""The server-side driver of one job: `python -m jobs.execution.driver STORE JOB --actors N`.

Reads the job's record from the store, walks its task graph on Ray actors, writes result rows,
markers and state back. It needs no other input and no client code: `seal` sees to that.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable

from jobs.execution.graph import Task, TaskGraph, build_graph
from jobs.execution.loading import EvaluatorLoader, read_plan
from jobs.execution.scheduler import Completion, Executor, run_graph
from jobs.storage import layout
from jobs.storage.records import (
    JobRecord,
    JobState,
    ResultRecord,
    TaskTrace,
    finished_pairs,
    read_record,
    read_state,
    write_record,
)
from jobs.storage.store import Store, open_store
from nst.architecture import CELL
from nst.ciphertext import Envelope
from nst.errors import CircuitError, NstBatchError, StoreError
from nst.server import seal

STATE_EVERY = 1.0
"""Seconds between two writes of the job's state."""


class JobWriter:
    """Listens to a walk and writes what happens into the store."""

    def __init__(self, store: Store, job: JobRecord, graph: TaskGraph, actors: int) -> None:
        self.store, self.job, self.graph = store, job, graph
        self.trace: list[TaskTrace] = []
        finished = finished_pairs(store, job)
        self.state = JobState(
            status="running",
            pairs_total=len(job.pairs),
            pairs_done=sum(r.status == "done" for r in finished.values()),
            pairs_failed=sum(r.status == "failed" for r in finished.values()),
            pbs_total=graph.pbs,
            actors=actors,
            driver_started=time.time(),
        )
        self._write_state()

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
        state = self.state
        state.pbs_done += task.pbs
        state.first_task = min(state.first_task or completion.start, completion.start)
        state.last_task = max(state.last_task, completion.end)
        state.peak_live_bytes = max(state.peak_live_bytes, live_bytes)
        if time.time() - state.updated > STATE_EVERY:
            self._write_state()

    def row_done(self, pair_id: str, row: int, ciphertext: bytes) -> None:
        """See `Listener`."""
        envelope = Envelope(self.job.key_id, self.job.circuit_id, (ciphertext,))
        self.store.write(layout.result_row(self.job.job_id, pair_id, row), envelope.pack())

    def pair_done(self, pair_id: str) -> None:
        """See `Listener`."""
        rows = len(self.graph.outputs[pair_id])
        self._publish(ResultRecord(pair_id=pair_id, status="done", rows=rows, finished=time.time()))
        self.state.pairs_done += 1
        self._write_state()

    def pair_failed(self, pair_id: str, reason: str) -> None:
        """See `Listener`."""
        self._publish(
            ResultRecord(pair_id=pair_id, status="failed", reason=reason, finished=time.time())
        )
        self.state.pairs_failed += 1
        self._write_state()

    def end(self) -> None:
        """Write the trace and the final state."""
        lines = [entry.model_dump_json() for entry in self.trace]
        self.store.write(layout.trace(self.job.job_id), f"[{','.join(lines)}]".encode())
        self.state.status = "failed" if self.state.pairs_failed else "succeeded"
        self._write_state()

    def _publish(self, record: ResultRecord) -> None:
        key = layout.result(self.job.job_id, record.pair_id)
        # The first marker stands: a second driver's, which is as good, is dropped.
        self.store.create(key, record.model_dump_json().encode())

    def _write_state(self) -> None:
        self.state.updated = time.time()
        write_record(self.store, layout.state(self.job.job_id), self.state)


def run_job(store: Store, job: JobRecord, executor: Executor, actors: int) -> JobState:
    """Do what is left of a job on an executor."""
    plan = read_plan(store, job.circuit_id)
    finished = finished_pairs(store, job)
    graph = build_graph(plan, [p for p in job.pairs if p.pair_id not in finished])
    writer = JobWriter(store, job, graph, actors)

    def read_input(input_id: str) -> tuple[bytes, ...]:
        what = f"encrypted picture {input_id}"
        key = layout.encrypted_input(job.job_id, input_id)
        envelope = Envelope.unpack(store.read(key), what)
        envelope.require(job.key_id, job.circuit_id, what)
        if len(envelope.rows) != plan.size // CELL:
            raise CircuitError(
                f"{what} has {len(envelope.rows)} rows, not {plan.size // CELL}; "
                "submit the pair again"
            )
        return envelope.rows

    run_graph(graph, executor, read_input, writer)
    writer.end()
    return writer.state


def drive(store: Store, job_id: str, actors: int) -> JobState:
    """Run a job on a local Ray cluster of so many actors.

    A job that cannot be run at all (damaged circuits or keys, no Ray) is left in state `failed`
    with the reason, so that whoever watches it learns of it.
    """
    job = read_record(store, layout.job(job_id), JobRecord)
    return _recording_failure(store, job, lambda: _drive_on_ray(store, job, actors))


def _drive_on_ray(store: Store, job: JobRecord, actors: int) -> JobState:
    from cluster.actors import start_actors
    from cluster.executor import RayExecutor
    from cluster.local import local_ray

    loader = EvaluatorLoader(store.url, job.circuit_id, job.key_id)
    with local_ray(actors):
        executor = RayExecutor(start_actors(actors, loader), Completion)
        return run_job(store, job, executor, actors)


def _recording_failure(store: Store, job: JobRecord, run: Callable[[], JobState]) -> JobState:
    try:
        return run()
    except Exception as error:
        # Of an actor's stack trace the last line says what happened, after the error's name.
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        reason = re.sub(r"^nst\.errors\.\w+: ", "", last)
        try:
            state = read_state(store, job.job_id)
        except StoreError:
            state = JobState()
        state.status, state.reason, state.updated = "failed", reason, time.time()
        state.pairs_total = len(job.pairs)
        write_record(store, layout.state(job.job_id), state)
        raise


def main() -> None:
    """Command line of the driver."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("job_id")
    parser.add_argument("--actors", type=int, required=True)
    arguments = parser.parse_args()
    if arguments.actors < 1:
        parser.error("--actors must be at least 1")
    seal()
    try:
        drive(open_store(arguments.store), arguments.job_id, arguments.actors)
    except NstBatchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
