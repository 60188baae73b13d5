"""The task graph of a job as plain data: built and costed by an engine before anything runs.

A task is one call of a stage on ciphertexts; it belongs to a group, which is a result or a style
that several results share. What walks a graph (`jobs.execution.scheduler`) knows sources, seconds
and bytes, and nothing of what a stage computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class PairIds(Protocol):
    """A pair by the opaque ids of its encrypted pictures, and of the result that it has a part in.

    Pairs of one result have the same encrypted pictures: they share ciphertexts.
    """

    @property
    def pair_id(self) -> str: ...

    @property
    def content(self) -> str: ...

    @property
    def style(self) -> str: ...

    @property
    def result(self) -> str: ...


@dataclass(frozen=True)
class ResultIds:
    """A result by its opaque ids.

    Attributes:
        result: Its own.
        content: Of the encrypted contents.
        style: Of the encrypted styles.
        pairs: Whose it is.
    """

    result: str
    content: str
    style: str
    pairs: tuple[str, ...]


def results_of(pairs: Iterable[PairIds]) -> list[ResultIds]:
    """The results of pairs, in order of their first pairs."""
    first: dict[str, PairIds] = {}
    members: dict[str, list[str]] = {}
    for pair in pairs:
        first.setdefault(pair.result, pair)
        members.setdefault(pair.result, []).append(pair.pair_id)
    return [
        ResultIds(result, pair.content, pair.style, tuple(members[result]))
        for result, pair in first.items()
    ]


@dataclass(frozen=True)
class InputPart:
    """One ciphertext of an encrypted picture; a stored result is the only part of its input."""

    input_id: str
    part: int


Source = int | InputPart
"""Where an argument comes from: the index of a task, or a part of an input."""


@dataclass(frozen=True)
class Task:
    """One call of a stage.

    Attributes:
        index: Position in the graph.
        stage: Function to call.
        group: The result or style it belongs to.
        part: Which part of the stage's output it makes.
        sources: Its arguments in order.
        seconds: Of one core, at the rates that the graph was built with.
        output_bytes: Size of its result.
        rank: Of its result in the job; a style has that of its first result.
        depth: Of its stage in the network.
        checkpoint: Whether its result is worth storing for a driver that resumes the job.
    """

    index: int
    stage: str
    group: str
    part: int
    sources: tuple[Source, ...]
    seconds: float
    output_bytes: int
    rank: int
    depth: int
    checkpoint: bool = False


@dataclass(frozen=True)
class TaskGraph:
    """All tasks of a job.

    Attributes:
        tasks: In an order in which sources come before readers.
        outputs: By result, the tasks that make its parts, in order; of a job that is resumed,
            those that are missing.
        pairs_of: By group, the pairs that fail with it.
    """

    tasks: tuple[Task, ...]
    outputs: dict[str, tuple[int, ...]]
    pairs_of: dict[str, tuple[str, ...]]

    @property
    def seconds(self) -> float:
        """Core-seconds of all tasks: divided by the cores, no job is faster."""
        return math.fsum(task.seconds for task in self.tasks)

    def pairs(self, result: str) -> tuple[str, ...]:
        """Whose a result is."""
        return self.pairs_of[result_group(result)]

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


def lay_out(
    pairs: Iterable[PairIds],
    tasks: list[Task],
    add_style: Callable[[str, str, int], int],
    add_result: Callable[[str, str, int, int], Sequence[int]],
) -> TaskGraph:
    """The graph of pairs, whose styles are computed once each.

    Args:
        pairs: What is to be done; the order of their results is the rank.
        tasks: Filled by the two functions.
        add_style: Adds the tasks of a style by its id, group and rank; returns that of the code.
        add_result: Adds those of a result by the id of its contents, its group and rank, and the
            task of its style code; returns those that make its parts, in order.
    """
    codes: dict[str, int] = {}
    outputs: dict[str, tuple[int, ...]] = {}
    pairs_of: dict[str, list[str]] = {}
    for rank, wanted in enumerate(results_of(pairs)):
        shared, own = style_group(wanted.style), result_group(wanted.result)
        if wanted.style not in codes:
            codes[wanted.style] = add_style(wanted.style, shared, rank)
        made = add_result(wanted.content, own, rank, codes[wanted.style])
        outputs[wanted.result] = tuple(made)
        pairs_of.setdefault(shared, []).extend(wanted.pairs)
        pairs_of[own] = list(wanted.pairs)
    groups = {name: tuple(members) for name, members in pairs_of.items()}
    return TaskGraph(tuple(tasks), outputs, groups)


@dataclass(frozen=True)
class StageShape:
    """What a report may say of a stage: how many tasks it takes per pair, and their cost.

    Attributes:
        name: Of the stage.
        tasks: Per result, or per style in the style branch.
        work: Of one task, in the engine's own unit.
        style: Whether it belongs to the style branch, which is computed once per style.
    """

    name: str
    tasks: int
    work: float
    style: bool


Seconds = Mapping[str, float]
"""By stage, core-seconds of one task."""


def result_group(result: str) -> str:
    """The group of the tasks of a result alone."""
    return f"result:{result}"


STYLE_GROUP = "style:"


def style_group(style_id: str) -> str:
    """The group of the tasks of a style, which results may share."""
    return f"{STYLE_GROUP}{style_id}"


def is_style_group(group: str) -> bool:
    """Whether a group is that of a style."""
    return group.startswith(STYLE_GROUP)


def style_of(group: str) -> str:
    """The style that a group is of; empty if it is a result's."""
    return group.removeprefix(STYLE_GROUP) if is_style_group(group) else ""
