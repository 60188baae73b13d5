"""One loop that walks a task graph, shared by every executor.

**The policy** is two functions: `priority` orders the tasks that are ready, and `_Walk._admit` lets
a pair begin when all it could ever hold at once fits into the executor's memory beside the pairs
that are in flight. Engines know nothing of it.

The executor is kept supplied with a little more than it can run, so that it never waits for this
loop; results are released as soon as their last reader is done, which keeps a few results per stage
alive and not whole pictures.

Executors lose things: an actor is killed, a node goes and takes results with it. A task that was
running is started again; a result that is gone and still needed is computed again, and before it
whatever it was computed from and has been released. Both only so many times per task.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from cluster.types import Callback, Completion, Executor, Handle, LostError
from nst.engines.tasks import InputPart, Task, TaskGraph
from nst.errors import first_line

MAX_ATTEMPTS = 3
"""Times a task is tried that fails or takes its worker with it."""
MAX_LOSSES = 20
"""Times a task is begun again through no fault of its own: its node or its arguments are gone."""
TICK = 1.0
"""Seconds between two ticks, at most."""

Priority = tuple[int, int, int]


def priority(task: Task) -> Priority:
    """Lower runs first among the tasks that are ready: pairs in order, and in a pair the deepest.

    So results are used up soon after they are made.
    """
    return task.rank, -task.depth, task.part


@dataclass(frozen=True)
class Control:
    """What the owner of a walk wants changed.

    Attributes:
        stop: Start nothing more and return.
        drop: Pairs that need not be computed any more.
    """

    stop: bool = False
    drop: frozenset[str] = frozenset()


GO_ON = Control()


def run_graph(
    graph: TaskGraph,
    executor: Executor[Handle],
    read_input: Callable[[str], Sequence[bytes]],
    callbacks: Sequence[Callback[Handle]],
    control: Callable[[], Control] = lambda: GO_ON,
) -> None:
    """Walk a graph to its end; a failed pair takes nothing but its own tasks with it.

    Args:
        graph: What to run; results without missing parts are done at once.
        executor: What runs it; closed before the callbacks are told of the end.
        read_input: Parts of an encrypted picture by id; called when its first part is needed, and
            again if that happens after its last reader was done. An exception of it fails the
            picture's pairs.
        callbacks: Told of everything, in this order; their exceptions end the walk.
        control: Asked before tasks are started.
    """
    _Walk(graph, executor, read_input, callbacks).run(control)


class _Walk(Generic[Handle]):
    def __init__(
        self,
        graph: TaskGraph,
        executor: Executor[Handle],
        read_input: Callable[[str], Sequence[bytes]],
        callbacks: Sequence[Callback[Handle]],
    ) -> None:
        self.graph, self.executor = graph, executor
        self.read_input, self.callbacks = read_input, callbacks
        self.readers = graph.readers()
        self.missing = [_task_sources(task) for task in graph.tasks]
        """By task, the tasks whose results it waits for."""
        # A task's result is wanted by its readers and, in the last stage, by the callbacks.
        self.wanted = [len(r) for r in self.readers]
        self.part_of = {
            i: (made, graph.tasks[i].part) for made, parts in graph.outputs.items() for i in parts
        }
        self.parts_left = {result: len(parts) for result, parts in graph.outputs.items()}
        self.handles: dict[int, Handle] = {}
        self.inputs: dict[str, list[Handle]] = {}
        self.input_readers: dict[str, int] = {}
        for task in graph.tasks:
            for input_id in _input_ids(task):
                self.input_readers[input_id] = self.input_readers.get(input_id, 0) + 1
        self.ready: list[tuple[Priority, int]] = []
        self.unstarted: dict[str, set[int]] = {group: set() for group in graph.pairs_of}
        for task in graph.tasks:
            self.unstarted[task.group].add(task.index)
            self._offer(task.index)
        self.groups_of: dict[str, list[str]] = {}
        for group, pairs in graph.pairs_of.items():
            for pair in pairs:
                self.groups_of.setdefault(pair, []).append(group)
        self.over: set[str] = set()
        """Pairs of which nothing more is to be computed: done, failed or dropped."""
        self.living = {group: len(pairs) for group, pairs in graph.pairs_of.items()}
        """By group, its pairs that are not over."""
        self.running: dict[int, Sequence[Handle]] = {}
        """Arguments of the tasks that the executor has."""
        self.attempts: dict[int, int] = {}
        self.losses: dict[int, int] = {}
        self.live_bytes = 0
        self.needs = graph.bytes_by_group()
        self.admitted: set[str] = set()
        """Groups that have begun; those that have ended leave when memory is short."""
        self.reserved = 0
        """Bytes that the admitted groups need."""
        self.refused: list[tuple[Priority, int]] = []
        """Ready tasks of groups for which there was no memory."""

    def run(self, control: Callable[[], Control]) -> None:
        for callback in self.callbacks:
            callback.on_start(self.graph)
        for result in [result for result, parts in self.parts_left.items() if not parts]:
            self._finish(result)
        self._walk(control)
        self.executor.close()
        for callback in self.callbacks:
            callback.on_end()

    def _walk(self, control: Callable[[], Control]) -> None:
        while not (wanted := control()).stop:
            for pair_id in wanted.drop:
                self._close(pair_id)
            while len(self.running) < self.executor.capacity and (task := self._next()):
                self._start(task)
            left = self.ready or self.refused
            if not self.running and not (left and any(self.unstarted.values())):
                return
            for callback in self.callbacks:
                callback.on_tick(len(self.running), self.executor.nodes, self.live_bytes)
            for completion in self.executor.wait(TICK):
                given = self.running.pop(completion.index)
                self._end(self.graph.tasks[completion.index], completion, given)

    def _offer(self, index: int) -> None:
        """Make a task ready if it waits for nothing."""
        if not self.missing[index]:
            heapq.heappush(self.ready, (priority(self.graph.tasks[index]), index))

    def _next(self) -> Task | None:
        """The ready task of highest priority whose group is admitted, or can be."""
        while self.refused and self.graph.tasks[self.refused[0][1]].group in self.admitted:
            heapq.heappush(self.ready, heapq.heappop(self.refused))
        while self.ready:
            entry = heapq.heappop(self.ready)
            task = self.graph.tasks[entry[1]]
            # A task that has been given up needs no memory: `_start` passes it over.
            if task.group in self.admitted or task.index not in self.unstarted[task.group]:
                return task
            if not self.refused and self._admit(task.group):
                return task
            heapq.heappush(self.refused, entry)
        if self.refused and self._admit(self.graph.tasks[self.refused[0][1]].group):
            return self.graph.tasks[heapq.heappop(self.refused)[1]]
        return None

    def _admit(self, group: str) -> bool:
        """Whether there is memory for one more group.

        With nothing in flight there always is: better to try than to wait for ever.
        """
        memory = self.executor.memory
        if self.reserved + self.needs[group] > memory:
            at_work = {self.graph.tasks[index].group for index in self.running}
            self.admitted = {g for g in self.admitted if self.unstarted[g] or g in at_work}
            self.reserved = sum(self.needs[g] for g in self.admitted)
            if at_work and self.reserved + self.needs[group] > memory:
                return False
        self.admitted.add(group)
        self.reserved += self.needs[group]
        return True

    def _start(self, task: Task) -> None:
        if task.index not in self.unstarted[task.group] or self.missing[task.index]:
            return  # Given up since it became ready, or an argument was lost.
        self.unstarted[task.group].remove(task.index)
        try:
            parts = {s: self._input(s) for s in task.sources if isinstance(s, InputPart)}
        except Exception as error:
            self._fail(task, first_line(error))
            return
        given = [parts[s] if isinstance(s, InputPart) else self.handles[s] for s in task.sources]
        self.executor.submit(task, given)
        self.running[task.index] = given
        for callback in self.callbacks:
            callback.on_task_start(task)

    def _input(self, source: InputPart) -> Handle:
        if source.input_id not in self.inputs:
            parts = self.read_input(source.input_id)
            self.inputs[source.input_id] = [self.executor.put(part) for part in parts]
        return self.inputs[source.input_id][source.part]

    def _end(self, task: Task, completion: Completion[Handle], given: Sequence[Handle]) -> None:
        handle = completion.handle
        if completion.error is not None or handle is None:
            self._failed_attempt(task, completion, given)
            return
        self.live_bytes += task.output_bytes
        for callback in self.callbacks:
            callback.on_task_end(task, completion, self.live_bytes)
        try:
            if task.index in self.part_of and not self._dead(task.group):
                self._deliver(*self.part_of[task.index], handle)
        except LostError as error:
            self.live_bytes -= task.output_bytes
            gone: Completion[Handle] = Completion(task.index, None, str(error), blamed=False)
            self._failed_attempt(task, gone, given)
            return
        self._release_sources(task)
        if not self.wanted[task.index]:
            self.live_bytes -= task.output_bytes
            return
        self.handles[task.index] = handle
        for reader in self.readers[task.index]:
            if task.index in self.missing[reader]:
                self.missing[reader].remove(task.index)
                self._offer(reader)

    def _deliver(self, result: str, part: int, handle: Handle) -> None:
        ciphertext = self.executor.get(handle)
        for callback in self.callbacks:
            callback.on_result_part(result, part, ciphertext)
        self.parts_left[result] -= 1
        if not self.parts_left[result]:
            self._finish(result)

    def _finish(self, result: str) -> None:
        for pair_id in self.graph.pairs(result):
            if pair_id not in self.over:
                for callback in self.callbacks:
                    callback.on_pair_done(pair_id)
                self._close(pair_id)

    def _failed_attempt(
        self, task: Task, completion: Completion[Handle], given: Sequence[Handle]
    ) -> None:
        error = completion.error or "failed without a reason"
        for callback in self.callbacks:
            callback.on_attempt_failed(task, error)
        if not self._put_back(task, error, completion.blamed and not completion.lost):
            return
        for position in completion.lost:
            source = task.sources[position]
            # What another reader has missed as well may have been made again meanwhile.
            if isinstance(source, InputPart):
                parts = self.inputs.get(source.input_id)
                if parts is not None and parts[source.part] is given[position]:
                    del self.inputs[source.input_id]
            elif self.handles.get(source) is given[position]:
                self._recompute(source)
        self.missing[task.index] = _task_sources(task) - self.handles.keys()
        self._offer(task.index)

    def _put_back(self, task: Task, error: str, blamed: bool) -> bool:
        """Make a task that was running one to be started, if it may and a pair needs it."""
        counts, limit = (self.attempts, MAX_ATTEMPTS) if blamed else (self.losses, MAX_LOSSES)
        counts[task.index] = counts.get(task.index, 0) + 1
        if self._dead(task.group):
            self._release_sources(task)
            return False
        if counts[task.index] >= limit:
            self._fail(task, error)
            return False
        self.unstarted[task.group].add(task.index)
        return True

    def _recompute(self, index: int) -> None:
        """Have a lost or released result made again for the readers that still come."""
        task = self.graph.tasks[index]
        if self.handles.pop(index, None) is not None:
            self.live_bytes -= task.output_bytes
        for reader in self.readers[index]:
            if reader in self.unstarted[self.graph.tasks[reader].group]:
                self.missing[reader].add(index)
        if index in self.running or index in self.unstarted[task.group]:
            return
        self.unstarted[task.group].add(index)
        for source in _task_sources(task):
            self.wanted[source] += 1
            if source not in self.handles:
                self.missing[index].add(source)
                self._recompute(source)
        for input_id in _input_ids(task):
            self.input_readers[input_id] += 1
        self._offer(index)

    def _release_sources(self, task: Task) -> None:
        for source in _task_sources(task):
            self.wanted[source] -= 1
            # A task that is given up may never have had all its sources.
            if not self.wanted[source] and source in self.handles:
                del self.handles[source]
                self.live_bytes -= self.graph.tasks[source].output_bytes
        for input_id in _input_ids(task):
            self.input_readers[input_id] -= 1
            if not self.input_readers[input_id]:
                self.inputs.pop(input_id, None)

    def _fail(self, task: Task, reason: str) -> None:
        self._release_sources(task)
        for pair_id in self.graph.pairs_of[task.group]:
            if pair_id not in self.over:
                for callback in self.callbacks:
                    callback.on_pair_failed(pair_id, reason)
                self._close(pair_id)

    def _close(self, pair_id: str) -> None:
        """Drop the tasks that no pair needs any more, and with them their claims on results."""
        if pair_id in self.over:
            return
        self.over.add(pair_id)
        for group in self.groups_of.get(pair_id, ()):
            self.living[group] -= 1
            if self._dead(group):
                for index in self.unstarted[group]:
                    self._release_sources(self.graph.tasks[index])
                self.unstarted[group] = set()

    def _dead(self, group: str) -> bool:
        return not self.living[group]


def _task_sources(task: Task) -> set[int]:
    return {s for s in task.sources if isinstance(s, int)}


def _input_ids(task: Task) -> set[str]:
    return {s.input_id for s in task.sources if isinstance(s, InputPart)}
