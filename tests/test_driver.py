"""A whole job on encrypted pictures: in this process, and on Ray with an actor killed."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest

from jobs.execution import driver as driver_module
from jobs.execution.driver import run_job
from nst.engines.tasks import Task, build_graph
from jobs.execution.inprocess import InProcessExecutor
from jobs.storage import layout
from jobs.storage.records import (
    JobRecord,
    JobState,
    PairEnd,
    PairRecord,
    TaskTrace,
    read_marks,
    read_record,
    read_state,
    write_record,
)
from jobs.storage.store import Store, open_store
from nst.network.architecture import CONTENT, STYLE
from nst.ciphertext import Envelope
from nst.engines.concrete.circuits import PLAN_FILE, SERVER_FILE, load_plan
from nst.engines.concrete.client import Cipher, KeyRing
from nst.network.integers import IntegerNetwork
from nst.engines.concrete.plan import CircuitPlan
from nst.engines.concrete.server import Evaluator
from nst.engines.concrete.switching import full_rows
from tests.toy import TOY_SIZE, noise_pixels

CONTENTS = {"c0": noise_pixels(TOY_SIZE, 1), "c1": noise_pixels(TOY_SIZE, 2)}
STYLES = {"s0": noise_pixels(TOY_SIZE, 3)}
PATIENCE = 240.0
"""Seconds for a run of half a minute, on machines that are busy otherwise."""


@dataclass(frozen=True)
class Submitted:
    """What a client has put into a store: enough to put the same into another."""

    circuits: Path
    plan: CircuitPlan
    keys: bytes
    key_id: str
    inputs: dict[str, bytes]

    def into(self, folder: Path, pairs: dict[str, tuple[str, str]]) -> tuple[Store, JobRecord]:
        store = open_store(str(folder), create=True)
        model_id = self.plan.model_id
        for key, name in (
            (layout.server_zip(model_id), SERVER_FILE),
            (layout.circuit_plan(model_id), PLAN_FILE),
        ):
            store.write(key, (self.circuits / name).read_bytes())
        store.write(layout.evaluation_keys(self.key_id), self.keys)
        for input_id, blob in self.inputs.items():
            store.write(layout.encrypted_input("job", input_id), blob)
        job = JobRecord(
            job_id="job",
            created="2026-01-01T00:00:00+00:00",
            quality="toy",
            model_id=model_id,
            key_id=self.key_id,
            pairs=[PairRecord(pair_id=p, content=c, style=s) for p, (c, s) in pairs.items()],
        )
        write_record(store, layout.job("job"), job)
        return store, job


@pytest.fixture(scope="session")
def submitted(circuits: Path, key_ring: KeyRing, cipher: Cipher) -> Submitted:
    pictures = {i: cipher.encrypt(p, CONTENT).pack() for i, p in CONTENTS.items()}
    pictures |= {i: cipher.encrypt(p, STYLE).pack() for i, p in STYLES.items()}
    keys = key_ring.evaluation_keys(cipher.key_id)
    return Submitted(circuits, load_plan(circuits), keys, cipher.key_id, pictures)


TWO_PAIRS = {"p0": ("c0", "s0"), "p1": ("c1", "s0")}
BROKEN = {"cut": ("cut", "s0"), "gone": ("gone", "s0"), "alien": ("alien", "s0"),
          "short": ("short", "s0"), "swapped": ("s0-as-content", "s0")}  # fmt: skip


@dataclass(frozen=True)
class Finished:
    store: Store
    job: JobRecord
    state: JobState

    def rows(self, pair_id: str) -> list[bytes]:
        end = read_record(self.store, layout.pair_end("job", pair_id), PairEnd)
        keys = [layout.result_row("job", end.attempt, pair_id, row) for row in range(end.rows)]
        return [self.store.read(key) for key in keys]


@pytest.fixture(scope="session")
def in_process(
    submitted: Submitted, evaluator: Evaluator, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """Two good pairs and some bad ones, run in this process."""
    store, job = submitted.into(tmp_path_factory.mktemp("store"), {**BROKEN, **TWO_PAIRS})
    whole = Envelope.unpack(submitted.inputs["c0"], "c0")
    damaged = {
        "cut": submitted.inputs["c0"][:-100],
        "alien": replace(whole, key_id="f" * 16).pack(),
        "short": replace(whole, rows=whole.rows[:-1]).pack(),
        "s0-as-content": replace(whole, rows=tuple(b"junk" for _ in whole.rows)).pack(),
    }
    for input_id, blob in damaged.items():
        store.write(layout.encrypted_input("job", input_id), blob)
    return Finished(store, job, run_job(store, job, InProcessExecutor(evaluator), 1))


class Refuses:
    """An executor for jobs that have nothing to do."""

    capacity = 1
    memory = math.inf

    def put(self, blob: bytes) -> bytes:
        return blob

    def get(self, handle: bytes) -> bytes:
        return handle

    def close(self) -> None:
        pass

    def submit(self, task: Task, inputs: list[bytes]) -> None:
        pytest.fail(f"computes {task.stage} again")


def check_results(finished: Finished, cipher: Cipher, network: IntegerNetwork) -> None:
    """Assert that both pairs decrypt to what the network gives in the clear."""
    expected = {
        pair_id: network.content_features(CONTENTS[content], network.style_code(STYLES[style]))
        for pair_id, (content, style) in TWO_PAIRS.items()
    }
    for pair_id, other in (("p0", "p1"), ("p1", "p0")):
        rows = [r for blob in finished.rows(pair_id) for r in full_rows(Envelope.unpack(blob, ""))]
        levels = cipher.decrypt(Envelope(cipher.key_id, cipher.model_id, tuple(rows)), pair_id)
        assert levels.shape == expected[pair_id].shape
        # Rounding is approximate and a PBS may err: levels differ by one here and there.
        error = np.abs(levels - expected[pair_id]).mean()
        assert error < 0.5 and error < 0.6 * np.abs(levels - expected[other]).mean()


def test_results_decrypt_to_what_the_clear_network_gives(
    in_process: Finished, cipher: Cipher, network: IntegerNetwork
) -> None:
    check_results(in_process, cipher, network)


def test_damaged_inputs_fail_their_pairs_and_no_others(in_process: Finished) -> None:
    finished = read_marks(in_process.store, in_process.job).ended
    assert {p for p, r in finished.items() if r.status == "succeeded"} == set(TWO_PAIRS)
    reasons = {p: r.reason for p, r in finished.items() if r.status == "failed"}
    assert set(reasons) == set(BROKEN)
    assert all(reason and "\n" not in reason for reason in reasons.values())
    for pair_id, words in {
        "cut": "is damaged",
        "gone": "no jobs/job/inputs/gone.ct",
        "alien": "made under key ffffffffffffffff",
        "short": f"{TOY_SIZE // 4 - 1} rows",
        "swapped": "stage stem refused",
    }.items():
        assert words in reasons[pair_id]


def test_the_state_counts_pairs_and_work(in_process: Finished, submitted: Submitted) -> None:
    state = read_state(in_process.store, "job")
    assert state == in_process.state
    assert (state.status, state.pairs_done, state.pairs_failed) == ("failed", 2, len(BROKEN))
    assert state.pairs_total == 2 + len(BROKEN)
    # The style once, both contents, and of the bad pairs nothing.
    assert state.pbs_done == submitted.plan.pbs_style + 2 * submitted.plan.pbs_content
    whole = sum(s.rows * s.output_bytes for s in submitted.plan.stages)
    assert 0 < state.peak_live_bytes < whole


def test_a_resumed_job_does_nothing_twice(in_process: Finished) -> None:
    store = in_process.store

    def stored() -> dict[str, bytes]:
        about_the_driver = {layout.state("job"), layout.trace("job")}
        return {k: store.read(k) for k in store.list("jobs/job/") if k not in about_the_driver}

    before = stored()
    state = run_job(store, in_process.job, Refuses(), 1)  # type: ignore[arg-type]
    assert (state.pairs_done, state.pairs_failed) == (2, len(BROKEN))
    assert stored() == before


STORED_STAGES = frozenset({"style_code", "stem", "coarse2"})
"""Where the toy, whose values are dear for what they cost, would store nothing but style codes."""


class Killed(BaseException):
    """What the death of a driver's process looks like from inside: nothing is tidied up."""


