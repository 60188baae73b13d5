"""Runs real jobs for the benchmarks, the way `nst-batch submit` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import PeakMemory, peak_memory
from jobs.client.drivers import start_here
from jobs.client.fetch import fetch
from jobs.client.home import Home, LocalJob
from jobs.client.pairs import find_pairs
from jobs.client.preparation import PreparedPair, prepare
from jobs.client.session import Session
from jobs.client.submit import submit
from jobs.storage.records import JobState, TaskTrace, read_state, read_trace
from jobs.storage.store import open_store
from nst.engines.base import Plan
from nst.engines.concrete.plan import CircuitPlan
from nst.model import DEFAULT_ENGINE, Model
from nst.pictures.size import Size


@dataclass
class Finished:
    """A job that has run, and what was seen of it."""

    session: Session
    local: LocalJob
    state: JobState
    trace: list[TaskTrace]
    memory: PeakMemory
    submit_s: float
    driver_s: float


def load(
    folder: Path, quality: str, size: Size | None = None, engine: str = DEFAULT_ENGINE
) -> Model:
    """A level's model, which is built below `folder` when it is needed."""
    return Model.load(quality, Home(folder / "home").models, size, engine)


def circuits(plan: Plan) -> CircuitPlan:
    """A plan of Concrete's, which knows PBS."""
    assert isinstance(plan, CircuitPlan)
    return plan


def prepared(source: Path, model: Model, grid: bool = False) -> list[PreparedPair]:
    """Pairs of a folder, ready to encrypt; raises RuntimeError if one is unusable."""
    pairs, skipped = find_pairs(source, grid)
    ready, unreadable = prepare(pairs, model, "crop")
    if skipped or unreadable:
        raise RuntimeError(f"unusable pairs in {source}: {skipped + unreadable}")
    return ready


def submit_pairs(folder: Path, pairs: list[PreparedPair], model: Model) -> tuple[LocalJob, float]:
    """Encrypt pairs into a store below `folder`; returns the job and the seconds it took."""
    home = Home(folder / "home")
    start = time.perf_counter()
    local = submit(Session.open(home, str(home.store), create=True), model, pairs, [])
    return local, time.perf_counter() - start


def run_submitted(
    folder: Path,
    local: LocalJob,
    actors: int,
    submit_s: float,
    watch: Callable[[int], AbstractContextManager[Any]] = lambda pid: nullcontext(),
) -> Finished:
    """Run a submitted job to its end; raises RuntimeError if it did not succeed.

    Args:
        folder: Where `submit_pairs` put it.
        local: The job.
        actors: How many it has.
        submit_s: What `submit_pairs` took.
        watch: Entered while the job runs, with the driver's process id.
    """
    home = Home(folder / "home")
    start = time.perf_counter()
    process = start_here(home, local, actors)
    with peak_memory(process.pid) as memory, watch(process.pid):
        code = process.wait()
    driver_s = time.perf_counter() - start
    store = open_store(local.store)
    state = read_state(store, local.job_id)
    if code or state.status != "succeeded":
        raise RuntimeError(f"job {local.job_id}: {state.reason} {home.driver_log(local.job_id)}")
    trace = read_trace(store, local.job_id)
    return Finished(Session(home, store), local, state, trace, memory, submit_s, driver_s)


def fetch_pictures(job: Finished, out: Path) -> float:
    """Decrypt a job's pictures into `out`; returns the seconds it took."""
    start = time.perf_counter()
    fetch(job.session, job.local, out, force=True)
    return time.perf_counter() - start
