"""Shows a job while it runs: the share of its work that is done, with an ETA at its own rate."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from jobs.client.home import LocalJob
from jobs.client.view import Lines, Snapshot, table
from jobs.storage.records import (
    JobRecord,
    JobState,
    PairEnd,
    read_job,
    read_marks,
    read_state,
)
from jobs.storage.store import Store

POLL = 0.5
PLAIN_EVERY = 30.0
"""Seconds between lines on progress where the output is no terminal."""


def describe(state: JobState, now: float) -> str:
    """One line on how far a job is."""
    eta = state.eta(now)
    parts = [
        f"{state.pairs_done + state.pairs_failed}/{state.pairs_total} pairs",
        f"{state.share:.0%} of {duration(state.seconds_total)} of core time",
    ]
    if state.status == "running":
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
    store: Store, local: LocalJob, console: Console, at_work: Callable[[JobState], bool]
) -> JobState:
    """Follow a job until it ends or its driver is gone; returns its last state.

    A terminal that can draw gets a table that is drawn anew; anything else lines when something
    has changed.

    Args:
        store: Where the job is.
        local: Which job.
        console: Where to show it.
        at_work: Whether a driver still runs, given the job's state.
    """
    looks = _Looks(store, local)
    if not console.is_terminal or console.is_dumb_terminal:
        return _follow(looks, at_work, _Plain(console).show)
    with Live(console=console, transient=True, auto_refresh=False) as live:
        return _follow(looks, at_work, lambda seen: live.update(table(seen), refresh=True))


def _follow(
    looks: _Looks, at_work: Callable[[JobState], bool], show: Callable[[Snapshot], None]
) -> JobState:
    while True:
        seen = looks.look()
        show(seen)
        if seen.state.finished:
            return seen.state
        if not at_work(seen.state):
            # A driver that has ended in between has written its state.
            last = looks.look()
            show(last)
            return last.state
        time.sleep(POLL)


class _Looks:
    """Reads a job's state, and its markers when the state says that there are more."""

    def __init__(self, store: Store, local: LocalJob) -> None:
        self.store, self.local = store, local
        self._job: JobRecord | None = None
        self._ended: dict[str, PairEnd] = {}
        self._count = 0

    def look(self) -> Snapshot:
        state = read_state(self.store, self.local.job_id)
        count = state.pairs_done + state.pairs_failed
        if count != self._count:
            self._job = self._job or read_job(self.store, self.local.job_id)
            self._ended = read_marks(self.store, self._job, self._ended).ended
            self._count = count
        return Snapshot(self.local, state, self._ended, describe(state, time.time()))


class _Plain:
    def __init__(self, console: Console) -> None:
        self.console, self._lines = console, Lines()
        self._done, self._last = 0.0, time.monotonic()

    def show(self, seen: Snapshot) -> None:
        for line in self._lines.new(seen):
            self._print(line)
        late = time.monotonic() - self._last > PLAIN_EVERY
        if late and seen.state.seconds_done != self._done and not seen.state.finished:
            self._done, self._last = seen.state.seconds_done, time.monotonic()
            self._print(seen.line)

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
