"""What the pairs of a job took, from the trace that its last driver left."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from jobs.client.home import BookPair
from jobs.execution.graph import pair_group
from jobs.storage import layout
from jobs.storage.records import TaskTrace
from jobs.storage.store import Store
from nst.errors import StoreError
from nst.engines.concrete.plan import CircuitPlan

_TRACE = TypeAdapter(list[TaskTrace])


@dataclass(frozen=True)
class PairCost:
    """What one pair took; its style's part is in it as PBS only, since pairs may share a style.

    Attributes:
        pbs: Of the pair itself.
        style_pbs: Of its style.
        sharing: How many pairs of the job have that style.
        seconds: From the start of its first task to the end of its last, None if not known.
        core_seconds: Sum over its tasks, None if not known.
    """

    pbs: int
    style_pbs: int
    sharing: int
    seconds: float | None
    core_seconds: float | None


def pair_costs(
    store: Store, job_id: str, plan: CircuitPlan, pairs: list[BookPair]
) -> dict[str, PairCost]:
    """What each pair takes, by pair id.

    PBS are the circuits'. Times are known of pairs that one driver has seen through from their
    first task to the last, once it has ended.

    Args:
        store: Where the job is.
        job_id: Which job.
        plan: Its circuits.
        pairs: Its pairs, as the client knows them.
    """
    tasks: defaultdict[str, list[TaskTrace]] = defaultdict(list)
    for task in read_trace(store, job_id):
        tasks[task.group].append(task)
    sharing = Counter(pair.style for pair in pairs)
    costs = {}
    for pair in pairs:
        own = tasks[pair_group(pair.pair_id)]
        whole = sum(task.pbs for task in own) >= plan.pbs_content
        costs[pair.pair_id] = PairCost(
            pbs=plan.pbs_content,
            style_pbs=plan.pbs_style,
            sharing=sharing[pair.style],
            seconds=max(t.end for t in own) - min(t.start for t in own) if whole else None,
            core_seconds=sum(t.end - t.start for t in own) if whole else None,
        )
    return costs


def read_trace(store: Store, job_id: str) -> list[TaskTrace]:
    """The trace, empty where there is none: no result depends on it."""
    try:
        return _TRACE.validate_json(store.read(layout.trace(job_id)))
    except (StoreError, ValidationError):
        return []
