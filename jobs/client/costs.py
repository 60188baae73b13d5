"""What the pairs of a job took, from the trace that its last driver left."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from jobs.client.home import LocalPair
from jobs.storage.records import TaskTrace
from nst.engines.base import Plan
from nst.engines.tasks import result_group


@dataclass(frozen=True)
class PairCost:
    """What one pair took, its style left out: any pairs may share it.

    Attributes:
        seconds: From the start of its first task to the end of its last.
        core_seconds: Sum over its tasks, divided by the pairs that share them.
    """

    seconds: float
    core_seconds: float


def pair_costs(trace: list[TaskTrace], plan: Plan, pairs: list[LocalPair]) -> dict[str, PairCost]:
    """What each pair took, by pair id.

    Known of pairs that one driver has seen through from their first task to the last, once it has
    ended; the others are left out.

    Args:
        trace: Tasks of the job's last driver.
        plan: Its model.
        pairs: Its pairs, as the client knows them.
    """
    tasks: defaultdict[str, list[TaskTrace]] = defaultdict(list)
    for task in trace:
        tasks[task.group].append(task)
    whole = sum(stage.tasks for stage in plan.stages if not stage.style)
    costs, sharing = {}, Counter(pair.result for pair in pairs)
    for pair in pairs:
        own = tasks[result_group(pair.result)]
        if len({(task.stage, task.part) for task in own}) >= whole:
            costs[pair.pair_id] = PairCost(
                seconds=max(t.end for t in own) - min(t.start for t in own),
                core_seconds=sum(t.end - t.start for t in own) / sharing[pair.result],
            )
    return costs
