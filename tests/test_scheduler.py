"""The scheduling loop on fake executors: results, bounds, failures and what they leave behind."""

from __future__ import annotations

import heapq
import math
import random
import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from cluster.types import Callback, Completion, LostError
from jobs.execution.scheduler import (
    GO_ON,
    MAX_ATTEMPTS,
    MAX_LOSSES,
    Control,
    _Walk,
    priority,
    run_graph,
)
from nst.engines.tasks import InputPart, Task, TaskGraph
from nst.errors import StoreError
from tests.fakes import FakePlan
from tests.plans import grid_of_pairs

PLAN = FakePlan(parts=16)
Fails = Callable[[Task], bool]


class Box:
    """A fake ciphertext: an integer whose lifetime can be watched."""

    def __init__(self, value: int, is_result: bool) -> None:
        self.value, self.is_result = value, is_result


def number(*parts: object) -> int:
    return zlib.crc32(repr(parts).encode())


def input_parts(input_id: str, count: int = PLAN.parts) -> list[bytes]:
    return [f"{input_id} {part}".encode() for part in range(count)]


def evaluate(graph: TaskGraph) -> dict[str, list[int]]:
    """The result parts of all pairs, task after task in the graph's order."""
    values: list[int] = []
    for task in graph.tasks:
        sources = [
            number(input_parts(s.input_id)[s.part]) if isinstance(s, InputPart) else values[s]
            for s in task.sources
        ]
        values.append(number(task.stage, sources))
    return {pair: [values[i] for i in parts] for pair, parts in graph.outputs.items()}


class FakeCluster:
    """Slots that take a random time for a task, on a clock of its own."""

    def __init__(self, graph: TaskGraph, slots: int, seed: int, fails: Fails) -> None:
        self.graph, self.slots, self.fails = graph, slots, fails
        self.random = random.Random(seed)
        self.boxes: weakref.WeakSet[Box] = weakref.WeakSet()
        self.now = 0.0
        self.running: list[tuple[float, int, Box | None, str | None]] = []
        self.memory = math.inf
        self.nodes = 1
        self.closed = False
        self.started: list[int] = []
        self.ended: set[int] = set()
        self.given_up: set[str] = set()
        self.peak_running = self.peak_results = 0
        self.idle: list[int] = []

    @property
    def capacity(self) -> int:
        return self.slots

    def close(self) -> None:
        self.closed = True

    def _box(self, value: int, is_result: bool) -> Box:
        box = Box(value, is_result)
        self.boxes.add(box)
        return box

    def put(self, blob: bytes) -> Box:
        return self._box(number(blob), False)

    def get(self, handle: Box) -> bytes:
        return str(handle.value).encode()

    def submit(self, task: Task, inputs: Sequence[Box]) -> None:
        assert all(s in self.ended for s in task.sources if isinstance(s, int))
        assert self.started.count(task.index) < MAX_ATTEMPTS
        self.started.append(task.index)
        result, error = None, "boom"
        if not self.fails(task):
            value = number(task.stage, [box.value for box in inputs])
            result, error = self._box(value, True), None
        end = self.now + self.random.choice([1, 1, 2, 5]) * (0.9 + 0.2 * self.random.random())
        heapq.heappush(self.running, (end, task.index, result, error))
        self.peak_running = max(self.peak_running, len(self.running))

    def wait(self, timeout: float) -> list[Completion[Box]]:
        assert self.running, "waiting for nothing"
        self.peak_results = max(self.peak_results, sum(b.is_result for b in self.boxes))
        if len(self.running) < self.slots:
            self.idle += self.startable()
        ended = []
        for _ in range(self.random.randint(1, len(self.running))):
            self.now, index, handle, error = heapq.heappop(self.running)
            if error is None:
                self.ended.add(index)
            ended.append(Completion(index, handle, error))
        return ended

    def startable(self) -> list[int]:
        """Tasks that could run now and belong to a pair that still lives."""
        return [
            t.index
            for t in self.graph.tasks
            if t.index not in self.started
            and all(s in self.ended for s in t.sources if isinstance(s, int))
            and not self.given_up.issuperset(self.graph.pairs_of[t.group])
        ]


