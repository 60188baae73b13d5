"""A job in virtual time: the same task graph and the same scheduler on an executor with a clock.

Nothing is computed and no Ray is started: tasks take the time that they were measured to take, and
ciphertexts are numbers of bytes. What is modelled besides the cores:

- the driver, which does one thing at a time: it hands out tasks, reads inputs from the store and
  writes results to it;
- the network: a node holds a ciphertext once it has been there; fetching one occupies the wire of
  the node that made it and that of the node that receives it for as long as its bytes need;
- Ray's queues: a worker has one task running and one waiting, whose sources are fetched meanwhile.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.types import Callback, Completion, tasks_per_worker
from jobs.execution.scheduler import run_graph
from nst.engines.base import StoredBytes
from nst.engines.tasks import InputPart, Task, TaskGraph, is_style_group


@dataclass(frozen=True)
class Machines:
    """What a job is to run on.

    Attributes:
        cores: Workers, one core each.
        cores_per_node: Cores of a node. If one node is enough, the driver is on it; otherwise the
            driver has a node of its own, as in `cluster/`.
        bandwidth: Bytes per second of every wire: between two nodes, and to and from the store.
        latency_s: Seconds that fetching a ciphertext takes besides its bytes.
        dispatch_s: Seconds of the driver's for every task.
        overhead_s: Seconds between the end of a task and the start of the next on a worker.
        slowdown: How many times longer tasks take than they were measured.
    """

    cores: int
    cores_per_node: int = 16
    bandwidth: float = 125e6
    latency_s: float = 1e-3
    dispatch_s: float = 0.0
    overhead_s: float = 0.0
    slowdown: float = 1.0

    @property
    def nodes(self) -> int:
        """Nodes that hold the workers."""
        return -(-self.cores // self.cores_per_node)


@dataclass
class Simulated:
    """What a job did in virtual time.

    Attributes:
        wall_s: From the driver's first step to its last.
        busy_s: Core-seconds in tasks.
        driver_s: Seconds in which the driver was at work or waited for a result to reach it.
        waited_s: Core-seconds in which workers had a task whose sources were on their way.
        pair_done_s: When each pair was done, in that order.
        bytes_between_nodes: Ciphertexts fetched by one node from another.
        bytes_read: Inputs that the driver read from the store.
        bytes_written: Results that it wrote.
        peak_live_bytes: Most bytes of results held at once, each counted once.
    """

    wall_s: float = 0.0
    busy_s: float = 0.0
    driver_s: float = 0.0
    waited_s: float = 0.0
    pair_done_s: list[float] = field(default_factory=list)
    bytes_between_nodes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_live_bytes: int = 0

    def continued(self, half: Simulated, times: float) -> Simulated:
        """The same job with more pairs, whose work goes on as it did since `half`.

        Args:
            half: What the first half of the pairs took.
            times: How often the work since then follows.
        """

        def more(name: str) -> float:
            return float(getattr(self, name) + times * (getattr(self, name) - getattr(half, name)))

        return Simulated(
            wall_s=more("wall_s"),
            busy_s=more("busy_s"),
            driver_s=more("driver_s"),
            waited_s=more("waited_s"),
            pair_done_s=self.pair_done_s,
            bytes_between_nodes=round(more("bytes_between_nodes")),
            bytes_read=round(more("bytes_read")),
            bytes_written=round(more("bytes_written")),
            peak_live_bytes=self.peak_live_bytes,
        )


class LeastLoaded:
    """Workers by how many tasks they have, in logarithmic time; ties go to the first."""

    def __init__(self, workers: int) -> None:
        self._load = [0] * workers
        # By load, the workers that have had it. An entry counts only while it is still true.
        self._by_load: list[list[int]] = [list(range(workers))]

    def take(self) -> int:
        """The worker with the fewest tasks; it has one more from now on."""
        for load, workers in enumerate(self._by_load):
            while workers:
                worker = heapq.heappop(workers)
                if self._load[worker] == load:
                    self._enter(worker, load + 1)
                    return worker
        raise IndexError("there are no workers")

    def done(self, worker: int) -> None:
        """A worker has one task less."""
        self._enter(worker, self._load[worker] - 1)

    def _enter(self, worker: int, load: int) -> None:
        self._load[worker] = load
        if load == len(self._by_load):
            self._by_load.append([])
        heapq.heappush(self._by_load[load], worker)


class _Blob:
    """A ciphertext that is nothing but its size, where it was made, and when it is where."""

    __slots__ = ("home", "size", "there")

    def __init__(self, size: int, home: int) -> None:
        self.size, self.home = size, home
        self.there = {home: 0.0}


class VirtualCluster(Callback[_Blob]):
    """An `Executor` with a clock of its own; also the callback that the simulation needs."""

    def __init__(self, machines: Machines, stored: StoredBytes) -> None:
        self.machines, self.stored = machines, stored
        self.report = Simulated()
        self.driver_node = machines.nodes if machines.nodes > 1 else 0
        self.driver_at = 0.0
        self._workers = LeastLoaded(machines.cores)
        self._free_at = [0.0] * machines.cores
        self._sends_until = [0.0] * (machines.nodes + 1)
        self._receives_until = [0.0] * (machines.nodes + 1)
        self._ends: list[tuple[float, int]] = []
        self._running: dict[int, tuple[int, float, _Blob]] = {}
        self._longest = 0.0
        self.memory = math.inf
        self.nodes = machines.nodes

    @property
    def capacity(self) -> int:
        """See `Executor`."""
        return tasks_per_worker(self._longest) * self.machines.cores

    def put(self, blob: bytes) -> _Blob:
        """See `Executor`."""
        return _Blob(len(blob), self.driver_node)

    def get(self, handle: _Blob) -> bytes:
        """See `Executor`; the driver waits until the ciphertext is with it."""
        here = self._fetch((handle,), self.driver_node, self.driver_at)
        self._drive(here - self.driver_at)
        return b""

    def submit(self, task: Task, inputs: Sequence[_Blob]) -> None:
        """See `Executor`; when a task will end is known at once."""
        machines = self.machines
        self._longest = max(self._longest, task.seconds)
        self._drive(machines.dispatch_s)
        worker = self._workers.take()
        node = worker // machines.cores_per_node
        fetched = self._fetch(inputs, node, self.driver_at)
        start = max(fetched, self._free_at[worker])
        self.report.waited_s += start - max(self.driver_at, self._free_at[worker])
        end = start + task.seconds * self.machines.slowdown
        self._free_at[worker] = end + machines.overhead_s
        self._running[task.index] = worker, start, _Blob(task.output_bytes, node)
        heapq.heappush(self._ends, (end, task.index))

    def wait(self, timeout: float) -> list[Completion[_Blob]]:
        """See `Executor`; the driver's clock goes on to the next end of a task."""
        end, index = heapq.heappop(self._ends)
        worker, start, result = self._running.pop(index)
        self._workers.done(worker)
        self.driver_at = max(self.driver_at, end)
        self.report.busy_s += end - start
        return [Completion(index, result, None, start, end, end - start)]

    def close(self) -> None:
        """See `Executor`; there is nothing to stop."""

    def read_input(self, style: bool) -> list[bytes]:
        """Parts of an encrypted style or content out of the store."""
        stored = self.stored
        count = stored.style_parts if style else stored.content_parts
        part = bytes(stored.style_part if style else stored.content_part)
        self.report.bytes_read += count * len(part)
        self._drive(count * len(part) / self.machines.bandwidth)
        return [part] * count

    def on_task_end(self, task: Task, completion: Completion[_Blob], live_bytes: int) -> None:
        """See `Callback`."""
        self.report.peak_live_bytes = max(self.report.peak_live_bytes, live_bytes)

    def on_result_part(self, result: str, part: int, ciphertext: bytes) -> None:
        """See `Callback`; the driver writes the part to the store."""
        self.report.bytes_written += self.stored.result_part
        self._drive(self.stored.result_part / self.machines.bandwidth)

    def on_pair_done(self, pair_id: str) -> None:
        """See `Callback`."""
        self.report.pair_done_s.append(self.driver_at)

    def on_pair_failed(self, pair_id: str, reason: str) -> None:
        """See `Callback`; nothing fails in a simulation."""
        raise AssertionError(f"{pair_id}: {reason}")

    def _drive(self, seconds: float) -> None:
        self.driver_at += seconds
        self.report.driver_s += seconds

    def _fetch(self, blobs: Sequence[_Blob], node: int, now: float) -> float:
        """When all ciphertexts are on a node that asks for them now."""
        ready = now
        for blob in blobs:
            if node not in blob.there:
                # Each of the two wires passes its bytes one after the other, and neither keeps
                # still while it waits for the other: connections run beside each other.
                spent = blob.size / self.machines.bandwidth
                sent = max(now, self._sends_until[blob.home]) + spent
                received = max(now, self._receives_until[node]) + spent
                self._sends_until[blob.home], self._receives_until[node] = sent, received
                end = max(sent, received) + self.machines.latency_s
                blob.there[node] = end
                self.report.bytes_between_nodes += blob.size
            ready = max(ready, blob.there[node])
        return ready


