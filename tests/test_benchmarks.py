"""Benchmarks run: its own code on the toy network, with nothing that takes long.

Jobs are not run again. What they would have computed is taken from the one toy job of all tests,
and their tasks' times are made up from the task graph.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from benchmarks import (
    architecture,
    batch,
    client,
    estimate,
    faults,
    grid,
    low,
    many,
    measure,
    monolithic,
    pbs,
    profile,
    quality,
    run,
    security,
    sharing,
)
from benchmarks import bytes as bytes_bench
from benchmarks.bare import BareCalls, Stages, time_stages
from benchmarks.dispatch import time_dispatch
from benchmarks.measure import PeakMemory, RoleUse
from benchmarks.stored import pin_in_store
from jobs.client.home import Home, LocalJob
from jobs.client.session import Session
from jobs.storage.records import FEW, TaskTrace, read_job, read_state
from jobs.storage.store import open_store
from nst.engines.base import Published
from nst.engines.concrete.plan import count_pbs
from nst.engines.rates import read_rates
from nst.folders import HOME_VARIABLE
from nst.model import Model
from nst.network import levels
from nst.training.options import TrainOptions
from nst.training.vgg import LAYERS_16
from tests.toy import TOY, TOY_P_ERROR, TOY_SIZE, toy_level, toy_network
from tests.toy_job import ToyJob
from tests.training_data import SHORT, make_pictures
from tests.vggs import random_arrays, write_npz

QUALITY = "toy"


@pytest.fixture(scope="module")
def bare(toy_job: ToyJob) -> Stages:
    """Bare calls of the toy's stages, once for all."""
    return time_stages(toy_job.local.store, toy_job.local.job_id)


@pytest.fixture
def record(
    toy_job: ToyJob, bare: Stages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], Any]:
    """Benchmarks at toy size that write into a folder of the test's; reads what one recorded."""
    results = tmp_path / "results"
    results.mkdir()
    for module in (batch, faults, grid, low, measure):
        monkeypatch.setattr(module, "FOLDER", results)
    monkeypatch.setitem(levels.LEVELS, QUALITY, toy_job.level)

    def load(folder: Path, name: str) -> Model:
        for there in (toy_job.home.keys, toy_job.home.models):
            shutil.copytree(there, folder / "home" / there.name, dirs_exist_ok=True)
        return real(folder, name)

    real = run.load
    for module in (batch, bytes_bench, client, estimate, grid, low, profile):
        monkeypatch.setattr(module, "load", load)
    for module in (batch, estimate, grid, low, profile):
        monkeypatch.setattr(module, "run_submitted", lambda *a: finished(toy_job, *a))
    monkeypatch.setattr("benchmarks.bare.BareProcess", lambda *_: FakeProcess(bare))

    def read(name: str) -> Any:
        return json.loads((results / f"{name}.json").read_text())

    return read


class FakeProcess:
    """Answers with what a bare process has measured, at once."""

    def __init__(self, bare: Stages) -> None:
        self.bare, self.answers = bare, list[Any]([bare])

    def ask(self, stage: str) -> None:
        self.answers.append(self.bare[stage]["seconds"])

    def answer(self) -> Any:
        return self.answers.pop(0)

    def peak_rss(self) -> int:
        return 10**9

    def close(self) -> None:
        pass


def finished(
    toy_job: ToyJob,
    folder: Path,
    local: LocalJob,
    actors: int,
    submit_s: float,
    watch: Callable[[int], AbstractContextManager[Any]] = lambda pid: nullcontext(),
) -> run.Finished:
    """A job as if it had run: a PBS took a millisecond, and one task followed the other."""
    with watch(os.getpid()):
        pass
    home, store = Home(folder / "home"), open_store(local.store)
    toy_job.play_back()(home, local, actors)
    job = read_job(store, local.job_id)
    plan = run.circuits(pin_in_store(store, job).job_plan(store, job))
    seconds = {circuit.name: circuit.pbs_per_row / 1000 for circuit in plan.circuits}
    trace, now = [], 1000.0
    for task in plan.graph(job.pairs, seconds).tasks:
        trace.append(
            TaskTrace(
                stage=task.stage,
                group=task.group,
                part=task.part,
                seconds=task.seconds,
                start=now,
                end=now + task.seconds,
                cpu_s=task.seconds,
            )
        )
        now += task.seconds
    state = read_state(store, local.job_id)
    state = state.model_copy(update={"first_task": trace[0].start, "last_task": trace[-1].end})
    memory = PeakMemory(2, 1, {"driver": RoleUse(1, 1, 1.0)})
    return run.Finished(Session(home, store), local, state, trace, memory, submit_s, 10.0)