@dataclass
class Notes(Callback[Box]):
    """Writes down what it is told."""

    cluster: FakeCluster
    parts: dict[str, dict[int, int]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    tasks: list[int] = field(default_factory=list)
    attempts_failed: int = 0
    peak_live_bytes: int = 0

    def on_task_end(self, task: Task, completion: Completion[Box], live_bytes: int) -> None:
        self.tasks.append(task.index)
        self.peak_live_bytes = max(self.peak_live_bytes, live_bytes)

    def on_attempt_failed(self, task: Task, reason: str) -> None:
        self.attempts_failed += 1

    def on_result_part(self, result: str, part: int, ciphertext: bytes) -> None:
        assert result not in self.failed
        parts = self.parts.setdefault(result, {})
        assert part not in parts
        parts[part] = int(ciphertext)

    def on_pair_done(self, pair_id: str) -> None:
        assert pair_id not in self.done and pair_id not in self.failed
        self.done.append(pair_id)

    def on_pair_failed(self, pair_id: str, reason: str) -> None:
        assert pair_id not in self.done and pair_id not in self.failed
        self.failed[pair_id] = reason
        self.cluster.given_up.add(pair_id)


def nothing_fails(_: Task) -> bool:
    return False


def at(group: str, stage: str, part: int) -> Fails:
    return lambda task: (task.group, task.stage, task.part) == (group, stage, part)


def run(
    graph: TaskGraph,
    cluster: FakeCluster,
    notes: Notes,
    read: Callable[[str], Sequence[bytes]] = input_parts,
    control: Callable[[], Control] = lambda: GO_ON,
) -> _Walk[Box]:
    walker = _Walk(graph, cluster, read, [notes])
    walker.run(control)
    return walker


def walk(
    graph: TaskGraph,
    slots: int = 4,
    seed: int = 0,
    fails: Fails = nothing_fails,
    read: Callable[[str], Sequence[bytes]] = input_parts,
) -> tuple[FakeCluster, Notes]:
    """Walk a graph, and check what has to hold for every walk."""
    cluster = FakeCluster(graph, slots, seed, fails)
    notes = Notes(cluster)
    walker = run(graph, cluster, notes, read)
    assert cluster.peak_running <= slots
    assert sorted([*notes.done, *notes.failed]) == sorted(graph.outputs)
    expected = evaluate(graph)
    for pair in notes.done:
        assert [notes.parts[pair][i] for i in range(len(expected[pair]))] == expected[pair]
    # Whatever happened, nothing is held any more.
    assert walker.live_bytes == 0
    assert not walker.handles and not walker.inputs
    assert not list(cluster.boxes)
    return cluster, notes


GRID = PLAN.graph(grid_of_pairs(3, 2))
ONE = PLAN.graph(grid_of_pairs(1, 1))


@pytest.mark.parametrize("slots", [1, 3, 50])
@pytest.mark.parametrize("seed", range(4))
def test_results_do_not_depend_on_the_order_of_completion(slots: int, seed: int) -> None:
    _, notes = walk(GRID, slots, seed)
    assert len(notes.done) == 6
    assert sorted(notes.tasks) == list(range(len(GRID.tasks)))


@pytest.mark.parametrize("slots", [2, 16, 64])
def test_no_slot_is_idle_while_a_task_is_ready(slots: int) -> None:
    cluster, _ = walk(GRID, slots)
    assert cluster.idle == []
    assert cluster.peak_running == slots


@pytest.mark.parametrize("slots", [1, 4])
def test_live_memory_is_a_wavefront(slots: int) -> None:
    big = FakePlan(parts=48)
    graph = big.graph(grid_of_pairs(1, 1))
    cluster = FakeCluster(graph, slots, 0, nothing_fails)
    notes = Notes(cluster)
    run(graph, cluster, notes, lambda input_id: input_parts(input_id, big.parts))
    assert notes.done == ["p00"]
    # All parts pooled for the style code, at most; of the content a few per stage.
    assert cluster.peak_results <= big.stored.style_parts + 4 * slots
    assert cluster.peak_results < len(graph.tasks) / 4
    assert notes.peak_live_bytes < sum(t.output_bytes for t in graph.tasks) / 5


def test_pairs_finish_one_after_the_other_and_not_all_at_the_end() -> None:
    """With few slots the first pair's result is there long before the last pair has begun."""
    graph = PLAN.graph(grid_of_pairs(6, 1))
    cluster, notes = walk(graph, slots=2)
    assert notes.done == [f"p{c}0" for c in range(6)]
    pair_of = [graph.tasks[i].group for i in cluster.started]
    assert pair_of.index("result:p50") > len(pair_of) * 0.7


def needs_of_pairs(graph: TaskGraph) -> int:
    return max(n for g, n in graph.bytes_by_group().items() if g.startswith("result:"))


@pytest.mark.parametrize("room", [0.0, 1.0, 2.5])
def test_pairs_in_flight_fit_into_the_memory_there_is(room: float) -> None:
    graph = PLAN.graph(grid_of_pairs(6, 1))
    need = needs_of_pairs(graph)

    class Small(FakeCluster):
        def submit(self, task: Task, inputs: Sequence[object]) -> None:
            super().submit(task, inputs)
            at_work.append({graph.tasks[entry[1]].group for entry in self.running})

    at_work: list[set[str]] = []
    cluster = Small(graph, 64, 0, nothing_fails)
    cluster.memory = room * need
    notes = Notes(cluster)
    run(graph, cluster, notes)
    assert len(notes.done) == 6
    # Too little memory for anything at all still does one after the other.
    most = max(len(groups) for groups in at_work)
    assert most == max(1, int(room))
    # The same slots with memory for all of them take more pairs at once.
    assert walk(graph, 64)[1].peak_live_bytes > notes.peak_live_bytes


def test_reported_live_bytes_are_those_held() -> None:
    cluster = FakeCluster(ONE, 1, 0, nothing_fails)
    by_stage = {t.stage: t.output_bytes for t in ONE.tasks}

    class Check(Notes):
        def on_task_end(self, task: Task, completion: Completion[Box], live_bytes: int) -> None:
            if task.stage == "look":
                assert live_bytes == (task.part + 1) * by_stage["look"]
            if task.stage == "stem" and task.part == 0:
                assert live_bytes == by_stage["code"] + by_stage["stem"]
            super().on_task_end(task, completion, live_bytes)

    notes = Check(cluster)
    run(ONE, cluster, notes)
    assert notes.peak_live_bytes > by_stage["code"] + by_stage["stem"]


@pytest.mark.parametrize("slots", [1, 4, 30])
@pytest.mark.parametrize("stage", ["stem", "blur", "detail", "up"])
@pytest.mark.parametrize("part", [0, 3, 7])
def test_a_failing_task_takes_only_its_pair(slots: int, stage: str, part: int) -> None:
    cluster, notes = walk(GRID, slots, seed=part, fails=at("result:p01", stage, part))
    assert list(notes.failed) == ["p01"]
    assert cluster.idle == []


@pytest.mark.parametrize("slots", [1, 4, 30])
@pytest.mark.parametrize("stage", ["look", "code"])
def test_a_failing_style_takes_all_its_pairs(slots: int, stage: str) -> None:
    cluster, notes = walk(GRID, slots, seed=slots, fails=at("style:s0", stage, 0))
    assert set(notes.failed) == {"p00", "p10", "p20"}
    assert cluster.idle == []


def test_nothing_more_is_started_for_a_failed_pair() -> None:
    cluster, _ = walk(ONE, slots=1, fails=at("result:p00", "blur", 3))
    failing = cluster.started[-1]
    assert (ONE.tasks[failing].stage, ONE.tasks[failing].part) == ("blur", 3)


def test_a_style_goes_on_while_one_of_its_pairs_lives() -> None:
    graph = PLAN.graph(grid_of_pairs(2, 1))

    def read(input_id: str) -> list[bytes]:
        if input_id == "c0":
            raise StoreError("gone")
        return input_parts(input_id)

    _, notes = walk(graph, slots=1, read=read)
    assert notes.done == ["p10"] and notes.failed == {"p00": "gone"}


@pytest.mark.parametrize("slots", [1, 4, 30])
@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"c1"}, {"p10", "p11"}),
        ({"s1"}, {"p01", "p11", "p21"}),
        ({"c0", "s1"}, {"p00", "p01", "p11", "p21"}),
        ({"c0", "c1", "c2"}, {f"p{c}{s}" for c in range(3) for s in range(2)}),
        ({"s0", "s1"}, {f"p{c}{s}" for c in range(3) for s in range(2)}),
    ],
)
def test_an_unreadable_input_takes_only_its_pairs(
    slots: int, broken: set[str], lost: set[str]
) -> None:
    def read(input_id: str) -> list[bytes]:
        if input_id in broken:
            raise StoreError(f"no {input_id}\nsecond line")
        return input_parts(input_id)

    cluster, notes = walk(GRID, slots, seed=1, read=read)
    assert set(notes.failed) == lost
    assert set(notes.failed.values()) <= {f"no {i}" for i in broken}
    assert cluster.idle == []


