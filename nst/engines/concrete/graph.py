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
from nst.network.architecture import OUTPUT, STYLE_CODE, is_style

if TYPE_CHECKING:
    from nst.engines.concrete.plan import StagePlan


def build_graph(
    circuits: Sequence[StagePlan], pairs: Sequence[PairIds], seconds: Seconds
) -> TaskGraph:
    """Lay out the row tasks of a job's pairs; see `nst.engines.base.Plan.graph`."""
    builder = _Builder(circuits, seconds)
    codes: dict[str, int] = {}
    outputs: dict[str, tuple[int, ...]] = {}
    pairs_of: dict[str, list[str]] = {}
    for rank, pair in enumerate(pairs):
        shared = style_group(pair.style)
        if pair.style not in codes:
            rows = builder.add(pair.style, shared, rank, style=True, code=None)
            codes[pair.style] = rows[STYLE_CODE][0]
        group = pair_group(pair.pair_id)
        rows = builder.add(pair.content, group, rank, style=False, code=codes[pair.style])
        outputs[pair.pair_id] = tuple(rows[OUTPUT])
        pairs_of.setdefault(shared, []).append(pair.pair_id)
        pairs_of[group] = [pair.pair_id]
    groups = {name: tuple(members) for name, members in pairs_of.items()}
    return TaskGraph(tuple(builder.tasks), outputs, groups)


class _Builder:
    def __init__(self, circuits: Sequence[StagePlan], seconds: Seconds) -> None:
        self.circuits, self.seconds = circuits, seconds
        self.tasks: list[Task] = []

    def add(
        self, input_id: str, group: str, rank: int, style: bool, code: int | None
    ) -> dict[str, list[int]]:
        """Tasks of one style branch or one content path; returns the rows of each stage."""
        made: dict[str, list[int]] = {}
        for depth, circuit in enumerate(self.circuits):
            if is_style(circuit.name) != style:
                continue
            made[circuit.name] = []
            for row in range(circuit.rows):
                sources = self._sources(circuit, row, made, input_id)
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
                made[circuit.name].append(task.index)
        return made

    @staticmethod
    def _sources(
        circuit: StagePlan, row: int, made: dict[str, list[int]], input_id: str
    ) -> list[Source]:
        out: list[Source] = []
        height = circuit.rows * circuit.stride
        for name in circuit.sources:
            count = len(made[name]) if name in made else height
            if circuit.kind == "conv":
                center = row * circuit.stride
                # Replicate padding: at the border the row itself stands in for its neighbour.
                # A source at half the resolution is enlarged by reading each of its rows twice.
                near = [min(max(center + d, 0), height - 1) for d in (-1, 0, 1)]
                wanted = [i * count // height for i in near]
            elif circuit.kind == "row_pool":
                wanted = [row]
            else:
                wanted = list(range(count))
            out += [made[name][i] if name in made else InputPart(input_id, i) for i in wanted]
        return out
