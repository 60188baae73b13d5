"""The driver's own time for a task, with the real scheduler and the real executor on Ray."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import ray

from cluster.executor import Held, RayExecutor
from cluster.local import local_ray
from cluster.types import Callback
from jobs.execution.scheduler import run_graph
from nst.engines.tasks import Task, TaskGraph

SOURCES = 10
"""Arguments of a task, as at low."""
WAIT = 0.2
"""Seconds of a task, far less than a thousand workers leave the driver for all of theirs."""


@ray.remote(num_cpus=1)
class StandIn:
    """As many workers as wanted, in one process: their tasks do nothing for a while."""

    def ready(self) -> str:
        """Like `EvaluatorActor`."""
        return ""

    @ray.method(num_returns=2)
    async def run(self, stage: str, *inputs: Any) -> tuple[Any, dict[str, float]]:
        """Like `EvaluatorActor`."""
        await asyncio.sleep(WAIT)
        now = time.time()
        return np.zeros(8, np.uint8), {"start": now, "end": now, "cpu_s": 0.0}


class StandInExecutor(RayExecutor):
    """The real executor, all of whose actors are one."""

    shared: Any = None

    def _fill(self, slot: Any) -> None:
        slot.actor, slot.coming = self.shared, None


class NoneFails(Callback[Held]):
    """Ends the walk if a task fails."""

    def on_pair_failed(self, pair_id: str, reason: str) -> None:
        """See `Callback`."""
        raise AssertionError(reason)


def time_dispatch(actors: int, tasks: int) -> float:
    """Seconds per task of a walk on so many stand-ins, less what waiting for them takes."""
    graph = TaskGraph(
        tuple(
            Task(
                index=index,
                stage="none",
                group="result:p",
                part=index,
                sources=tuple(range(SOURCES)) if index >= SOURCES else (),
                seconds=WAIT,
                output_bytes=8,
                rank=0,
                depth=0,
            )
            for index in range(tasks)
        ),
        {"p": (tasks - 1,)},
        {"result:p": ("p",)},
    )
    with local_ray(1):
        StandInExecutor.shared = StandIn.options(max_concurrency=4 * actors).remote()
        ray.get(StandInExecutor.shared.ready.remote())
        executor = StandInExecutor(actors, lambda: None)  # type: ignore[arg-type,return-value]
        start, cpu = time.perf_counter(), time.thread_time()
        run_graph(graph, executor, lambda _: [], [NoneFails()])
        spent = time.perf_counter() - start, time.thread_time() - cpu
    print(f"{actors} actors: {spent[0] / tasks:.2e} s per task, {spent[1] / tasks:.2e} s of CPU")
    return spent[1] / tasks