def test_an_input_with_parts_missing_fails_its_pairs() -> None:
    _, notes = walk(GRID, read=lambda i: input_parts(i, 3 if i == "c2" else PLAN.parts))
    assert set(notes.failed) == {"p20", "p21"}


@pytest.mark.parametrize("seed", range(12))
def test_any_mixture_of_failures_leaves_nothing_behind(seed: int) -> None:
    dice = random.Random(seed)
    doomed = {t.index for t in GRID.tasks if dice.random() < 0.01}
    unreadable = {i for i in ("c0", "c1", "c2", "s0", "s1") if dice.random() < 0.15}

    def read(input_id: str) -> list[bytes]:
        if input_id in unreadable:
            raise OSError
        return input_parts(input_id)

    walk(GRID, dice.choice([1, 2, 8, 40]), seed, lambda t: t.index in doomed, read)


def test_an_input_is_read_once_while_it_is_needed() -> None:
    reads: list[str] = []

    def read(input_id: str) -> list[bytes]:
        reads.append(input_id)
        return input_parts(input_id)

    walk(GRID, read=read)
    assert sorted(reads) == ["c0", "c1", "c2", "s0", "s1"]


def test_an_empty_graph_ends_at_once() -> None:
    walk(PLAN.graph([]))


class LossyCluster(FakeCluster):
    """Nodes go now and then: the results they held are gone, and so is what runs there."""

    def __init__(self, graph: TaskGraph, slots: int, seed: int, rate: float) -> None:
        super().__init__(graph, slots, seed, nothing_fails)
        self.rate = rate
        self.gone: weakref.WeakSet[Box] = weakref.WeakSet()
        self.lost_arguments: dict[int, tuple[int, ...]] = {}

    def get(self, handle: Box) -> bytes:
        if handle in self.gone:
            raise LostError("gone")
        return super().get(handle)

    def submit(self, task: Task, inputs: Sequence[Box]) -> None:
        self.started.append(task.index)
        lost = tuple(i for i, box in enumerate(inputs) if box in self.gone)
        self.lost_arguments[task.index] = lost
        value = number(task.stage, [box.value for box in inputs])
        result = None if lost else self._box(value, True)
        end = self.now + self.random.random()
        heapq.heappush(self.running, (end, task.index, result, "gone" if lost else None))

    def wait(self, timeout: float) -> list[Completion[Box]]:
        assert self.running, "waiting for nothing"
        for box in list(self.boxes):
            if self.random.random() < self.rate:
                self.gone.add(box)
        self.now, index, handle, error = heapq.heappop(self.running)
        if self.random.random() < 20 * self.rate:
            return [Completion(index, None, "its worker was lost", blamed=False)]
        return [Completion(index, handle, error, lost=self.lost_arguments[index])]


