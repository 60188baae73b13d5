"""A whole job on encrypted pictures: in this process, and on Ray with an actor killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.stored import pin_in_store
from jobs.execution.inprocess import InProcessExecutor
from jobs.execution.launch import ENTRY, MODULE
from jobs.execution.loading import ModelPin
from jobs.storage import layout
from jobs.storage.records import (
    JobRecord,
    JobState,
    PairEnd,
    PairRecord,
    read_job,
    read_marks,
    read_record,
    read_state,
    read_trace,
    write_record,
)
from jobs.storage.store import Store, open_store
from nst.ciphertext import Envelope
from nst.engines.base import Cipher, Evaluator, Published
from nst.engines.concrete.client import CircuitCipher
from nst.engines.concrete.preparation import quantized
from nst.engines.tasks import Task, TaskGraph
from nst.keyring import KeyRing
from nst.network.architecture import CONTENT, STYLE
from nst.network.integers import IntegerNetwork
from tests.command_line import namesakes
from tests.fakes import Meddling, put_model, run_job
from tests.toy import ENGINE, TOY_SIZE, encrypt, noise_input

CONTENTS = {"c0": noise_input(CONTENT, 1), "c1": noise_input(CONTENT, 2)}
STYLES = {"s0": noise_input(STYLE, 3)}
PATIENCE = 240.0
"""Seconds for a run of half a minute, on machines that are busy otherwise."""


@dataclass(frozen=True)
class Submitted:
    """What a client has put into a store: enough to put the same into another."""

    published: Published
    keys: bytes
    key_id: str
    inputs: dict[str, bytes]

    def graph(self, pairs: Sequence[PairRecord]) -> TaskGraph:
        """The tasks of pairs, as the driver costs them."""
        plan = self.published.plan
        return plan.graph(pairs, ENGINE.rates().seconds(plan.stages))

    def into(self, folder: Path, pairs: dict[str, tuple[str, str]]) -> tuple[Store, JobRecord]:
        store, plan = open_store(str(folder), create=True), self.published.plan
        put_model(store, plan, self.published.server_bundle.read_bytes())
        store.write(layout.evaluation_keys(self.key_id), self.keys)
        for input_id, blob in self.inputs.items():
            store.write(layout.encrypted_input("job", input_id), blob)
        job = JobRecord(
            job_id="job",
            created="2026-01-01T00:00:00+00:00",
            quality="toy",
            width=TOY_SIZE,
            height=TOY_SIZE,
            model_id=plan.model_id,
            key_id=self.key_id,
            pairs=[
                PairRecord(pair_id=p, content=c, style=s, result=p) for p, (c, s) in pairs.items()
            ],
        )
        write_record(store, layout.job("job"), job)
        return store, job


@pytest.fixture(scope="session")
def submitted(published: Published, key_ring: KeyRing, cipher: CircuitCipher) -> Submitted:
    pictures = {i: encrypt(cipher, each).pack() for i, each in {**CONTENTS, **STYLES}.items()}
    keys = key_ring.evaluation_keys(cipher.key_id)
    return Submitted(published, keys, cipher.key_id, pictures)


TWO_PAIRS = {"p0": ("c0", "s0"), "p1": ("c1", "s0")}
BROKEN = {"cut": ("cut", "s0"), "gone": ("gone", "s0"), "alien": ("alien", "s0"),
          "short": ("short", "s0"), "swapped": ("s0-as-content", "s0")}  # fmt: skip


@dataclass(frozen=True)
class Finished:
    store: Store
    job: JobRecord
    state: JobState

    def parts(self, pair_id: str) -> list[bytes]:
        end = read_record(self.store, layout.pair_end("job", pair_id), PairEnd)
        keys = [layout.result_part("job", end.attempt, pair_id, i) for i in range(end.parts)]
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
        "short": replace(whole, parts=whole.parts[:-1]).pack(),
        "s0-as-content": replace(whole, parts=tuple(b"junk" for _ in whole.parts)).pack(),
    }
    for input_id, blob in damaged.items():
        store.write(layout.encrypted_input("job", input_id), blob)
    return Finished(store, job, run_job(store, job, InProcessExecutor(evaluator), 1))


def check_results(finished: Finished, cipher: Cipher, network: IntegerNetwork) -> None:
    """Assert that both pairs decrypt to what the network gives in the clear."""
    expected = {
        pair_id: network.content_features(
            quantized(CONTENTS[content]), network.style_code(quantized(STYLES[style]))
        )
        for pair_id, (content, style) in TWO_PAIRS.items()
    }
    for pair_id, other in (("p0", "p1"), ("p1", "p0")):
        features = cipher.decrypt_result(finished.parts(pair_id), pair_id)[0]
        assert features.shape == expected[pair_id].shape
        # Rounding is approximate and a PBS may err: levels differ by one here and there.
        error = np.abs(features - expected[pair_id]).mean()
        assert error < 0.5 and error < 0.6 * np.abs(features - expected[other]).mean()


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
        "short": f"{TOY_SIZE // 4 - 1} parts",
        "swapped": "stage stem refused",
    }.items():
        assert words in reasons[pair_id]


def test_the_state_counts_pairs_and_work(in_process: Finished, submitted: Submitted) -> None:
    state = read_state(in_process.store, "job")
    assert state == in_process.state
    assert (state.status, state.pairs_done, state.pairs_failed) == ("failed", 2, len(BROKEN))
    assert state.pairs_total == 2 + len(BROKEN)
    # The style once, both contents, and of the bad pairs nothing.
    whole = submitted.graph([pair for pair in in_process.job.pairs if pair.pair_id in TWO_PAIRS])
    assert state.seconds_done == pytest.approx(whole.seconds)
    assert 0 < state.peak_live_bytes < sum(task.output_bytes for task in whole.tasks)


def test_a_resumed_job_does_nothing_twice(in_process: Finished) -> None:
    store = in_process.store

    def stored() -> dict[str, bytes]:
        about_the_driver = {layout.state("job"), layout.trace("job")}
        return {k: store.read(k) for k in store.list("jobs/job/") if k not in about_the_driver}

    before = stored()
    state = run_job(store, in_process.job, Meddling(1, lambda: pytest.fail("computes again")), 1)
    assert (state.pairs_done, state.pairs_failed) == (2, len(BROKEN))
    assert stored() == before


class Killed(BaseException):
    """What the death of a driver's process looks like from inside: nothing is tidied up."""


