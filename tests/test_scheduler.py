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

from nst.engines.tasks import InputRow, Task, TaskGraph, build_graph
from jobs.execution.scheduler import (
    MAX_ATTEMPTS,
    MAX_LOSSES,
    Completion,
    LostError,
    Orders,
    _Walk,
)
from nst.errors import StoreError
from tests.plans import grid_of_pairs, made_up_plan

PLAN = made_up_plan()
ROWS = PLAN.size // 4
Fails = Callable[[Task], bool]


class Box:
    """A fake ciphertext: an integer whose lifetime can be watched."""

    def __init__(self, value: int, is_result: bool) -> None:
        self.value, self.is_result = value, is_result


def number(*parts: object) -> int:
    return zlib.crc32(repr(parts).encode())


def input_rows(input_id: str) -> list[bytes]:
    return [f"{input_id} {row}".encode() for row in range(ROWS)]


def evaluate(graph: TaskGraph) -> dict[str, list[int]]:
    """The result rows of all pairs, task after task in the graph's order."""
    values: list[int] = []
    for task in graph.tasks:
        sources = [
            number(input_rows(s.input_id)[s.row]) if isinstance(s, InputRow) else values[s]
            for s in task.sources
        ]
        values.append(number(task.stage, sources))
    return {pair: [values[i] for i in rows] for pair, rows in graph.outputs.items()}


