"""What a driver's death costs: tasks that run again, in virtual time, by what the store holds."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from jobs.execution.checkpoints import StoredRow, checkpointed, without_done
from jobs.storage.records import PairRecord
from nst.engines.concrete.plan import CircuitPlan
from nst.engines.tasks import Task, TaskGraph, build_graph

DEATHS = 19
"""Moments at which the driver dies, evenly spread over the pair."""


def redone(plan: CircuitPlan, actors: int) -> dict[str, float]:
    """Mean share of a pair's PBS that a second driver computes again, by what is stored."""
    graph = build_graph(plan, [PairRecord(pair_id="p", content="c", style="s")])
    ends = virtual_ends(graph, actors)
    last = max(ends)
    style, all_stages = frozenset({"style_code"}), checkpointed(plan, actors)
    kept: dict[str, Callable[[Task], bool]] = {
        "nothing": lambda _: False,
        "style_code": lambda task: task.stage in style,
        "style_code_and_result_rows": lambda task: task.stage in style | {"up"},
        "all_boundaries_and_result_rows": lambda task: task.stage in all_stages | {"up"},
    }
    out = {}
    for name, is_kept in kept.items():
        again = 0
        for death in range(1, DEATHS + 1):
            done = {t.index for t, end in zip(graph.tasks, ends, strict=True)
                    if end <= last * death / (DEATHS + 1)}  # fmt: skip
            there = [t for t in graph.tasks if t.index in done and is_kept(t)]
            stored = {StoredRow(t.group, t.stage, t.row): "" for t in there if t.stage != "up"}
            rest = without_done(graph, stored, {"p": [t.row for t in there if t.stage == "up"]})
            left = {(t.stage, t.row) for t in rest.tasks}
            again += sum(graph.tasks[i].pbs for i in done
                         if (graph.tasks[i].stage, graph.tasks[i].row) in left)  # fmt: skip
        out[name] = again / DEATHS / graph.pbs
    return out


def virtual_ends(graph: TaskGraph, actors: int) -> list[float]:
    """When each task ends on so many actors that compute a PBS in a unit of time."""
    missing = [len({s for s in t.sources if isinstance(s, int)}) for t in graph.tasks]
    readers = graph.readers()
    ready = [(priority(t), t.index) for t in graph.tasks if not missing[t.index]]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    ends, now = [0.0] * len(graph.tasks), 0.0
    while ready or running:
        while ready and len(running) < actors:
            index = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + graph.tasks[index].pbs, index))
        now, index = heapq.heappop(running)
        ends[index] = now
        for reader in readers[index]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, (priority(graph.tasks[reader]), reader))
    return ends