@pytest.mark.parametrize("slots", [1, 4, 30])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_lost_is_computed_again(slots: int, seed: int) -> None:
    cluster = LossyCluster(GRID, slots, seed, rate=0.0005)
    notes = Notes(cluster)
    walker = run(GRID, cluster, notes)
    expected = evaluate(GRID)
    assert sorted(notes.done) == sorted(GRID.outputs)
    for pair in notes.done:
        assert [notes.parts[pair][i] for i in range(len(expected[pair]))] == expected[pair]
    assert len(cluster.started) > len(GRID.tasks)
    assert walker.live_bytes == 0 and not walker.handles and not walker.inputs
    assert not list(cluster.boxes)


@pytest.mark.parametrize("seed", range(3))
def test_a_cluster_that_loses_everything_is_given_up(seed: int) -> None:
    cluster = LossyCluster(GRID, 4, seed, rate=0.6)
    notes = Notes(cluster)
    run(GRID, cluster, notes)
    assert len(notes.failed) == len(GRID.outputs)
    most = max(cluster.started.count(task.index) for task in GRID.tasks)
    assert most <= MAX_LOSSES + MAX_ATTEMPTS


def test_a_task_gets_another_chance() -> None:
    chances = {"left": MAX_ATTEMPTS - 1}

    def fails(task: Task) -> bool:
        if (task.group, task.stage, task.part) != ("result:p00", "blur", 3) or not chances["left"]:
            return False
        chances["left"] -= 1
        return True

    cluster, notes = walk(GRID, fails=fails)
    assert len(notes.done) == 6 and chances["left"] == 0
    assert len(cluster.started) == len(GRID.tasks) + MAX_ATTEMPTS - 1