class DiesAfter(InProcessExecutor):
    """Runs so many tasks; then its driver dies, once the store has all checkpoints of them."""

    def __init__(self, evaluator: Evaluator, store: Store, count: int) -> None:
        super().__init__(evaluator)
        self.store, self.count = store, count
        self.ran: list[Task] = []

    def submit(self, task: Task, inputs: list[bytes]) -> None:  # type: ignore[override]
        if len(self.ran) == self.count:
            expected, patience = sum(t.stage in STORED_STAGES for t in self.ran), PATIENCE
            while len(self.store.list(layout.checkpoints("job"))) < expected and patience > 0:
                time.sleep(0.1)
                patience -= 0.1
            raise Killed
        super().submit(task, inputs)
        self.ran.append(task)


@dataclass(frozen=True)
class Dead:
    """A job whose second pair's driver has died on the way; the first pair is done."""

    store: Store
    job: JobRecord
    ran: list[Task]

    @property
    def rows_done(self) -> set[int]:
        return {t.row for t in self.ran if t.stage == "up"}


@pytest.fixture
def dead(
    submitted: Submitted, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Dead:
    monkeypatch.setattr(driver_module, "checkpointed", lambda *_: STORED_STAGES)
    store, job = submitted.into(tmp_path / "store", TWO_PAIRS)
    first = PairEnd(pair_id="p0", status="succeeded", attempt="a", rows=8)
    write_record(store, layout.pair_end("job", "p0"), first)
    tasks = build_graph(submitted.plan, job.pairs[1:]).tasks
    executor = DiesAfter(evaluator, store, len(tasks) - 8)
    with pytest.raises(Killed):
        run_job(store, job, executor, 1)
    return Dead(store, job, executor.ran)


def test_a_resumed_job_does_what_is_left(
    dead: Dead, in_process: Finished, submitted: Submitted, evaluator: Evaluator, tmp_path: Path
) -> None:
    assert {t.group for t in dead.ran} == {"style:s0", "pair:p1"}
    assert len(dead.rows_done) >= 3
    # A checkpoint that is damaged fails its pair by name, and is not there for the next try.
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "store", copied)
    other = open_store(str(copied))
    (code,) = [k for k in other.list(layout.checkpoints("job")) if "style_code" in k]
    other.write(code, other.read(code)[:-1])
    state = run_job(other, dead.job, DiesAfter(evaluator, other, 0), 1)
    reason = read_marks(other, dead.job).ended["p1"].reason
    assert (state.pairs_failed, "style_code" in reason) == (1, True)
    assert "is damaged" in reason
    assert other.list(layout.checkpoints("job")) == other.list(layout.results("job")) == []

    # So is a row of the result, which is computed again.
    keys = [k for k in dead.store.list(layout.results("job")) if k.endswith("/p1/000.ct")]
    dead.store.write(keys[0], dead.store.read(keys[0])[:-1])
    ran: list[Task] = []

    class Notes(InProcessExecutor):
        def submit(self, task: Task, inputs: list[bytes]) -> None:  # type: ignore[override]
            ran.append(task)
            super().submit(task, inputs)

    state = run_job(dead.store, dead.job, Notes(evaluator), 1)
    assert (state.status, state.pairs_done) == ("succeeded", 2)
    by_stage = Counter(t.stage for t in ran)
    # Nothing that is stored, and of the rest what the missing rows are made from.
    assert not {(t.stage, t.row) for t in ran if t.stage in STORED_STAGES} & {
        (t.stage, t.row) for t in dead.ran
    }
    assert {t.row for t in ran if t.stage == "up"} == {0} | (set(range(8)) - dead.rows_done)
    assert not {n for n in by_stage if n.startswith("style_")}
    assert state.pbs_done == state.pbs_total == sum(t.pbs for t in ran)
    assert state.pbs_total < (submitted.plan.pbs_style + submitted.plan.pbs_content) / 2
    # In one process evaluation is deterministic, whatever ran before.
    assert Finished(dead.store, dead.job, state).rows("p1") == in_process.rows("p1")
    # One driver's rows are left, and nothing of the way there.
    assert len(dead.store.list(layout.results("job"))) == 8
    assert dead.store.list(layout.checkpoints("job")) == []


