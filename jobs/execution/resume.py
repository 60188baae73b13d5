"""What is left to do of a job that an earlier driver has begun.

All but `copy_results` is plain data: a graph and what is stored of it go in, the graph of the rest
comes out. Parts of results that are there are never computed again, and neither is a stage whose
result is stored as a checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from jobs.storage import layout
from jobs.storage.records import JobRecord
from jobs.storage.store import Store
from nst.ciphertext import Envelope, most_bytes
from nst.engines.base import Plan
from nst.engines.tasks import InputPart, Source, Task, TaskGraph
from nst.errors import NstBatchError


@dataclass(frozen=True)
class StoredResult:
    """A task's output that is in the store: of a result or of a style, see `Task.group`."""

    group: str
    stage: str
    part: int


def without_done(
    graph: TaskGraph, stored: Mapping[StoredResult, str], results: Mapping[str, Iterable[int]]
) -> TaskGraph:
    """What is left of a graph.

    Args:
        graph: All of a job's tasks.
        stored: Results that need not be computed, and the input ids that name them from now on.
        results: By result, the parts of it that are there.

    Returns:
        A graph without the tasks that no task reads any more, in which `outputs` has the missing
        parts only.
    """
    there = {result: set(parts) for result, parts in results.items()}
    missing = {
        result: [i for i in tasks if graph.tasks[i].part not in there.get(result, ())]
        for result, tasks in graph.outputs.items()
    }

    def input_of(index: int) -> str | None:
        task = graph.tasks[index]
        return stored.get(StoredResult(task.group, task.stage, task.part))

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
        if isinstance(old, InputPart):
            return old
        name = input_of(old)
        return renumbered[old] if name is None else InputPart(name, 0)

    def moved(task: Task) -> Task:
        sources = tuple(source(s) for s in task.sources)
        return replace(task, index=renumbered[task.index], sources=sources)

    return TaskGraph(
        tasks=tuple(moved(graph.tasks[old]) for old in sorted(needed)),
        outputs={made: tuple(renumbered[i] for i in tasks) for made, tasks in missing.items()},
        pairs_of=graph.pairs_of,
    )


def copy_results(
    store: Store,
    job: JobRecord,
    plan: Plan,
    attempt: str,
    results: set[str],
    keep_alive: Callable[[], None],
) -> dict[str, set[int]]:
    """Copy the parts of unfinished results that other drivers have left, as one's own.

    Copies, because a driver that is alive after all deletes its own if it comes second.

    Args:
        store: Where the job is.
        job: Its record.
        plan: Its model.
        attempt: This driver's.
        results: Those of pairs that have not ended.
        keep_alive: Called after every part: copying a large job takes minutes.

    Returns:
        By result, the parts that are there now. Damaged ones are not.
    """
    wanted = {
        layout.part_in_attempt(result, part): (result, part)
        for result in results
        for part in range(plan.stored.result_parts)
    }
    there: dict[str, set[int]] = {}
    prefix = layout.results(job.job_id)
    for key in store.list(prefix):
        other, _, name = key.removeprefix(prefix).partition("/")
        if other == attempt or name not in wanted:
            continue
        result, part = wanted[name]
        if part in there.get(result, ()):
            continue
        with contextlib.suppress(NstBatchError):
            blob = store.read(key, most_bytes(1, plan.stored.result_part))
            envelope = Envelope.unpack(blob, key)
            envelope.require(job.key_id, job.model_id, key)
            envelope.require_place(layout.result_place(job.job_id, result, part), key)
            plan.require_result(envelope, key)
            store.write(layout.result_part(job.job_id, attempt, result, part), blob)
            there.setdefault(result, set()).add(part)
        keep_alive()
    return there