def test_a_poisoned_pair_has_so_many_chances_and_no_more() -> None:
    cluster, notes = walk(GRID, slots=1, fails=at("result:p11", "stem", 0))
    assert notes.failed == {"p11": "boom"}
    (poisoned,) = (t.index for t in GRID.tasks if (t.group, t.stage, t.part)
                   == ("result:p11", "stem", 0))  # fmt: skip
    assert cluster.started.count(poisoned) == MAX_ATTEMPTS


@pytest.mark.parametrize("slots", [1, 4, 30])
def test_a_stopped_walk_starts_nothing_more(slots: int) -> None:
    cluster = FakeCluster(GRID, slots, 0, nothing_fails)

    notes = Notes(cluster)
    run(GRID, cluster, notes, control=lambda: Control(stop=len(notes.tasks) > 20))
    assert 20 < len(notes.tasks) <= 21 + slots
    assert not notes.failed


@pytest.mark.parametrize("slots", [1, 4, 30])
def test_a_pair_that_is_dropped_is_not_told_of_again(slots: int) -> None:
    cluster = FakeCluster(GRID, slots, 0, nothing_fails)

    notes = Notes(cluster)

    def drops() -> Control:
        dropped = frozenset({"p11"} if len(notes.tasks) > 20 else ())
        cluster.given_up |= dropped
        return Control(drop=dropped)

    walker = run(GRID, cluster, notes, control=drops)
    assert sorted(notes.done) == ["p00", "p01", "p10", "p20", "p21"] and not notes.failed
    assert walker.live_bytes == 0 and not walker.handles and not list(cluster.boxes)


