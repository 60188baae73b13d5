"""Shows a job while it runs: progress in PBS with an ETA at the job's own measured rate."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jobs.client.home import JobBook
from jobs.client.submit import eta_seconds
from jobs.storage.records import JobState, read_state
from jobs.storage.store import Store

POLL = 0.5
PLAIN_EVERY = 30.0
"""Seconds between lines where the output is no terminal."""


def describe(state: JobState, now: float) -> str:
    """One line on how far a job is."""
    rate = state.pbs_done / max(now - state.first_task, 1e-9) if state.first_task else 0.0
    eta = eta_seconds(state, now)
    share = state.pbs_done / state.pbs_total if state.pbs_total else 0.0
    parts = [
        f"{state.pairs_done + state.pairs_failed}/{state.pairs_total} pairs",
        f"{state.pbs_done:,}/{state.pbs_total:,} PBS ({share:.0%})",
    ]
    if state.status == "running":
        parts.append(f"{rate:,.0f} PBS/s")
        parts.append("ETA " + (duration(eta) if eta is not None else "unknown yet"))
    if state.pairs_failed:
        parts.append(f"{state.pairs_failed} failed")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def watch(
    store: Store, book: JobBook, console: Console, at_work: Callable[[JobState], bool]
) -> JobState:
    """Follow a job until it ends or its driver is gone.

    Args:
        store: Where the job is.
        book: Which job.
        console: Where to show it.
        at_work: Whether a driver still runs, given the job's state.
    """
    if not console.is_terminal:
        return _watch_plain(store, book, console, at_work)
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("waiting for Ray, circuits and keys", total=None)
        while True:
            state = read_state(store, book.job_id)
            if state.pbs_total:
                progress.update(
                    bar,
                    total=state.pbs_total,
                    completed=state.pbs_done,
                    description=describe(state, time.time()),
                )
            if state.finished or not at_work(state):
                # A driver that has ended in between has written its state.
                return read_state(store, book.job_id)
            time.sleep(POLL)


def _watch_plain(
    store: Store, book: JobBook, console: Console, at_work: Callable[[JobState], bool]
) -> JobState:
    last = 0.0
    while True:
        state = read_state(store, book.job_id)
        if state.finished or not at_work(state):
            # A driver that has ended in between has written its state.
            return read_state(store, book.job_id)
        if state.first_task and time.time() - last > PLAIN_EVERY:
            console.print(describe(state, time.time()), highlight=False)
            last = time.time()
        time.sleep(POLL)