class DiesAfter(InProcessExecutor):
    """Runs so many tasks; then its driver dies, once the store has all checkpoints of them."""

    def __init__(self, evaluator: Evaluator, store: Store, count: int) -> None:
        super().__init__(evaluator)
        self.store, self.count = store, count
        self.ran: list[Task] = []

    def submit(self, task: Task, inputs: Sequence[bytes]) -> None:
        if len(self.ran) == self.count:
            expected, patience = sum(t.checkpoint for t in self.ran), PATIENCE
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
    def parts_done(self) -> set[int]:
        return {t.part for t in self.ran if t.stage == "up"}


@pytest.fixture
def dead(submitted: Submitted, evaluator: Evaluator, tmp_path: Path) -> Dead:
    store, job = submitted.into(tmp_path / "store", TWO_PAIRS)
    first = PairEnd(pair_id="p0", status="succeeded", attempt="a", parts=8)
    write_record(store, layout.pair_end("job", "p0"), first)
    tasks = submitted.graph(job.pairs[1:]).tasks
    executor = DiesAfter(evaluator, store, len(tasks) - 8)
    with pytest.raises(Killed):
        run_job(store, job, executor, 1)
    return Dead(store, job, executor.ran)


def test_a_resumed_job_does_what_is_left(
    dead: Dead, in_process: Finished, submitted: Submitted, evaluator: Evaluator, tmp_path: Path
) -> None:
    assert {t.group for t in dead.ran} == {"style:s0", "result:p1"}
    assert len(dead.parts_done) >= 3
    # A checkpoint that is damaged fails its pair by name, and is not there for the next try.
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "store", copied)
    other = open_store(str(copied))
    (code,) = other.list(layout.checkpoints("job"))
    other.write(code, other.read(code)[:-1])
    state = run_job(other, dead.job, DiesAfter(evaluator, other, 0), 1)
    reason = read_marks(other, dead.job).ended["p1"].reason
    assert (state.pairs_failed, "style_code" in reason) == (1, True)
    assert "is damaged" in reason
    assert other.list(layout.checkpoints("job")) == other.list(layout.results("job")) == []

    # So is a part of the result, which is computed again.
    keys = [k for k in dead.store.list(layout.results("job")) if k.endswith("/p1/000.ct")]
    dead.store.write(keys[0], dead.store.read(keys[0])[:-1])
    executor = Meddling(0, lambda: None)
    executor.evaluator = evaluator
    state = run_job(dead.store, dead.job, executor, 1)
    assert (state.status, state.pairs_done) == ("succeeded", 2)
    # Neither the style, whose code is stored, nor parts of the result that are.
    assert {t.group for t in executor.tasks} == {"result:p1"}
    again = {t.part for t in executor.tasks if t.stage == "up"}
    assert again == {0} | (set(range(8)) - dead.parts_done)
    assert state.seconds_done == pytest.approx(sum(t.seconds for t in executor.tasks))
    assert state.seconds_done == pytest.approx(state.seconds_total)
    assert len(executor.tasks) < len(submitted.graph(dead.job.pairs[1:]).tasks)
    # In one process evaluation is deterministic, whatever ran before.
    assert Finished(dead.store, dead.job, state).parts("p1") == in_process.parts("p1")
    # One driver's parts are left, and nothing of the way there.
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
    """Run a driver far from the source tree; `meanwhile` is called until it returns True.

    The working directory is a project that has packages of our names.
    """
    # Longer than the name of a socket may be.
    temporary = folder / ("long" * 20)
    temporary.mkdir()
    log = folder / "driver.log"
    submitted = store.exists(layout.job("job"))
    pin = pin_in_store(store, read_job(store, "job")) if submitted else ModelPin("", "", "", "")
    command = [
        sys.executable,
        "-P",
        str(ENTRY),
        MODULE,
        store.url,
        "job",
        "--actors",
        str(actors),
        *pin.options,
    ]
    seen: dict[int, psutil.Process] = {}
    with log.open("wb") as output:
        driver = subprocess.Popen(
            command,
            cwd=namesakes(folder / "project"),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(folder / "project")},
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
        if not read_state(store, "job").seconds_done:
            return False
        actors = [
            p for p in driver.children(recursive=True) if "EvaluatorActor" in " ".join(p.cmdline())
        ]
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
    graph = submitted.graph(job.pairs)
    assert (state.status, state.pairs_done, state.pairs_failed) == ("succeeded", 2, 0)
    assert state.seconds_done == pytest.approx(state.seconds_total)
    assert state.seconds_total == pytest.approx(graph.seconds)
    # Not compared to the bit with this process, whose client half may have planned FFTs before.
    check_results(Finished(store, job, state), cipher, network)

    trace = read_trace(store, "job")
    assert Counter((t.group, t.stage, t.part) for t in trace) == Counter(
        (t.group, t.stage, t.part) for t in graph.tasks
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