def argue(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", *map(str, arguments)])


def test_low(record: Callable[[str], Any]) -> None:
    low.main(QUALITY)
    result = record("low")
    assert result["pbs_per_s"] == pytest.approx(1000)
    assert result["psnr_db"] > 0 and result["stored_bytes"] > 0


def test_batch(record: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    argue(monkeypatch, "--quality", QUALITY, "--pairs", 2)
    batch.main()
    result = record("batch")
    # One task after the other, on what should be two actors.
    assert result["idle_share"] == pytest.approx(0.5)
    assert result["parallel_efficiency"] == pytest.approx(result["of_bare_together"])
    tasks = record("batch_tasks")
    assert sum(map(len, tasks.values())) > 0


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_bare_calls_let_the_actors_stand_still(
    bare: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only them, and only while something is measured; time in a pause does not count."""
    seen = []

    class Looks(FakeProcess):
        def ask(self, stage: str) -> None:
            seen.append([p.status() for p in (actor, other)])
            super().ask(stage)

    monkeypatch.setattr("benchmarks.bare.BareProcess", lambda *_: Looks(bare))
    loop = "sleep 60; true"
    driver = subprocess.Popen(
        ["sh", "-c", f"sh -c '{loop}' ray::EvaluatorActor & sh -c '{loop}' raylet/raylet & wait"],
        start_new_session=True,
    )
    try:
        leader = psutil.Process(driver.pid)
        children: dict[str, psutil.Process] = {}

        def both() -> bool:
            # Before its exec a child has its parent's command line.
            children.update({p.cmdline()[-1]: p for p in leader.children() if p.cmdline()})
            return {"ray::EvaluatorActor", "raylet/raylet"} <= set(children)

        wait_for(both)
        actor, other = children["ray::EvaluatorActor"], children["raylet/raylet"]
        with BareCalls("", "", 2, every=0.05) as calls, calls.watch(driver.pid):
            wait_for(lambda: len(calls.found.pauses) >= 2)
        assert psutil.STATUS_STOPPED not in (actor.status(), other.status())
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert psutil.STATUS_STOPPED not in [of_other for _, of_other in seen]
    assert sum(of_actor == psutil.STATUS_STOPPED for of_actor, _ in seen) >= 6
    found = calls.found
    assert set(found.alone) == set(found.together) == set(bare)
    start, end = found.pauses[0]
    assert found.running(start - 1, end) == pytest.approx(1)


def test_sharing(toy_job: ToyJob) -> None:
    """Real processes and threads; processes with the same FFT must get the same bits."""
    result = sharing.compare(toy_job.local.store, toy_job.local.job_id, 1)
    assert len(result["calls_s"]["threads"]) == len(result["calls_s"]["processes"]) > 0
    assert min(result["rss_bytes"].values()) > 0
    assert result["calls_with_other_bits"]["processes"] == 0


def test_grid(record: Callable[[str], Any]) -> None:
    grid.main(QUALITY)
    result = record("grid")
    assert result["pbs_style_counted"] == result["pbs_style_if_once_each"] > 0
    # Results of all jobs are those of the one that has run.
    assert result["pixels_equal_to_single_pair"] == 1


def test_faults(record: Callable[[str], Any], tmp_path: Path) -> None:
    # The faults themselves are injected by tests/test_faults.py.
    assert len(faults.pairs_of_examples(tmp_path / "pairs", 3).read_text().splitlines()) == 4
    first, second = list(faults.FAULTS)[:2]
    for name in (second, first, second):
        faults.merge({"fault": name})
    assert [entry["fault"] for entry in record("faults")["faults"]] == [first, second]


def test_bytes(
    record: Callable[[str], Any], toy_job: ToyJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytes_bench, "LEVELS", {QUALITY: toy_job.level})
    monkeypatch.setattr(bytes_bench, "CHECKED", QUALITY)
    bytes_bench.main()
    result = record("bytes")
    checked = result["checked_on_ciphertexts"]
    assert all(0.9 < size["real_over_planned"] < 1.2 for size in checked.values())
    # What is stored more makes a death cheaper.
    again = result["levels"][QUALITY]["redone_after_a_death"]["2_actors"]
    nothing, checkpoints, all_stored = again.values()
    assert 1 > nothing > checkpoints > all_stored > 0


def test_monolithic(record: Callable[[str], Any]) -> None:
    result = monolithic.compared(toy_network(), TOY_SIZE, TOY_P_ERROR, "stem", 3, False)
    assert result["monolithic"]["pbs"] == toy_network().stages["stem"].stage.out_channels
    assert result["monolithic_over_staged"]["operations_per_pbs"] > 1


def test_profile(record: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "CALLS", 1)
    argue(monkeypatch, "--stage-quality", QUALITY, "--job-quality", QUALITY)
    profile.main()
    result = record("profile")
    parts = result["stage"]["call_s"]
    assert parts["evaluate"] > parts["read ciphertexts"] > 0
    assert result["job"]["actor_s"]["without a task"] > 0


def test_pbs(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pbs, "ROUNDS", 1)
    # Fewer kept bits than the circuits of all tests have: their accumulators are as wide.
    (row,) = pbs.measured(toy_network(), TOY_SIZE, (3,), (TOY_P_ERROR,), (TOY_P_ERROR,))
    plan = published.plan.summary()
    assert row["kept_bits"] == 3
    assert 0 < row["operations_per_pbs"] < plan["operations_per_pbs"]
    assert row["pbs"] > 0 and row["cpu_s_per_pbs"] > 0
    header, _, line = pbs.table([row]).splitlines()
    assert "3 bits" in header and f"| {TOY_P_ERROR:g} |" in line and " ms |" in line


def test_client(record: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REPEATS", 1)
    monkeypatch.setattr(client, "COMMANDS", {"help": client.COMMANDS["help"]})
    argue(monkeypatch, "--levels", QUALITY)
    client.main()
    result = record("client")
    assert result["start_up_s"]["help"] > 0
    figures = result["levels"][QUALITY]
    steps = figures["steps_s"]
    assert all(seconds > 0 for seconds in steps.values())
    assert figures["encrypt_and_upload_s"] == pytest.approx(
        steps["load_keys"] + steps["encrypt"] + steps["upload"]
    )
    assert steps["whole_submission"] > steps["encrypt"] / 2


def test_many(toy_job: ToyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps, in this process: memory is then this process's."""
    pairs, previews = 2 * FEW, "preview-3"
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setitem(levels.LEVELS, QUALITY, toy_job.level)
    monkeypatch.setattr(many, "QUALITY", QUALITY)
    for there in (toy_job.home.keys, toy_job.home.models):
        shutil.copytree(there, tmp_path / "home" / there.name)
    many.make_pairs(tmp_path / "pairs", pairs)
    many.make_pairs(tmp_path / "pairs-3", 3)
    names = ["dry_run", "submit", "fail", "status", "list", "fetch", previews]
    found = {name: many.step(name, tmp_path) for name in names}
    assert all(each["peak_rss_bytes"] > 0 for each in found.values())
    assert 0 < found["status"]["store_reads"] < 10 and found["fetch"]["store_reads"] < 10
    assert not list((tmp_path / "fetched").glob("0*.png"))
    page = (tmp_path / "fetched" / "gallery.html").read_text()
    assert page.count('<article class="failed"') == pairs
    assert len(list((tmp_path / previews).glob("0*.png"))) == 3


def test_security(
    toy_job: ToyJob,
    record: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(name: str, cache: Path, publishable: bool) -> Model:
        shutil.copytree(toy_job.home.root / "keys", cache.parent / "keys", dirs_exist_ok=True)
        shutil.copytree(toy_job.home.models, cache, dirs_exist_ok=True)
        return Model.load(name, cache)

    choices = security.choices
    monkeypatch.setattr(security, "choices", lambda level: {"default": choices(level)["default"]})
    monkeypatch.setattr(security, "ROUNDS", 1)
    monkeypatch.setattr(security, "Model", SimpleNamespace(load=load))
    monkeypatch.setattr(security, "run_submitted", lambda *a: finished(toy_job, *a))
    argue(monkeypatch, "--price-quality", QUALITY, "--quality", QUALITY, "--pairs", 1)
    security.main()
    result = record("security")
    (price,) = result["prices"]
    assert price["pbs_per_activation"] == price["over_default"] == 1
    for name in ("results", "publishable_results"):
        assert (
            result[name]["values"] > result[name]["differ"] >= result[name]["more_than_one_level"]
        )


def test_estimate(
    record: Callable[[str], Any],
    bare: Stages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, shipped = estimate.measured_rates, tmp_path / "rates.json"
    monkeypatch.setattr(estimate, "measured_rates", lambda *a: real(*a[:3], QUALITY))
    monkeypatch.setattr(estimate, "dispatch_seconds", lambda cores, _: cores / 1e6)
    monkeypatch.setattr(estimate, "SHIPPED", shipped)
    monkeypatch.setattr(estimate, "CORES", (2, 4))  # a night on more is walked for long
    monkeypatch.setattr(estimate, "ESTIMATED", ((QUALITY, 1), (QUALITY, 20)))
    argue(monkeypatch)
    estimate.main()
    result = record("estimate")
    one, two = result["runs"]
    # As if a PBS took a millisecond and one task followed the other, on any number of actors.
    assert one["wall_s"] == two["wall_s"] == pytest.approx(one["pbs"] / 1000)
    assert one["predicted_s"] > two["predicted_s"] > 0
    assert one["error"] == pytest.approx(one["predicted_s"] / one["wall_s"] - 1)
    rates = read_rates(shipped)
    assert set(rates.stages) == set(bare) and rates.dispatch_s == estimate.CORES[-1] / 1e6
    small, large = result["estimates"]
    assert large["work_core_hours"] > 10 * small["work_core_hours"] > 0


def test_dispatch() -> None:
    """On Ray: what no other test runs is the executor with a stand-in for its actors."""
    assert 0 < time_dispatch(2, 30) < 1


def test_architecture(
    record: Callable[[str], Any], data: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(**options: Any) -> TrainOptions:
        return TrainOptions(**{**options, **SHORT, "max_iter": options["max_iter"]})

    monkeypatch.setattr(architecture, "TrainOptions", short)
    monkeypatch.setattr(architecture, "LEVELS", {"low": toy_level()})
    monkeypatch.setattr(architecture, "VARIANTS", {"toy": TOY.to_dict(), "other": {}})
    argue(monkeypatch, "toy", *data, "--steps", 2)
    architecture.main()
    (row,) = record("architecture")["rows"]
    assert row["variant"] == "toy" and row["pbs"] == count_pbs(TOY, TOY_SIZE)
    assert row["style"] > 0 and row["minutes"] > 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options that name pictures and a VGG of random weights."""
    folder = tmp_path_factory.mktemp("data")
    return [
        *("--content-dir", make_pictures(folder / "content", 1)),
        *("--style-dir", make_pictures(folder / "style", 2)),
        *("--vgg", write_npz(folder / "vgg.npz", random_arrays(LAYERS_16))),
    ]


def test_quality(
    record: Callable[[str], Any],
    toy_job: ToyJob,
    data: list[object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    strong = ["--strong-dir", make_pictures(tmp_path / "strong", 3)]
    only = ["--engine", "concrete", "--quality", QUALITY, "--count", 2]
    argue(monkeypatch, *data, *strong, *only)
    quality.main()
    rows = record("quality")["rows"]
    assert [row["styles"] for row in rows] == [quality.STRONG, quality.PAINTINGS]
    for row in rows:
        assert row["quality"] == QUALITY and row["pairs"] + row["failed"] == 2
        assert row["date"] and row["weights"]
    assert set(rows[0]["figures"]) == {"untouched", "colours only", "preview", "simulated"}
    assert rows[0]["spread"]["preview"] > 0 and rows[1]["spread"] == {}
    # A part that is renewed takes its own place.
    argue(monkeypatch, *data, *strong, *only, "--styles", "strong")
    quality.main()
    again = record("quality")["rows"]
    assert [row["styles"] for row in again] == [quality.STRONG, quality.PAINTINGS]
    assert again[1] == rows[1] and again[0]["figures"] == rows[0]["figures"]
    monkeypatch.setattr(quality, "LEVELS", {QUALITY: toy_job.level})
    table = quality.tables(again)[quality.STRONG]
    content = again[0]["figures"]["preview"]["median"]["content"]
    assert table.count("\n") == 2 + 4 and f"| {content:.3f} (" in table


def test_tables_of_quality_are_those_of_the_record() -> None:
    rows = json.loads((measure.FOLDER / "quality.json").read_text())["rows"]
    page = (measure.FOLDER.parent / "docs" / "training.md").read_text()
    for styles, table in quality.tables(rows).items():
        assert table in page, f"{styles}: make bench-quality ARGS=--tables prints it"
