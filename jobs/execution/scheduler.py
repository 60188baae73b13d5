"""One loop that walks a task graph, shared by every executor.

Ready tasks wait in a heap by priority; the executor is kept supplied with a little more than it
can run, so that it never waits for this loop; results are released as soon as their last reader
is done, which keeps a few rows a stage alive and not whole pictures.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.execution.graph import InputRow, Task, TaskGraph

Handle = Any
"""An executor's reference to a ciphertext it holds."""


@dataclass(frozen=True)
class Completion:
    """The end of one task: a handle to its result, or an error in one line."""

    index: int
    handle: Handle | None
    error: str | None
    start: float = 0.0
    end: float = 0.0
    cpu_s: float = 0.0


class Executor(Protocol):
    """Runs row tasks somewhere."""

    @property
    def capacity(self) -> int:
        """How many tasks it wants to have at once, running and queued."""
        ...

    def put(self, blob: bytes) -> Handle:
        """Take over a ciphertext."""
        ...

    def get(self, handle: Handle) -> bytes:
        """Hand out a ciphertext."""
        ...

    def submit(self, task: Task, inputs: Sequence[Handle]) -> None:
        """Start a task."""
        ...

    def wait(self) -> list[Completion]:
        """Block until at least one started task has ended."""
        ...


class Listener(Protocol):
    """What the owner of a run is told while it runs."""

    def task_done(self, task: Task, completion: Completion, live_bytes: int) -> None:
        """A task has ended well; `live_bytes` of results are held at this moment."""
        ...

    def row_done(self, pair_id: str, row: int, ciphertext: bytes) -> None:
        """A row of a pair's result is there."""
        ...

    def pair_done(self, pair_id: str) -> None:
        """All rows of a pair's result have been told."""
        ...

    def pair_failed(self, pair_id: str, reason: str) -> None:
        """A pair cannot be finished."""
        ...


def run_graph(
    graph: TaskGraph,
    executor: Executor,
    read_input: Callable[[str], Sequence[bytes]],
    listener: Listener,
) -> None:
    """Walk a graph to its end; a failed pair takes nothing but its own tasks with it.

    Args:
        graph: What to run.
        executor: What runs it.
        read_input: Rows of an encrypted picture by id; called once a picture, when its first
            row is needed. An exception of it fails the picture's pairs.
        listener: Told of everything.
    """
    _Walk(graph, executor, read_input, listener).run()


class _Walk:
    def __init__(
        self,
        graph: TaskGraph,
        executor: Executor,
        read_input: Callable[[str], Sequence[bytes]],
        listener: Listener,
    ) -> None:
        self.graph, self.executor = graph, executor
        self.read_input, self.listener = read_input, listener
        self.readers = graph.readers()
        self.waiting = [len({s for s in t.sources if isinstance(s, int)}) for t in graph.tasks]
        # A task's result is wanted by its readers and, in the last stage, by the listener.
        self.wanted = [len(r) for r in self.readers]
        self.row_of = {i: (p, r) for p, rows in graph.outputs.items() for r, i in enumerate(rows)}
        self.rows_left = {pair: len(rows) for pair, rows in graph.outputs.items()}
        self.handles: dict[int, Handle] = {}
        self.inputs: dict[str, list[Handle]] = {}
        self.input_readers: dict[str, int] = {}
        for task in graph.tasks:
            for input_id in _input_ids(task):
                self.input_readers[input_id] = self.input_readers.get(input_id, 0) + 1
        self.ready = [(t.priority, t.index) for t in graph.tasks if not self.waiting[t.index]]
        heapq.heapify(self.ready)
        self.unstarted: dict[str, set[int]] = {group: set() for group in graph.pairs_of}
        for task in graph.tasks:
            self.unstarted[task.group].add(task.index)
        self.groups_of: dict[str, list[str]] = {}
        for group, pairs in graph.pairs_of.items():
            for pair in pairs:
                self.groups_of.setdefault(pair, []).append(group)
        self.failed_pairs: set[str] = set()
        self.running = 0
        self.live_bytes = 0

    def run(self) -> None:
        while True:
            while self.ready and self.running < self.executor.capacity:
                self._start(self.graph.tasks[heapq.heappop(self.ready)[1]])
            if not self.running:
                return
            for completion in self.executor.wait():
                self.running -= 1
                self._end(self.graph.tasks[completion.index], completion)

    def _start(self, task: Task) -> None:
        if task.index not in self.unstarted[task.group]:
            return  # Given up since it became ready.
        self.unstarted[task.group].remove(task.index)
        try:
            rows = {s: self._input(s) for s in task.sources if isinstance(s, InputRow)}
        except Exception as error:
            self._fail(task, (str(error).strip().splitlines() or [type(error).__name__])[0])
            return
        self.executor.submit(
            task, [rows[s] if isinstance(s, InputRow) else self.handles[s] for s in task.sources]
        )
        self.running += 1

    def _input(self, source: InputRow) -> Handle:
        if source.input_id not in self.inputs:
            rows = self.read_input(source.input_id)
            self.inputs[source.input_id] = [self.executor.put(row) for row in rows]
        return self.inputs[source.input_id][source.row]

    def _end(self, task: Task, completion: Completion) -> None:
        if completion.error is not None:
            self._fail(task, completion.error)
            return
        self.live_bytes += task.output_bytes
        self.listener.task_done(task, completion, self.live_bytes)
        if task.index in self.row_of and not self._dead(task.group):
            self._deliver(*self.row_of[task.index], completion.handle)
        self._release_sources(task)
        if not self.wanted[task.index]:
            self.live_bytes -= task.output_bytes
            return
        self.handles[task.index] = completion.handle
        for reader in self.readers[task.index]:
            self.waiting[reader] -= 1
            if not self.waiting[reader]:
                heapq.heappush(self.ready, (self.graph.tasks[reader].priority, reader))

    def _deliver(self, pair_id: str, row: int, handle: Handle) -> None:
        self.listener.row_done(pair_id, row, self.executor.get(handle))
        self.rows_left[pair_id] -= 1
        if not self.rows_left[pair_id]:
            self.listener.pair_done(pair_id)

    def _release_sources(self, task: Task) -> None:
        for source in {s for s in task.sources if isinstance(s, int)}:
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
            if pair_id not in self.failed_pairs:
                self.failed_pairs.add(pair_id)
                self.listener.pair_failed(pair_id, reason)
                self._give_up(pair_id)

    def _give_up(self, pair_id: str) -> None:
        """Drop the tasks that nobody needs any more, and with them their claims on results."""
        for group in self.groups_of[pair_id]:
            if self._dead(group):
                for index in self.unstarted[group]:
                    self._release_sources(self.graph.tasks[index])
                self.unstarted[group] = set()

    def _dead(self, group: str) -> bool:
        return all(pair in self.failed_pairs for pair in self.graph.pairs_of[group])


def _input_ids(task: Task) -> set[str]:
    return {s.input_id for s in task.sources if isinstance(s, InputRow)}