@dataclass(frozen=True)
class Driver:
    """A driver process that has ended."""

    returncode: int
    output: str
    left_over: list[psutil.Process]


def run_driver(
    store: Store,
    actors: int,
    folder: Path,
    meanwhile: Callable[[psutil.Process], bool] = lambda _: True,
) -> Driver:
    """Run a driver far from the source tree; `meanwhile` is called until it returns True."""
    # Longer than the name of a socket may be.
    temporary = folder / ("long" * 20)
    temporary.mkdir()
    log = folder / "driver.log"
    command = [
        sys.executable,
        "-m",
        "jobs.execution.driver",
        store.url,
        "job",
        "--actors",
        str(actors),
    ]
    seen: dict[int, psutil.Process] = {}
    with log.open("wb") as output:
        driver = subprocess.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        try:
            process, deadline = psutil.Process(driver.pid), time.time() + PATIENCE
            satisfied = False
            while driver.poll() is None:
                assert time.time() < deadline, log.read_text()
                try:
                    seen |= {p.pid: p for p in process.children(recursive=True)}
                    satisfied = satisfied or meanwhile(process)
                except psutil.NoSuchProcess:
                    pass
                time.sleep(0.1)
        finally:
            if driver.poll() is None:
                driver.terminate()
                driver.wait(30)
    _, left = psutil.wait_procs(seen.values(), timeout=20)
    return Driver(driver.returncode, log.read_text(), left)


