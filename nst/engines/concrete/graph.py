"""The row tasks of Concrete's circuits: stage x row x picture.

A row task is one call of a circuit function. Content tasks belong to a pair, style tasks to a
style, which is computed once however many contents it meets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nst.engines.tasks import (
    InputPart,
    PairIds,
    Seconds,
    Source,
    Task,
    TaskGraph,
    lay_out,
)
from nst.network.architecture import CONTENT, STYLE, STYLE_CODE, Branch, rows_read


@dataclass(frozen=True)
class StagePlan:
    """One circuit function and how often a picture calls it.

    Attributes:
        name: Function name.
        branch: Whose input it works on.
        sources: Stages or inputs whose rows it reads.
        reads: Which of their rows, see `nst.network.architecture.Kind.reads`.
        stride: Rows of the source per row of the result.
        modulated: Whether it takes the style code as its last argument.
        rows: Calls per picture.
        pbs: PBS of all these calls.
        operations: Their cost on Concrete's `complexity` scale.
        output_bytes: Size of one call's serialized result.
    """

    name: str
    branch: Branch
    sources: tuple[str, ...]
    reads: tuple[int, ...] | None
    stride: int
    modulated: bool
    rows: int
    pbs: int
    operations: float
    output_bytes: int

    @property
    def pbs_per_row(self) -> int:
        """PBS of one call."""
        return self.pbs // self.rows

    @property
    def in_style(self) -> bool:
        """Whether it belongs to the style branch."""
        return self.branch == STYLE

    @staticmethod
    def from_dict(record: dict[str, Any]) -> StagePlan:
        """Out of a JSON record; raises TypeError or KeyError if it is damaged."""
        reads = record["reads"]
        lists = {
            "sources": tuple(record["sources"]),
            "reads": None if reads is None else tuple(reads),
        }
        return StagePlan(**{**record, **lists})


def build_graph(
    circuits: Sequence[StagePlan],
    heights: Mapping[Branch, int],
    pairs: Sequence[PairIds],
    seconds: Seconds,
) -> TaskGraph:
    """Lay out the row tasks of a job's pairs; see `nst.engines.base.Plan.graph`.

    Args:
        circuits: In order of evaluation.
        heights: Rows of an encrypted content, and of an encrypted style.
        pairs: What is to be done.
        seconds: By stage.
    """
    builder = _Builder(circuits, heights, seconds)

    def add_style(style: str, group: str, rank: int) -> int:
        (code,) = builder.add(STYLE, style, group, rank)
        return code

    return lay_out(pairs, builder.tasks, add_style, partial(builder.add, CONTENT))


class _Builder:
    def __init__(
        self, circuits: Sequence[StagePlan], heights: Mapping[Branch, int], seconds: Seconds
    ) -> None:
        self.circuits, self.heights, self.seconds = circuits, heights, seconds
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
