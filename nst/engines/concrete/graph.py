"""The row tasks of Concrete's circuits: stage x row x picture.

A row task is one call of a circuit function. Content tasks belong to a pair, style tasks to a
style, which is computed once however many contents it meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nst.engines.tasks import (
    InputPart,
    PairIds,
    Seconds,
    Source,
    Task,
    TaskGraph,
    pair_group,
    style_group,
)
from nst.network.architecture import CONTENT, STYLE, STYLE_CODE, Branch, rows_read

if TYPE_CHECKING:
    from nst.engines.concrete.plan import CircuitPlan


def build_graph(plan: CircuitPlan, pairs: Sequence[PairIds], seconds: Seconds) -> TaskGraph:
    """Lay out the row tasks of a job's pairs; see `nst.engines.base.Plan.graph`."""
    builder = _Builder(plan, seconds)
    codes: dict[str, int] = {}
    outputs: dict[str, tuple[int, ...]] = {}
    pairs_of: dict[str, list[str]] = {}
    for rank, pair in enumerate(pairs):
        shared = style_group(pair.style)
        if pair.style not in codes:
            (codes[pair.style],) = builder.add(STYLE, pair.style, shared, rank)
        group = pair_group(pair.pair_id)
        rows = builder.add(CONTENT, pair.content, group, rank, codes[pair.style])
        outputs[pair.pair_id] = tuple(rows)
        pairs_of.setdefault(shared, []).append(pair.pair_id)
        pairs_of[group] = [pair.pair_id]
    groups = {name: tuple(members) for name, members in pairs_of.items()}
    return TaskGraph(tuple(builder.tasks), outputs, groups)


class _Builder:
    def __init__(self, plan: CircuitPlan, seconds: Seconds) -> None:
        self.circuits, self.seconds = plan.circuits, seconds
        self.heights = {CONTENT: plan.stored.content_parts, STYLE: plan.stored.style_parts}
        self.tasks: list[Task] = []

    def add(
        self, branch: Branch, input_id: str, group: str, rank: int, code: int | None = None
    ) -> list[int]:
        """Tasks of one style branch or one content path; returns those of its last stage."""
        rows: dict[str, list[Source]] = {
            branch: [InputPart(input_id, row) for row in range(self.heights[branch])]
        }
        made: list[int] = []
        for depth, circuit in enumerate(self.circuits):
            if circuit.branch != branch:
                continue
            made = []
            for row in range(circuit.rows):
                sources = [
                    rows[name][i]
                    for name in circuit.sources
                    for i in rows_read(circuit.reads, row, circuit.stride, len(rows[name]))
                ]
                if circuit.modulated and code is not None:
                    sources.append(code)
                task = Task(
                    index=len(self.tasks),
                    stage=circuit.name,
                    group=group,
                    part=row,
                    sources=tuple(sources),
                    seconds=self.seconds[circuit.name],
                    output_bytes=circuit.output_bytes,
                    rank=rank,
                    depth=depth,
                    # Some 2 MB, behind which lies a whole branch.
                    checkpoint=circuit.name == STYLE_CODE,
                )
                self.tasks.append(task)
                made.append(task.index)
            rows[circuit.name] = [*made]
        return made