@pytest.mark.slow
def test_ray_does_the_job_even_if_an_actor_is_killed(
    submitted: Submitted, cipher: Cipher, network: IntegerNetwork, tmp_path: Path
) -> None:
    store, job = submitted.into(tmp_path / "store", TWO_PAIRS)
    killed: list[int] = []

    def kill_an_actor(driver: psutil.Process) -> bool:
        if not read_state(store, "job").pbs_done:
            return False
        actors = [p for p in driver.children(recursive=True) if "RowActor" in " ".join(p.cmdline())]
        assert len(actors) == 2
        actors[0].kill()
        killed.append(actors[0].pid)
        return True

    driver = run_driver(store, 2, tmp_path, kill_an_actor)
    assert driver.returncode == 0, driver.output
    assert len(killed) == 1
    assert driver.left_over == []
    assert "Traceback" not in driver.output

    state = read_state(store, "job")
    plan = submitted.plan
    assert (state.status, state.pairs_done, state.pairs_failed) == ("succeeded", 2, 0)
    assert state.pbs_done == state.pbs_total == plan.pbs_style + 2 * plan.pbs_content
    # Not compared to the bit with this process, whose client half may have planned FFTs before.
    check_results(Finished(store, job, state), cipher, network)

    trace = [TaskTrace(**entry) for entry in json.loads(store.read(layout.trace("job")))]
    tasks = build_graph(plan, job.pairs).tasks
    assert Counter((t.group, t.stage, t.row) for t in trace) == Counter(
        (t.group, t.stage, t.row) for t in tasks
    )
    assert all(state.first_task <= t.start < t.end <= state.last_task for t in trace)
    assert all(t.cpu_s > 0 for t in trace)
    # Two actors: some tasks overlap.
    trace.sort(key=lambda t: t.start)
    assert any(b.start < a.end for a, b in pairwise(trace))


@pytest.mark.slow
def test_a_job_that_cannot_run_says_why(submitted: Submitted, tmp_path: Path) -> None:
    store, job = submitted.into(tmp_path / "store", TWO_PAIRS)
    (tmp_path / "store" / layout.evaluation_keys(job.key_id)).unlink()
    driver = run_driver(store, 1, tmp_path)
    assert driver.returncode != 0
    assert driver.left_over == []
    state = read_state(store, "job")
    assert (state.status, state.pairs_total, state.pairs_done) == ("failed", 2, 0)
    assert state.reason == (
        f"store {store.url} has no {layout.evaluation_keys(job.key_id)}; was the job deleted?"
    )


def test_a_job_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    driver = run_driver(store, 1, tmp_path)
    assert driver.returncode == 1
    assert driver.output.startswith("error: store") and driver.output.count("\n") == 1


def test_a_driver_needs_an_actor(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    driver = run_driver(store, 0, tmp_path)
    assert driver.returncode == 2 and "--actors" in driver.output