class FakeCluster:
    """Slots that take a random time for a task, on a clock of its own."""

    def __init__(self, graph: TaskGraph, slots: int, seed: int, fails: Fails) -> None:
        self.graph, self.slots, self.fails = graph, slots, fails
        self.random = random.Random(seed)
        self.boxes: weakref.WeakSet[Box] = weakref.WeakSet()
        self.now = 0.0
        self.running: list[tuple[float, int, Box | None, str | None]] = []
        self.memory = math.inf
        self.started: list[int] = []
        self.ended: set[int] = set()
        self.given_up: set[str] = set()
        self.peak_running = self.peak_results = 0
        self.idle: list[int] = []

    @property
    def capacity(self) -> int:
        return self.slots

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

    def wait(self, timeout: float) -> list[Completion]:
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
class Notes:
    """A listener that writes down what it is told."""

    cluster: FakeCluster
    rows: dict[str, dict[int, int]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    tasks: list[int] = field(default_factory=list)
    peak_live_bytes: int = 0

    def look(self, live_bytes: int) -> Orders:
        return Orders()

    def task_started(self, task: Task) -> None:
        pass

    def task_done(self, task: Task, completion: Completion, live_bytes: int) -> None:
        self.tasks.append(task.index)
        self.peak_live_bytes = max(self.peak_live_bytes, live_bytes)

    def row_done(self, pair_id: str, row: int, ciphertext: bytes) -> None:
        assert pair_id not in self.failed
        rows = self.rows.setdefault(pair_id, {})
        assert row not in rows
        rows[row] = int(ciphertext)

    def pair_done(self, pair_id: str) -> None:
        assert pair_id not in self.done and pair_id not in self.failed
        self.done.append(pair_id)

    def pair_failed(self, pair_id: str, reason: str) -> None:
        assert pair_id not in self.done and pair_id not in self.failed
        self.failed[pair_id] = reason
        self.cluster.given_up.add(pair_id)


def nothing_fails(_: Task) -> bool:
    return False


def at(group: str, stage: str, row: int) -> Fails:
    return lambda task: (task.group, task.stage, task.row) == (group, stage, row)


def walk(
    graph: TaskGraph,
    slots: int = 4,
    seed: int = 0,
    fails: Fails = nothing_fails,
    read: Callable[[str], Sequence[bytes]] = input_rows,
) -> tuple[FakeCluster, Notes]:
    """Walk a graph, and check what has to hold for every walk."""
    cluster = FakeCluster(graph, slots, seed, fails)
    notes = Notes(cluster)
    walker = _Walk(graph, cluster, read, notes)
    walker.run()
    assert cluster.peak_running <= slots
    assert sorted([*notes.done, *notes.failed]) == sorted(graph.outputs)
    expected = evaluate(graph)
    for pair in notes.done:
        assert [notes.rows[pair][row] for row in range(ROWS)] == expected[pair]
    # Whatever happened, nothing is held any more.
    assert walker.live_bytes == 0
    assert not walker.handles and not walker.inputs
    assert not list(cluster.boxes)
    return cluster, notes


GRID = build_graph(PLAN, grid_of_pairs(3, 2))
ONE = build_graph(PLAN, grid_of_pairs(1, 1))


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
    big = made_up_plan(size=192)
    graph = build_graph(big, grid_of_pairs(1, 1))
    rows = big.size // 4

    def read(input_id: str) -> list[bytes]:
        return [f"{input_id} {row}".encode() for row in range(rows)]

    cluster = FakeCluster(graph, slots, 0, nothing_fails)
    notes = Notes(cluster)
    _Walk(graph, cluster, read, notes).run()
    assert notes.done == ["p00"]
    # All rows pooled for the style code, at most; of the content a few rows a stage.
    assert cluster.peak_results <= rows + 4 * slots
    assert cluster.peak_results < len(graph.tasks) / 4
    assert notes.peak_live_bytes < sum(t.output_bytes for t in graph.tasks) / 5


def test_pairs_finish_one_after_the_other_and_not_all_at_the_end() -> None:
    """With few slots the first pair's result is there long before the last pair has begun."""
    graph = build_graph(PLAN, grid_of_pairs(6, 1))
    cluster, notes = walk(graph, slots=2)
    assert notes.done == [f"p{c}0" for c in range(6)]
    pair_of = [graph.tasks[i].group for i in cluster.started]
    assert pair_of.index("pair:p50") > len(pair_of) * 0.7


def needs_of_pairs(graph: TaskGraph) -> int:
    return max(n for g, n in graph.bytes_by_group().items() if g.startswith("pair:"))


@pytest.mark.parametrize("room", [0.0, 1.0, 2.5])
def test_pairs_in_flight_fit_into_the_memory_there_is(room: float) -> None:
    graph = build_graph(PLAN, grid_of_pairs(6, 1))
    need = needs_of_pairs(graph)

    class Small(FakeCluster):
        def submit(self, task: Task, inputs: Sequence[object]) -> None:
            super().submit(task, inputs)
            at_work.append({graph.tasks[entry[1]].group for entry in self.running})

    at_work: list[set[str]] = []
    cluster = Small(graph, 64, 0, nothing_fails)
    cluster.memory = room * need
    notes = Notes(cluster)
    _Walk(graph, cluster, input_rows, notes).run()
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
        def task_done(self, task: Task, completion: Completion, live_bytes: int) -> None:
            held = sum(1 for box in cluster.boxes if box.is_result)
            if task.stage == "style_stem":
                # Nothing but rows of this one stage and of the one that reads it.
                assert live_bytes <= held * by_stage["style_stem"] + held * by_stage["style_body"]
            if task.stage == "stem" and task.row == 0:
                assert live_bytes == by_stage["style_code"] + by_stage["stem"]
            self.peak_live_bytes = max(self.peak_live_bytes, live_bytes)

    notes = Check(cluster)
    _Walk(ONE, cluster, input_rows, notes).run()
    assert notes.peak_live_bytes > by_stage["style_code"] + by_stage["stem"]


@pytest.mark.parametrize("slots", [1, 4, 30])
@pytest.mark.parametrize("stage", ["stem", "body1", "body2", "up"])
@pytest.mark.parametrize("row", [0, 7, ROWS - 1])
def test_a_failing_task_takes_only_its_pair(slots: int, stage: str, row: int) -> None:
    cluster, notes = walk(GRID, slots, seed=row, fails=at("pair:p01", stage, row))
    assert list(notes.failed) == ["p01"]
    assert cluster.idle == []


@pytest.mark.parametrize("slots", [1, 4, 30])
@pytest.mark.parametrize("stage", ["style_stem", "style_body", "style_rows", "style_code"])
def test_a_failing_style_takes_all_its_pairs(slots: int, stage: str) -> None:
    cluster, notes = walk(GRID, slots, seed=slots, fails=at("style:s0", stage, 0))
    assert set(notes.failed) == {"p00", "p10", "p20"}
    assert cluster.idle == []


def test_nothing_more_is_started_for_a_failed_pair() -> None:
    cluster, _ = walk(ONE, slots=1, fails=at("pair:p00", "body1", 3))
    failing = cluster.started[-1]
    assert (ONE.tasks[failing].stage, ONE.tasks[failing].row) == ("body1", 3)


def test_a_style_goes_on_while_one_of_its_pairs_lives() -> None:
    graph = build_graph(PLAN, grid_of_pairs(2, 1))

    def read(input_id: str) -> list[bytes]:
        if input_id == "c0":
            raise StoreError("gone")
        return input_rows(input_id)

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
        return input_rows(input_id)

    cluster, notes = walk(GRID, slots, seed=1, read=read)
    assert set(notes.failed) == lost
    assert set(notes.failed.values()) <= {f"no {i}" for i in broken}
    assert cluster.idle == []


def test_an_input_with_rows_missing_fails_its_pairs() -> None:
    _, notes = walk(GRID, read=lambda i: input_rows(i)[: 3 if i == "c2" else ROWS])
    assert set(notes.failed) == {"p20", "p21"}


@pytest.mark.parametrize("seed", range(12))
def test_any_mixture_of_failures_leaves_nothing_behind(seed: int) -> None:
    dice = random.Random(seed)
    doomed = {t.index for t in GRID.tasks if dice.random() < 0.01}
    unreadable = {i for i in ("c0", "c1", "c2", "s0", "s1") if dice.random() < 0.15}

    def read(input_id: str) -> list[bytes]:
        if input_id in unreadable:
            raise OSError
        return input_rows(input_id)

    walk(GRID, dice.choice([1, 2, 8, 40]), seed, lambda t: t.index in doomed, read)


def test_an_input_is_read_once_while_it_is_needed() -> None:
    reads: list[str] = []

    def read(input_id: str) -> list[bytes]:
        reads.append(input_id)
        return input_rows(input_id)

    walk(GRID, read=read)
    assert sorted(reads) == ["c0", "c1", "c2", "s0", "s1"]


def test_an_empty_graph_ends_at_once() -> None:
    walk(build_graph(PLAN, []))


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

    def wait(self, timeout: float) -> list[Completion]:
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
    walker = _Walk(GRID, cluster, input_rows, notes)
    walker.run()
    expected = evaluate(GRID)
    assert sorted(notes.done) == sorted(GRID.outputs)
    for pair in notes.done:
        assert [notes.rows[pair][row] for row in range(ROWS)] == expected[pair]
    assert len(cluster.started) > len(GRID.tasks)
    assert walker.live_bytes == 0 and not walker.handles and not walker.inputs
    assert not list(cluster.boxes)


@pytest.mark.parametrize("seed", range(3))
def test_a_cluster_that_loses_everything_is_given_up(seed: int) -> None:
    cluster = LossyCluster(GRID, 4, seed, rate=0.6)
    notes = Notes(cluster)
    _Walk(GRID, cluster, input_rows, notes).run()
    assert len(notes.failed) == len(GRID.outputs)
    most = max(cluster.started.count(task.index) for task in GRID.tasks)
    assert most <= MAX_LOSSES + MAX_ATTEMPTS


def test_a_task_gets_another_chance() -> None:
    chances = {"left": MAX_ATTEMPTS - 1}

    def fails(task: Task) -> bool:
        if (task.group, task.stage, task.row) != ("pair:p00", "body1", 3) or not chances["left"]:
            return False
        chances["left"] -= 1
        return True

    cluster, notes = walk(GRID, fails=fails)
    assert len(notes.done) == 6 and chances["left"] == 0
    assert len(cluster.started) == len(GRID.tasks) + MAX_ATTEMPTS - 1


def test_a_poisoned_pair_has_so_many_chances_and_no_more() -> None:
    cluster, notes = walk(GRID, slots=1, fails=at("pair:p11", "stem", 0))
    assert notes.failed == {"p11": "boom"}
    (poisoned,) = (t.index for t in GRID.tasks if (t.group, t.stage, t.row)
                   == ("pair:p11", "stem", 0))  # fmt: skip
    assert cluster.started.count(poisoned) == MAX_ATTEMPTS


@pytest.mark.parametrize("slots", [1, 4, 30])
def test_a_stopped_walk_starts_nothing_more(slots: int) -> None:
    cluster = FakeCluster(GRID, slots, 0, nothing_fails)

    class Stops(Notes):
        def look(self, live_bytes: int) -> Orders:
            return Orders(stop=len(self.tasks) > 20)

    notes = Stops(cluster)
    _Walk(GRID, cluster, input_rows, notes).run()
    assert 20 < len(notes.tasks) <= 21 + slots
    assert not notes.failed


@pytest.mark.parametrize("slots", [1, 4, 30])
def test_a_pair_that_is_dropped_is_not_told_of_again(slots: int) -> None:
    cluster = FakeCluster(GRID, slots, 0, nothing_fails)

    class Drops(Notes):
        def look(self, live_bytes: int) -> Orders:
            dropped = frozenset({"p11"} if len(self.tasks) > 20 else ())
            cluster.given_up |= dropped
            return Orders(drop=dropped)

    notes = Drops(cluster)
    walker = _Walk(GRID, cluster, input_rows, notes)
    walker.run()
    assert sorted(notes.done) == ["p00", "p01", "p10", "p20", "p21"] and not notes.failed
    assert walker.live_bytes == 0 and not walker.handles and not list(cluster.boxes)


def test_a_walk_waits_for_workers_to_come() -> None:
    class Late(FakeCluster):
        waits = 0

        @property
        def capacity(self) -> int:
            return self.slots if self.waits > 3 else 0

        def wait(self, timeout: float) -> list[Completion]:
            self.waits += 1
            return super().wait(timeout) if self.running else []

    cluster = Late(ONE, 2, 0, nothing_fails)
    notes = Notes(cluster)
    _Walk(ONE, cluster, input_rows, notes).run()
    assert notes.done == ["p00"]
