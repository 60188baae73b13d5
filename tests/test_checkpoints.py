"""What is left to do of a job with what is stored of it: checkpoints and parts of results."""

from __future__ import annotations

import random
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.types import Completion
from jobs.execution import checkpoints as writing
from jobs.execution import recorder
from jobs.execution.checkpoints import Checkpoints
from jobs.execution.resume import StoredResult, without_done
from jobs.storage import layout
from jobs.storage.local_store import LocalStore
from jobs.storage.records import STALE_AFTER, read_marks, read_state
from jobs.storage.store import open_store
from nst.engines.tasks import InputPart, TaskGraph
from tests.fakes import FakePlan, Meddling, fake_executor, fake_job, run_job
from tests.plans import grid_of_pairs

GRAPH = FakePlan(parts=16).graph(grid_of_pairs(2, 2))
STAGES = sorted({t.stage for t in GRAPH.tasks})


def evaluate(graph: TaskGraph, stored: dict[str, int]) -> dict[str, dict[int, int]]:
    """By pair, the parts of its result: a hash of all that they are made from."""
    values: list[int] = []
    for task in graph.tasks:
        sources = [
            values[s] if isinstance(s, int) else stored.get(s.input_id, hash(s))
            for s in task.sources
        ]
        values.append(zlib.crc32(repr((task.stage, sources)).encode()))
    return {
        pair: {graph.tasks[i].part: values[i] for i in tasks}
        for pair, tasks in graph.outputs.items()
    }


def all_values() -> dict[int, int]:
    values: dict[int, int] = {}
    for task in GRAPH.tasks:
        sources = [values[s] if isinstance(s, int) else hash(s) for s in task.sources]
        values[task.index] = zlib.crc32(repr((task.stage, sources)).encode())
    return values


@pytest.mark.parametrize("seed", range(20))
def test_the_rest_gives_what_the_whole_gives(seed: int) -> None:
    draw, whole, values = random.Random(seed), evaluate(GRAPH, {}), all_values()
    share = draw.choice([0.0, 0.1, 0.5, 0.9])
    some = draw.sample(STAGES, draw.randint(0, len(STAGES)))
    kept = [t for t in GRAPH.tasks if t.stage in some and draw.random() < share]
    stored = {StoredResult(t.group, t.stage, t.part): f"stored {t.index}" for t in kept}
    results = {p: [i for i in parts if draw.random() < share] for p, parts in whole.items()}
    rest = without_done(GRAPH, stored, results)
    given = {f"stored {t.index}": values[t.index] for t in kept}
    again = evaluate(rest, given)
    for pair, parts in whole.items():
        assert again[pair] == {i: v for i, v in parts.items() if i not in results[pair]}
    # Sources before readers, and nothing that is read by none.
    for position, task in enumerate(rest.tasks):
        assert task.index == position
        assert all(s < position for s in task.sources if isinstance(s, int))
        assert StoredResult(task.group, task.stage, task.part) not in stored or task.stage == "up"
    outputs = {i for tasks in rest.outputs.values() for i in tasks}
    assert all(readers or i in outputs for i, readers in enumerate(rest.readers()))
    assert rest.pairs_of == GRAPH.pairs_of


def test_with_a_style_code_its_branch_is_not_computed_again() -> None:
    rest = without_done(GRAPH, {StoredResult("style:s0", "code", 0): "code of s0"}, {})
    assert {t.group for t in rest.tasks if t.stage in ("look", "code")} == {"style:s1"}
    readers = [t for t in rest.tasks if InputPart("code of s0", 0) in t.sources]
    assert {t.group for t in readers} == {"result:p00", "result:p10"}


def test_of_a_half_done_result_only_what_the_rest_is_made_from_is_computed_again() -> None:
    parts = range(len(GRAPH.outputs["p00"]))
    half = len(parts) // 2
    done = {pair: parts for pair in GRAPH.outputs} | {"p00": parts[:half]}
    code = {StoredResult("style:s0", "code", 0): "code of s0"}
    rest = without_done(GRAPH, code, done)
    assert {t.group for t in rest.tasks} == {"result:p00"}
    assert sorted(t.part for t in rest.tasks if t.stage == "up") == list(parts[half:])
    # A part of the result is two of `detail`, which read their neighbours before them.
    first = {s: min(t.part for t in rest.tasks if t.stage == s) for s in ("detail", "blur", "stem")}
    assert first == {"detail": 2 * half, "blur": 2 * half - 1, "stem": 2 * half - 2}


def test_nothing_left() -> None:
    rest = without_done(GRAPH, {}, {p: range(len(tasks)) for p, tasks in GRAPH.outputs.items()})
    assert rest.tasks == () and rest.seconds == 0
    assert set(rest.outputs) == set(GRAPH.outputs)


class Killed(BaseException):
    """Nothing of the driver runs after it."""


def kill() -> None:
    raise Killed


def test_a_resume_that_copies_for_long_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In virtual time: every part of a result takes longer to read than half of what is stale."""
    now = 0.0
    clock = SimpleNamespace(time=lambda: now, monotonic=lambda: now)
    reads: list[str] = []

    class Slow(LocalStore):
        def clock(self) -> float:
            return now

        def read(self, key: str, limit: int | None = None) -> bytes:
            nonlocal now
            if key.startswith(layout.results("job")):
                reads.append(key)
                assert not read_state(self, "job").stale(now), f"read {len(reads)} parts"
                now += 0.6 * STALE_AFTER
            return super().read(key, limit)

    store = Slow(tmp_path)
    job = fake_job(store)
    with pytest.raises(Killed):
        run_job(store, job, Meddling(177, kill), 1)
    ended = read_marks(store, job).ended
    left = [k for k in store.list(layout.results("job")) if k.split("/")[-2] not in ended]
    assert len(left) >= 3, "parts of a pair that has not ended"
    monkeypatch.setattr(recorder, "time", clock)
    assert run_job(store, job, fake_executor(), 1).status == "succeeded"
    assert reads == left


def test_a_store_that_hangs_costs_checkpoints_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "LAST_WRITE", 0.1)
    asked, answers = threading.Event(), threading.Event()

    class Hanging(LocalStore):
        def write(self, key: str, blob: bytes) -> None:
            asked.set()
            assert answers.wait(60)
            super().write(key, blob)

    job = fake_job(open_store(str(tmp_path), create=True), pairs=grid_of_pairs(1, 20))
    store = Hanging(tmp_path)
    checkpoints: Checkpoints[bytes] = Checkpoints(store, job, lambda handle: handle)
    for task in (t for t in FakePlan().graph(job.pairs).tasks if t.checkpoint):
        checkpoints.on_task_end(task, Completion(task.index, b"code"), 0)
    assert asked.wait(60)
    checkpoints.on_end()
    answers.set()
    checkpoints._thread.join(60)
    # The one that was being written; those that waited would outlive the job.
    assert len(store.list(layout.checkpoints("job"))) == 1
