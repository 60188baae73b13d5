"""The server-side driver of one job: `python -m jobs.execution.driver STORE JOB --actors N`, on a
Ray of its own, or with `--cluster` on the one it is started in.

Reads the job's record from the store, walks its task graph on Ray actors, writes result rows,
markers and state back. It needs no other input and no client code: `seal` sees to that.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from jobs.execution.checkpoints import checkpointed
from jobs.execution.graph import build_graph
from jobs.execution.loading import EvaluatorLoader, job_plan
from jobs.execution.notify import Hook, message, notify
from jobs.execution.observed import ObservedExecutor
from jobs.execution.saved import Checkpoints
from jobs.execution.scheduler import Completion, Executor, LostError, run_graph
from jobs.execution.writer import JobWriter, log
from jobs.storage import layout
from jobs.storage.records import JobRecord, JobState, read_job
from jobs.storage.store import Store, open_store
from nst.ciphertext import Envelope
from nst.errors import CircuitError, NstBatchError, StoreError
from nst.engines.concrete.server import seal


def run_job(store: Store, job: JobRecord, executor: Executor, actors: int) -> JobState:
    """Do what is left of a job on an executor."""
    return walk_job(JobWriter(store, job, actors), executor)


def walk_job(writer: JobWriter, executor: Executor) -> JobState:
    """Do what is left of the job that a writer has taken up."""
    store, job = writer.store, writer.job
    plan = job_plan(store, job)
    styles = {pair.style for pair in job.pairs}
    stages = checkpointed(plan, writer.state.actors)
    checkpoints = Checkpoints(store, job, stages, executor.get)
    observed = ObservedExecutor(executor, writer)

    def read_input(input_id: str) -> tuple[bytes, ...]:
        if input_id.startswith(layout.checkpoints(job.job_id)):
            return (checkpoints.read(input_id),)
        what = f"encrypted picture {input_id}"
        key = layout.encrypted_input(job.job_id, input_id)
        envelope = Envelope.unpack(store.read(key), what)
        envelope.require(job.key_id, job.model_id, what)
        rows = plan.style_rows if input_id in styles else plan.content_rows
        if len(envelope.rows) != rows:
            raise CircuitError(
                f"{what} has {len(envelope.rows)} rows, not {rows}; submit the pair again"
            )
        return envelope.rows

    try:
        whole = build_graph(plan, writer.left)
        graph = writer.begin(plan, whole, checkpoints)
        run_graph(graph, observed, read_input, writer)
    finally:
        checkpoints.close()
    # A job that is said to have stopped holds no actors any more.
    executor.close()
    writer.end()
    return writer.state


Connect = Callable[[JobWriter], AbstractContextManager[Executor]]
"""Brings up what runs the tasks of a job, and takes it down."""


def drive(writer: JobWriter, connect: Connect) -> JobState:
    """Run a job; one that cannot go on is left in state `failed` with the reason.

    That is for a job that cannot be run at all (damaged circuits or keys, no Ray), or whose store
    fails in the middle. What is left of it can be taken up again.
    """
    try:
        with connect(writer) as executor:
            return walk_job(writer, executor)
    except Exception as error:
        # Of an actor's stack trace the last line says what happened, after the error's name.
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        # A store that does not take the reason must not hide it.
        with suppress(StoreError):
            writer.could_not_go_on(re.sub(r"^nst\.errors\.\w+: ", "", last))
        raise


@contextmanager
def on_local_ray(writer: JobWriter) -> Iterator[Executor]:
    """Actors on this machine, on a Ray of their own."""
    from cluster.local import local_ray

    with local_ray(writer.state.actors):
        yield _ray_executor(writer)


@contextmanager
def on_running_ray(writer: JobWriter) -> Iterator[Executor]:
    """Actors on the cluster that started this process; if 0 were asked for, one a CPU."""
    from cluster.local import cpus, running_ray

    # The Jobs API says which cluster; `auto` would be the last one started on this machine.
    with running_ray(os.environ.get("RAY_ADDRESS", "auto")):
        # A cluster that starts its workers on demand has none yet: the first actor brings one.
        writer.state.actors = writer.state.actors or max(cpus(), 1)
        yield _ray_executor(writer)


def _ray_executor(writer: JobWriter) -> Executor:
    from cluster.executor import RayExecutor
    from cluster.metrics import DriverMetrics

    job = writer.job
    writer.meter = DriverMetrics(job.job_id)
    loader = EvaluatorLoader(writer.store.url, job.model_id, job.key_id)
    return RayExecutor(writer.state.actors, loader, Completion, LostError)


def tell_the_end(writer: JobWriter) -> None:
    """Call the hook that this process was started with; what goes wrong is logged."""
    if not writer.state.finished:
        return  # Another driver goes on with it.
    for problem in notify(Hook.from_environment(), message(writer.job.job_id, writer.state)):
        log.warning("%s", problem)


def log_to_stderr() -> None:
    """Print what happens to pairs; `nst-batch logs` shows it."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def main() -> None:
    """Command line of the driver."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("job_id")
    parser.add_argument("--actors", type=int, default=0, help="with --cluster, 0 is one a CPU")
    parser.add_argument("--cluster", action="store_true", help="on the Ray cluster that runs here")
    arguments = parser.parse_args()
    if arguments.actors < (0 if arguments.cluster else 1):
        parser.error("--actors must be at least 1")
    seal()
    log_to_stderr()
    try:
        store = open_store(arguments.store)
        job = read_job(store, arguments.job_id)
        writer = JobWriter(store, job, arguments.actors)
        try:
            drive(writer, on_running_ray if arguments.cluster else on_local_ray)
        finally:
            tell_the_end(writer)
    except NstBatchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
