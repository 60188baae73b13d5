"""The server-side driver of one job: `python -m jobs.execution.driver STORE JOB --actors N ...`, on
a Ray of its own, or with `--cluster` on the one it is started in.

Reads the job's record from the store, walks its task graph on Ray actors, writes parts of results,
markers and state back. Which model it loads says its command line, by digest: what the store says
is data. It needs no client code: `seal` sees to that.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING

from cluster.reasons import why
from cluster.types import Callback, Executor, Handle
from jobs.execution.checkpoints import Checkpoints
from jobs.execution.loading import EvaluatorLoader, ModelPin
from jobs.execution.notify import URL_VARIABLE, message, notify
from jobs.execution.recorder import Recorder, Tracer, log
from jobs.execution.resume import copy_results, without_done
from jobs.execution.scheduler import run_graph
from jobs.storage import layout
from jobs.storage.records import JobState, read_job
from jobs.storage.store import open_store
from nst.ciphertext import Envelope, most_bytes
from nst.engines import get_engine
from nst.engines.base import Plan
from nst.errors import CircuitError, NstBatchError, StoreError
from nst.sealing import seal

if TYPE_CHECKING:
    from cluster.executor import Held


def walk_job(
    recorder: Recorder[Handle],
    plan: Plan,
    executor: Executor[Handle],
    callbacks: Sequence[Callback[Handle]] = (),
) -> JobState:
    """Do what is left of the job that a recorder has taken up.

    Args:
        recorder: Writes the job's state.
        plan: Of the job's model, at the size of its contents.
        executor: What runs its tasks.
        callbacks: Told before the recorder is.
    """
    store, job = recorder.store, recorder.job
    recorder.take_plan(plan)
    checkpoints = Checkpoints(store, job, executor.get)
    styles = {pair.style for pair in job.pairs}

    def read_input(input_id: str) -> tuple[bytes, ...]:
        if checkpoints.holds(input_id):
            return (checkpoints.read(input_id),)
        what = f"encrypted picture {input_id}"
        key = layout.encrypted_input(job.job_id, input_id)
        if layout.in_library(input_id):
            key = layout.library_input(input_id)
        stored, style = plan.stored, input_id in styles
        count = stored.style_parts if style else stored.content_parts
        limit = most_bytes(count, stored.style_part if style else stored.content_part)
        envelope = Envelope.unpack(store.read(key, limit), what)
        envelope.require(job.key_id, job.model_id, what)
        if len(envelope.parts) != count:
            raise CircuitError(
                f"{what} has {len(envelope.parts)} parts, not {count}; submit the pair again"
            )
        return envelope.parts

    try:
        seconds = get_engine(plan.engine).rates().seconds(plan.stages)
        whole = plan.graph(recorder.left, seconds)
        results = {pair.result for pair in recorder.left}
        there = copy_results(store, job, plan, recorder.attempt, results, recorder.keep_alive)
        graph = without_done(whole, checkpoints.stored(whole), there)
        told = [*callbacks, checkpoints, Tracer(store, job.job_id), recorder]
        run_graph(graph, executor, read_input, told, recorder.control)
    finally:
        checkpoints.close()
    return recorder.state


Backend = tuple[Executor[Handle], Sequence[Callback[Handle]]]
"""What runs the tasks of a job, and what else is told of it."""


def drive(
    recorder: Recorder[Handle],
    pin: ModelPin,
    connect: Callable[[Recorder[Handle], ModelPin], AbstractContextManager[Backend[Handle]]],
) -> JobState:
    """Run a job; one that cannot go on is left in state `failed` with the reason.

    That is for a job that cannot be run at all (damaged model or keys, no Ray), or whose store
    fails in the middle. What is left of it can be taken up again.

    Args:
        recorder: Has taken up the job.
        pin: The model and key set that the client wants.
        connect: Brings up what runs it, and takes that down.
    """
    try:
        plan = pin.job_plan(recorder.store, recorder.job)
        with connect(recorder, pin) as (executor, callbacks):
            return walk_job(recorder, plan, executor, callbacks)
    except Exception as error:
        # A store that does not take the reason must not hide it.
        with suppress(StoreError):
            recorder.could_not_go_on(why(error))
        raise


@contextmanager
def on_local_ray(recorder: Recorder[Held], pin: ModelPin) -> Iterator[Backend[Held]]:
    """Actors on this machine, on a Ray of their own."""
    from cluster.local import local_ray

    with local_ray(recorder.state.actors):
        yield _on_ray(recorder, pin)


@contextmanager
def on_running_ray(recorder: Recorder[Held], pin: ModelPin) -> Iterator[Backend[Held]]:
    """Actors on the cluster that started this process; if 0 were asked for, one per CPU."""
    from cluster.local import cpus, running_ray

    # The Jobs API says which cluster; `auto` would be the last one started on this machine.
    with running_ray(os.environ.get("RAY_ADDRESS", "auto")):
        # A cluster that starts its workers on demand has none yet: the first actor brings one.
        recorder.state.actors = recorder.state.actors or max(cpus(), 1)
        yield _on_ray(recorder, pin)


def _on_ray(recorder: Recorder[Held], pin: ModelPin) -> Backend[Held]:
    from cluster.executor import RayExecutor
    from cluster.metrics import DriverMetrics

    loader = EvaluatorLoader(recorder.store.url, pin)
    plan = pin.job_plan(recorder.store, recorder.job)
    needs = get_engine(plan.engine).rates().actor_bytes
    executor = RayExecutor(recorder.state.actors, loader, needs)
    return executor, [DriverMetrics(recorder.job.job_id, recorder.pair_counts)]


def tell_the_end(recorder: Recorder[Held]) -> None:
    """Call the webhook that this process was started with; a problem is logged."""
    url = os.environ.get(URL_VARIABLE)
    # Another driver goes on with a job that has not ended.
    if url and recorder.state.finished:
        problem = notify(url, message(recorder.job.job_id, recorder.state))
        if problem:
            log.warning("%s", problem)


def log_to_stderr() -> None:
    """Print what happens to pairs; `nst-batch logs` shows it."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def end_with_parent() -> None:
    """End this process when whoever started it is gone, and with that its end of a pipe."""
    with suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Command line of the driver."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("job_id")
    parser.add_argument("--actors", type=int, default=0, help="with --cluster, 0 is one per CPU")
    parser.add_argument("--cluster", action="store_true", help="on the Ray cluster that runs here")
    parser.add_argument("--model", required=True, help="id of the model")
    parser.add_argument("--key", required=True, help="id of the key set")
    parser.add_argument("--plan", required=True, help="SHA-256 of the model's plan")
    parser.add_argument("--bundle", required=True, help="SHA-256 of its server bundle")
    parser.add_argument("--folder", default="", help="where both are; without, in the store")
    parser.add_argument("--with-parent", action="store_true", help="end with standard input")
    arguments = parser.parse_args()
    if arguments.actors < (0 if arguments.cluster else 1):
        parser.error("--actors must be at least 1")
    seal()
    log_to_stderr()
    if arguments.with_parent:
        threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        store = open_store(arguments.store)
        job = read_job(store, arguments.job_id)
        pin = ModelPin(
            arguments.model, arguments.key, arguments.plan, arguments.bundle, arguments.folder
        )
        recorder: Recorder[Held] = Recorder(store, job, arguments.actors)
        try:
            drive(recorder, pin, on_running_ray if arguments.cluster else on_local_ray)
        finally:
            tell_the_end(recorder)
    except NstBatchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