def simulate(
    graph: TaskGraph,
    machines: Machines,
    stored: StoredBytes,
    callbacks: Sequence[Callback[_Blob]] = (),
) -> Simulated:
    """Walk a graph in virtual time.

    Args:
        graph: What to run.
        machines: What to run it on.
        stored: Sizes of what goes through the store.
        callbacks: Told of the walk as well.
    """
    cluster = VirtualCluster(machines, stored)
    styles = {
        source.input_id
        for task in graph.tasks
        if is_style_group(task.group)
        for source in task.sources
        if isinstance(source, InputPart)
    }
    told = [cluster, *callbacks]
    run_graph(graph, cluster, lambda input_id: cluster.read_input(input_id in styles), told)
    cluster.report.wall_s = cluster.driver_at
    return cluster.report


@dataclass(frozen=True)
class CriticalPath:
    """The longest chain of tasks that wait for each other.

    Attributes:
        seconds: Its length: no number of cores is faster.
        tasks: Indices of its tasks in order.
    """

    seconds: float
    tasks: tuple[int, ...]


def critical_path(graph: TaskGraph) -> CriticalPath:
    """The critical path of a graph; empty if it has no tasks."""
    ends: list[float] = []
    before: list[int] = []
    for task in graph.tasks:
        sources = [s for s in task.sources if isinstance(s, int)]
        last = max(sources, key=ends.__getitem__, default=-1)
        ends.append(task.seconds + (ends[last] if last >= 0 else 0.0))
        before.append(last)
    if not ends:
        return CriticalPath(0.0, ())
    at = max(range(len(ends)), key=ends.__getitem__)
    length, path = ends[at], []
    while at >= 0:
        path.append(at)
        at = before[at]
    return CriticalPath(length, tuple(reversed(path)))
