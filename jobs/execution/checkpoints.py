"""Which of a job's encrypted state is worth its bytes, and what is left to do with what is there.

All of it is plain data: a plan goes in and comes out as stages to be stored; a graph and a list of
rows that are there go in and come out as the graph of the rest.

**The rule.** Rows of results that are there are never computed again; they cost no further byte.
Style codes are always stored: some 2 MB, behind which lies a whole branch. Of the content path a
boundary after some stage is stored if a second of the store's time, `STORE_BYTES_PER_SECOND` both
written and read, saves at least `WORTH` core-seconds, or as many as the job has actors if these
are more: on more actors computing is quicker than fetching. A boundary consists of all rows that
later stages read. One that stores a value for every PBS behind it comes to some 56 core-seconds a
second at the shipped parameters and is not worth it; one behind which most of what has been
computed is never read again is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from jobs.execution.graph import STYLE_CODE, InputRow, Source, Task, TaskGraph
from nst.network.integers import is_style
from nst.engines.concrete.plan import CircuitPlan, StagePlan

OPERATIONS_PER_CORE_SECOND = 3.8e9
"""Of Concrete's `complexity`, on one core: `make bench-low` on a 2-core AMD EPYC."""
STORE_BYTES_PER_SECOND = 100e6
"""What one driver writes to or reads from a store."""
WORTH = 75.0
"""Core-seconds that a second of the store's time must save."""


@dataclass(frozen=True)
class Boundary:
    """A point in a network at which what later stages read may be stored.

    Attributes:
        after: The last stage before it.
        stages: What is stored there and was not at an earlier boundary.
        bytes: Size of all rows of these stages.
        pbs: What has been computed since the boundary before.
        core_seconds: Likewise.
    """

    after: str
    stages: tuple[str, ...]
    bytes: int
    pbs: int
    core_seconds: float

    @property
    def worth(self) -> float:
        """Core-seconds saved by a second of the store's time."""
        return self.core_seconds / (2 * self.bytes / STORE_BYTES_PER_SECOND)


def boundaries(plan: CircuitPlan, actors: int) -> tuple[Boundary, ...]:
    """Where a job of so many actors stores its state: first the style code, then by the rule."""
    style = [stage for stage in plan.stages if is_style(stage.name)]
    content = [stage for stage in plan.stages if not is_style(stage.name)]
    chosen = [_boundary(style, [stage for stage in style if stage.name == STYLE_CODE])]
    stored: set[str] = set()
    since: list[StagePlan] = []
    # The last stage's rows are the result and stored as such.
    for position, stage in enumerate(content[:-1]):
        since.append(stage)
        wanted = {source for later in content[position + 1 :] for source in later.sources}
        live = [s for s in content[: position + 1] if s.name in wanted and s.name not in stored]
        if not live:
            continue
        candidate = _boundary(since, live)
        if candidate.worth >= max(WORTH, actors):
            chosen.append(candidate)
            stored |= set(candidate.stages)
            since = []
    return tuple(chosen)


def _boundary(behind: list[StagePlan], stored: list[StagePlan]) -> Boundary:
    operations = sum(stage.operations for stage in behind)
    return Boundary(
        after=behind[-1].name,
        stages=tuple(stage.name for stage in stored),
        bytes=sum(stage.rows * stage.output_bytes for stage in stored),
        pbs=sum(stage.pbs for stage in behind),
        core_seconds=operations / OPERATIONS_PER_CORE_SECOND,
    )


@dataclass(frozen=True)
class StoredRow:
    """A row of a stage that is in the store: of a pair or of a style, see `Task.group`."""

    group: str
    stage: str
    row: int


def without_done(
    graph: TaskGraph, stored: Mapping[StoredRow, str], results: Mapping[str, Iterable[int]]
) -> TaskGraph:
    """What is left of a graph.

    Args:
        graph: All of a job's tasks.
        stored: Rows that need not be computed, and the input ids that name them from now on.
        results: By pair id, the rows of its result that are there.

    Returns:
        A graph without the tasks that nobody reads any more, in which `outputs` has the missing
        rows only.
    """
    there = {pair: set(rows) for pair, rows in results.items()}
    missing = {
        pair: [i for i in tasks if graph.tasks[i].row not in there.get(pair, ())]
        for pair, tasks in graph.outputs.items()
    }

    def input_of(index: int) -> str | None:
        task = graph.tasks[index]
        return stored.get(StoredRow(task.group, task.stage, task.row))

    needed: set[int] = set()
    ahead = [index for tasks in missing.values() for index in tasks]
    while ahead:
        index = ahead.pop()
        if index in needed:
            continue
        needed.add(index)
        sources = graph.tasks[index].sources
        ahead += [s for s in sources if isinstance(s, int) and input_of(s) is None]
    renumbered = {old: new for new, old in enumerate(sorted(needed))}

    def source(old: Source) -> Source:
        if isinstance(old, InputRow):
            return old
        name = input_of(old)
        return renumbered[old] if name is None else InputRow(name, 0)

    def moved(task: Task) -> Task:
        sources = tuple(source(s) for s in task.sources)
        return replace(task, index=renumbered[task.index], sources=sources)

    return TaskGraph(
        tasks=tuple(moved(graph.tasks[old]) for old in sorted(needed)),
        outputs={pair: tuple(renumbered[i] for i in tasks) for pair, tasks in missing.items()},
        pairs_of=graph.pairs_of,
    )


def checkpointed(plan: CircuitPlan, actors: int) -> frozenset[str]:
    """Names of the stages whose rows are stored."""
    return frozenset(s for boundary in boundaries(plan, actors) for s in boundary.stages)