def test_a_walk_waits_for_actors_to_come() -> None:
    class Late(FakeCluster):
        waits = 0

        @property
        def capacity(self) -> int:
            return self.slots if self.waits > 3 else 0

        def wait(self, timeout: float) -> list[Completion[Box]]:
            self.waits += 1
            return super().wait(timeout) if self.running else []

    cluster = Late(ONE, 2, 0, nothing_fails)
    notes = Notes(cluster)
    run(ONE, cluster, notes)
    assert notes.done == ["p00"]


class Diary(Callback[Box]):
    """Every call, in order; `dies` is the one that raises."""

    def __init__(self, cluster: FakeCluster, pages: list[str], name: str, dies: str = "") -> None:
        self.cluster, self.pages, self.name, self.dies = cluster, pages, name, dies

    def _write(self, what: str) -> None:
        self.pages.append(f"{self.name} {what}")
        if what == self.dies:
            raise StoreError(what)

    def on_start(self, graph: TaskGraph) -> None:
        self._write("start")

    def on_tick(self, under_way: int, nodes: int, live_bytes: int) -> None:
        assert under_way == len(self.cluster.running) > 0
        self._write("tick")

    def on_task_start(self, task: Task) -> None:
        self._write("task started")

    def on_task_end(self, task: Task, completion: Completion[Box], live_bytes: int) -> None:
        self._write("task ended")

    def on_result_part(self, result: str, part: int, ciphertext: bytes) -> None:
        self._write("part")

    def on_pair_done(self, pair_id: str) -> None:
        self._write(f"{pair_id} done")

    def on_end(self) -> None:
        assert self.cluster.closed, "what has ended holds no actors"
        self._write("end")


def test_callbacks_are_told_in_their_order() -> None:
    """Of a graph with one pair that an earlier walk has finished, and one that it has not."""
    pages: list[str] = []
    graph = TaskGraph(
        ONE.tasks, {"old": (), **ONE.outputs}, {"result:old": ("old",), **ONE.pairs_of}
    )
    cluster = FakeCluster(graph, 1, 0, nothing_fails)
    callbacks = [Diary(cluster, pages, name) for name in "ab"]
    run_graph(graph, cluster, input_parts, callbacks)
    assert pages[::2] == [page.replace("b", "a", 1) for page in pages[1::2]]
    told = [page[2:] for page in pages[::2]]
    assert told[:5] == ["start", "old done", "task started", "tick", "task ended"]
    assert told[-4:] == ["task ended", "part", "p00 done", "end"]


@pytest.mark.parametrize("page", ["start", "tick", "task started", "part", "p00 done"])
def test_a_callbacks_exception_ends_the_walk_and_is_no_end_of_the_job(page: str) -> None:
    pages: list[str] = []
    cluster = FakeCluster(ONE, 4, 0, nothing_fails)
    callbacks = [Diary(cluster, pages, "a", dies=page), Diary(cluster, pages, "b")]
    with pytest.raises(StoreError):
        run_graph(ONE, cluster, input_parts, callbacks)
    assert pages[-1] == f"a {page}"


def test_a_result_that_is_lost_before_it_is_delivered_is_a_failed_attempt() -> None:
    class Forgetful(FakeCluster):
        lost = False

        def get(self, handle: Box) -> bytes:
            if not self.lost:
                self.lost = True
                raise LostError("gone")
            return super().get(handle)

    cluster = Forgetful(ONE, 1, 0, nothing_fails)
    notes = Notes(cluster)
    run(ONE, cluster, notes)
    assert (notes.done, notes.attempts_failed) == (["p00"], 1)
    assert len(cluster.started) == len(ONE.tasks) + 1


def test_the_policy_is_pairs_in_order_and_the_deepest_stage_first() -> None:
    def first(group: str, stage: str) -> tuple[int, int, int]:
        return priority(next(t for t in GRID.tasks if (t.group, t.stage) == (group, stage)))

    assert first("result:p00", "up") < first("result:p00", "stem") < first("result:p01", "up")
    assert first("style:s0", "look") < first("style:s1", "look")
