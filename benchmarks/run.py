"""Runs real jobs for the benchmarks, the way `nst-batch submit` does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import PeakMemory, peak_memory
from jobs.client.drivers import start_here
from jobs.client.fetch import fetch
from jobs.client.home import Home, JobBook
from jobs.client.pairs import find_pairs
from jobs.client.preparation import PreparedPair, prepare
from jobs.client.submit import submit
from jobs.storage import layout
from jobs.storage.records import JobState, TaskTrace, read_state
from jobs.storage.store import Store, open_store
from nst.network.integers import IntegerNetwork
from nst.network.levels import QualityLevel, get_level
from nst.network.weights import load_weights


@dataclass
class Finished:
    """A job that has run, and what was seen of it."""

    home: Home
    store: Store
    book: JobBook
    state: JobState
    trace: list[TaskTrace]
    memory: PeakMemory
    submit_s: float
    driver_s: float


def load(quality: str) -> tuple[QualityLevel, IntegerNetwork]:
    """A level and its network."""
    level = get_level(quality)
    return level, load_weights(level.weights)


def prepared(source: Path, quality: str, grid: bool = False) -> list[PreparedPair]:
    """Pairs of a folder, ready to encrypt; raises RuntimeError if one is unusable."""
    level, network = load(quality)
    pairs, skipped = find_pairs(source, grid)
    ready, unreadable = prepare(pairs, network, level.side, "crop")
    if skipped or unreadable:
        raise RuntimeError(f"unusable pairs in {source}: {skipped + unreadable}")
    return ready


def submit_pairs(folder: Path, pairs: list[PreparedPair], quality: str) -> tuple[JobBook, float]:
    """Encrypt pairs into a store below `folder`; returns the book and the seconds it took."""
    level, network = load(quality)
    home = Home(folder / "home")
    start = time.perf_counter()
    book = submit(
        home, open_store(str(home.store), create=True), level, network, pairs, [], lambda *_: None
    )
    return book, time.perf_counter() - start


def run_submitted(
    folder: Path,
    book: JobBook,
    actors: int,
    submit_s: float,
    watch: Callable[[int], AbstractContextManager[Any]] = lambda pid: nullcontext(),
) -> Finished:
    """Run a submitted job to its end; raises RuntimeError if it did not succeed.

    Args:
        folder: Where `submit_pairs` put it.
        book: The job.
        actors: How many it has.
        submit_s: What `submit_pairs` took.
        watch: Entered while the job runs, with the driver's process id.
    """
    home = Home(folder / "home")
    store = open_store(book.store)
    start = time.perf_counter()
    process = start_here(home, book, actors)
    with peak_memory(process.pid) as memory, watch(process.pid):
        code = process.wait()
    driver_s = time.perf_counter() - start
    state = read_state(store, book.job_id)
    if code or state.status != "succeeded":
        raise RuntimeError(f"job {book.job_id}: {state.reason} {home.driver_log(book.job_id)}")
    entries = json.loads(store.read(layout.trace(book.job_id)))
    trace = [TaskTrace(**entry) for entry in entries]
    return Finished(home, store, book, state, trace, memory, submit_s, driver_s)


def fetch_pictures(job: Finished, quality: str, out: Path) -> float:
    """Decrypt a job's pictures into `out`; returns the seconds it took."""
    level, network = load(quality)
    start = time.perf_counter()
    fetch(job.home, job.store, job.book, level, network, out, force=True)
    return time.perf_counter() - start
