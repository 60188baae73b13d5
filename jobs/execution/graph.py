"""The task graph of a job, stage x row x picture, as plain data: built and costed before it runs.

A row task is one call of a circuit function. Content tasks belong to a pair, style tasks to a
style picture, which is computed once however many contents it meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.storage.records import PairRecord
from nst.network.integers import is_style
from nst.engines.concrete.plan import CircuitPlan, StagePlan

STYLE_CODE = "style_code"
OUTPUT = "up"


@dataclass(frozen=True)
class InputRow:
    """One row of an encrypted picture, or a stored row, which is the only one of its input."""

    input_id: str
    row: int


Source = int | InputRow
"""Where an argument comes from: the index of a task, or a row of an input."""


@dataclass(frozen=True)
class Task:
    """One call of a circuit function.

    Attributes:
        index: Position in the graph.
        stage: Function to call.
        group: The pair or style it belongs to.
        row: Row of the stage's output.
        sources: Its arguments in order.
        pbs: Its cost.
        output_bytes: Size of its result.
        priority: Lower runs first among the tasks that are ready: pairs in order, and within a
            pair the deepest stage, so that rows are used up soon after they are made.
    """

    index: int
    stage: str
    group: str
    row: int
    sources: tuple[Source, ...]
    pbs: int
    output_bytes: int
    priority: tuple[int, int, int]


@dataclass(frozen=True)
class TaskGraph:
    """All row tasks of a job.

    Attributes:
        tasks: In an order in which sources come before readers.
        outputs: By pair id, the tasks that make the rows of its result, top to bottom; of a job
            that is taken up again, those that are missing.
        pairs_of: By group, the pairs that fail with it.
    """

    tasks: tuple[Task, ...]
    outputs: dict[str, tuple[int, ...]]
    pairs_of: dict[str, tuple[str, ...]]

    @property
    def pbs(self) -> int:
        """PBS of all tasks."""
        return sum(task.pbs for task in self.tasks)

    def bytes_by_group(self) -> dict[str, int]:
        """By group, the bytes of all results that its tasks read: the most it can ever hold."""
        read = {s for task in self.tasks for s in task.sources if isinstance(s, int)}
        out = dict.fromkeys(self.pairs_of, 0)
        for index in read:
            out[self.tasks[index].group] += self.tasks[index].output_bytes
        return out

    def readers(self) -> list[list[int]]:
        """By task, the tasks that read it (once for each distinct reader)."""
        out: list[list[int]] = [[] for _ in self.tasks]
        for task in self.tasks:
            for source in {s for s in task.sources if isinstance(s, int)}:
                out[source].append(task.index)
        return out


def pair_group(pair_id: str) -> str:
    """The group of a pair's own tasks."""
    return f"pair:{pair_id}"


def style_group(style_id: str) -> str:
    """The group of the tasks of a style, which pairs may share."""
    return f"style:{style_id}"


def build_graph(plan: CircuitPlan, pairs: Sequence[PairRecord]) -> TaskGraph:
    """Lay out the row tasks of a job's pairs.

    Args:
        plan: The compiled circuits.
        pairs: What is to be done; earlier pairs get priority.
    """
    builder = _Builder(plan)
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
    def __init__(self, plan: CircuitPlan) -> None:
        self.plan = plan
        self.tasks: list[Task] = []

    def add(
        self, input_id: str, group: str, rank: int, style: bool, code: int | None
    ) -> dict[str, list[int]]:
        """Tasks of one style branch or one content path; returns the rows of each stage."""
        made: dict[str, list[int]] = {}
        for depth, stage in enumerate(self.plan.stages):
            if is_style(stage.name) != style:
                continue
            made[stage.name] = []
            for row in range(stage.rows):
                sources = self._sources(stage, row, made, input_id)
                if stage.modulated and code is not None:
                    sources.append(code)
                task = Task(
                    index=len(self.tasks),
                    stage=stage.name,
                    group=group,
                    row=row,
                    sources=tuple(sources),
                    pbs=stage.pbs_per_row,
                    output_bytes=stage.output_bytes,
                    priority=(rank, -depth, row),
                )
                self.tasks.append(task)
                made[stage.name].append(task.index)
        return made

    @staticmethod
    def _sources(
        stage: StagePlan, row: int, made: dict[str, list[int]], input_id: str
    ) -> list[Source]:
        out: list[Source] = []
        height = stage.rows * stage.stride
        for name in stage.sources:
            count = len(made[name]) if name in made else height
            if stage.kind == "conv":
                center = row * stage.stride
                # Replicate padding: at the border the row itself stands in for its neighbour.
                # A source at half the resolution is enlarged by reading each of its rows twice.
                near = [min(max(center + d, 0), height - 1) for d in (-1, 0, 1)]
                wanted = [i * count // height for i in near]
            elif stage.kind == "row_pool":
                wanted = [row]
            else:
                wanted = list(range(count))
            out += [made[name][i] if name in made else InputRow(input_id, i) for i in wanted]
        return out
