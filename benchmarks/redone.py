"""What a driver's death costs: tasks that run again, in virtual time, by what the store holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.types import Callback, Completion
from jobs.execution.forecast import distinct_pairs
from jobs.execution.resume import StoredResult, without_done
from jobs.execution.simulation import Machines, simulate
from nst.engines import get_engine
from nst.engines.base import Plan
from nst.engines.tasks import Task

DEATHS = 19
"""Moments at which the driver dies, evenly spread over the pair."""


class Ends(Callback[Any]):
    """When each task ended, by its index."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def on_task_end(self, task: Task, completion: Completion[Any], live_bytes: int) -> None:
        """See `Callback`."""
        self.at[task.index] = completion.end


def redone(plan: Plan, actors: int) -> dict[str, float]:
    """Mean share of a pair's work that a second driver does again, by what is stored."""
    graph = plan.graph(distinct_pairs(1), get_engine(plan.engine).rates().seconds(plan.stages))
    (outputs,) = graph.outputs.values()
    ends = Ends()
    last = simulate(graph, Machines(cores=actors), plan.stored, [ends]).wall_s
    kept: dict[str, Callable[[Task], bool]] = {
        "nothing": lambda task: False,
        "checkpoints": lambda task: task.checkpoint,
        "checkpoints_and_result_parts": lambda task: task.checkpoint or task.index in outputs,
    }
    out = {}
    for name, is_kept in kept.items():
        again = 0.0
        for death in range(1, DEATHS + 1):
            done = [t for t in graph.tasks if ends.at[t.index] <= last * death / (DEATHS + 1)]
            there = [t for t in done if is_kept(t)]
            stored = {StoredResult(t.group, t.stage, t.part): "" for t in there if t.checkpoint}
            parts = [t.part for t in there if t.index in outputs]
            rest = without_done(graph, stored, dict.fromkeys(graph.outputs, parts))
            left = {(t.group, t.stage, t.part) for t in rest.tasks}
            again += sum(t.seconds for t in done if (t.group, t.stage, t.part) in left)
        out[name] = again / DEATHS / graph.seconds
    return out
