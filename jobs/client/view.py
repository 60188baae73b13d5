"""A job as a table that is drawn anew while it runs, and as lines where nothing can be drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.client.home import LocalJob
from jobs.client.wording import many
from jobs.storage.records import JobState, PairEnd, PairState, Status, pair_states

MOST_ROWS = 16
"""Pairs shown at once: the screen has other things on it."""
ORDER: tuple[Status, ...] = ("failed", "running", "queued", "submitted", "cancelled", "succeeded")
"""Of pairs in the table: what needs attention comes first."""


@dataclass(frozen=True)
class Snapshot:
    """What there is to see of a job at one moment.

    Attributes:
        local: The job as the client knows it, with names.
        state: How far it is.
        ended: Markers of the pairs that have ended, by pair id.
        line: The same in words.
    """

    local: LocalJob
    state: JobState
    ended: dict[str, PairEnd]
    line: str

    def pairs(self) -> list[tuple[str, str, PairState]]:
        """Name, deepest stage and state of each pair, in the order of the job."""
        states = pair_states([p.pair_id for p in self.local.pairs], self.state, self.ended)
        return [
            (p.name, self.state.stages.get(p.pair_id, ""), states[p.pair_id])
            for p in self.local.pairs
        ]


def table(snapshot: Snapshot) -> RenderableType:
    """What `status --watch` draws."""
    state, pairs = snapshot.state, snapshot.pairs()
    head = Text.assemble(
        (f"job {snapshot.local.job_id}", "bold"), f" at {snapshot.local.quality}: "
    )
    head.append(state.status)
    grid = Table("pair", "state", "stage", "reason", expand=False)
    shown = sorted(pairs, key=lambda pair: ORDER.index(pair[2].status))[:MOST_ROWS]
    for name, stage, pair in shown:
        style = {"failed": "red", "succeeded": "green", "running": "bold"}.get(pair.status, "dim")
        grid.add_row(Text(name), Text(pair.status, style), stage, Text(pair.reason))
    parts: list[RenderableType] = [head, Text(snapshot.line)]
    if state.actors:
        nodes = f" on {many(state.nodes, 'node')}" if state.nodes else ""
        again = f", {many(state.attempts_failed, 'task')} to be begun again"
        known = many(state.actors, "actor") + nodes
        parts.append(Text(known + (again if state.attempts_failed else ""), "dim"))
    if state.seconds_total:
        # A bar does not end its line: without a frame the table would begin beside it.
        bar = Table.grid()
        bar.add_row(ProgressBar(total=state.seconds_total, completed=state.seconds_done, width=60))
        parts.append(bar)
    parts.append(grid)
    if len(pairs) > len(shown):
        rest = Counter(pair.status for _, _, pair in pairs)
        counts = ", ".join(f"{rest[status]} {status}" for status in ORDER if rest[status])
        parts.append(Text(f"{len(pairs)} pairs: {counts}", "dim"))
    return Group(*parts)


class Lines:
    """The same as lines of plain text: one whenever something has happened to a pair or the job."""

    def __init__(self) -> None:
        self._status = ""
        self._pairs: dict[str, PairState] = {}

    def new(self, snapshot: Snapshot) -> Iterator[str]:
        """What has changed since the last call."""
        if snapshot.state.status != self._status:
            self._status = snapshot.state.status
            yield f"job {snapshot.local.job_id}: {self._status}"
        quiet = ("queued", "submitted")
        for name, _, pair in snapshot.pairs():
            if pair != self._pairs.get(name) and pair.status not in quiet:
                self._pairs[name] = pair
                yield ": ".join(x for x in (name, pair.status, pair.reason) if x)
