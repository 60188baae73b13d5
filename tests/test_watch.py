"""A job while it runs: the table, the lines where nothing can be drawn, Ctrl-C, logs of a pair."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from cluster.types import Completion
from jobs.cli.job import follow as follow_in_terminal
from jobs.cli.screen import Screen
from jobs.client import drivers, watch
from jobs.client.home import Home, LocalJob, LocalPair, SkippedPair
from jobs.client.pair_log import pair_named
from jobs.client.session import Session
from jobs.storage import layout
from jobs.storage.records import (
    JobRecord,
    JobState,
    PairEnd,
    read_state,
    write_record,
)
from jobs.storage.store import Store, open_store
from tests.command_line import run
from tests.fakes import PLAN, Meddling, cache_model, fake_executor, fake_job, run_job


class DroppingExecutor(Meddling):
    """Loses the first result that it has."""

    def __init__(self) -> None:
        super().__init__(0, lambda: None)
        self.dropped = False

    def wait(self, timeout: float) -> list[Completion[bytes]]:
        """See `Executor`."""
        ended = super().wait(timeout)
        if ended and not self.dropped:
            self.dropped = True
            return [Completion(ended[0].index, None, "its worker died"), *ended[1:]]
        return ended


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("NST_BATCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(watch, "POLL", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    return Home(tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Store:
    return open_store(str(home.store), create=True)


@pytest.fixture
def job(store: Store) -> JobRecord:
    return fake_job(store)


@pytest.fixture
def local(home: Home, store: Store, job: JobRecord) -> LocalJob:
    """The job as its client knows it: pairs are called n0, n1 ..."""
    pairs = [
        LocalPair(
            pair_id=p.pair_id, result=p.result, name=f"n{i}", content=0, style=0, box=[0, 0, 1, 1]
        )
        for i, p in enumerate(job.pairs)
    ]
    local = LocalJob(
        job_id="job", created=job.created, store=store.url, quality="toy", width=32, height=32,
        engine=PLAN.engine, key_id="key", model_id=job.model_id, pairs=pairs,
        skipped=[SkippedPair(name="text", reason="is no picture")],
    )  # fmt: skip
    home.save_job(local)
    cache_model(home.models)
    return local


def steps(store: Store, local: LocalJob) -> Iterator[bool]:
    """What a driver would do to the store between two looks."""
    first, second = (pair.pair_id for pair in local.pairs[:2])
    state = JobState(status="running", pairs_total=6, seconds_total=400, actors=4, nodes=2)
    state.first_task, state.seconds_done = 1.0, 100
    state.pairs_running, state.stages = [first, second], {first: "up", second: "stem"}
    write_record(store, layout.state("job"), state)
    yield True
    yield True
    end = PairEnd(pair_id=first, status="failed", reason="its worker died")
    write_record(store, layout.pair_end("job", first), end)
    state.pairs_running, state.stages, state.pairs_failed = [second], {second: "up"}, 1
    state.attempts_failed = 3
    write_record(store, layout.state("job"), state)
    yield True
    state.status = "cancelled"
    write_record(store, layout.state("job"), state)
    yield True


def follow(store: Store, local: LocalJob, terminal: bool) -> str:
    """All that watching those steps prints."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=90)
    happening = steps(store, local)
    state = watch.watch(store, local, console, lambda _: next(happening))
    assert state.status == "cancelled"
    return out.getvalue()


def test_lines_are_plain_and_tell_only_what_changes(store: Store, local: LocalJob) -> None:
    assert follow(store, local, terminal=False).splitlines() == [
        "job job: submitted",
        "job job: running",
        "n0: running",
        "n1: running",
        "n0: failed: its worker died",
        "job job: cancelled",
        "n1: cancelled",
        "n2: cancelled",
        "n3: cancelled",
        "n4: cancelled",
        "n5: cancelled",
    ]


def test_lines_tell_of_progress_now_and_then(
    store: Store, local: LocalJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PLAIN_EVERY", -1.0)
    lines = follow(store, local, terminal=False).splitlines()
    assert sum("25% of 6 min 40 s" in line and "ETA" in line for line in lines) == 1


def test_the_table_shows_stages_progress_failures_and_nodes(store: Store, local: LocalJob) -> None:
    text = follow(store, local, terminal=True)
    for part in (
        *("n0", "n5", "running", "queued", "stem", "up"),
        *("25% of 6 min 40 s of core time", "ETA", "4 actors on 2 nodes", "1 failed"),
        *("its worker died", "3 tasks to be begun again"),
    ):
        assert part in text
    assert "\x1b[" in text


def test_what_failed_is_shown_first_and_long_jobs_are_cut(local: LocalJob) -> None:
    from jobs.client.view import MOST_ROWS, Snapshot, table

    pairs = [p.model_copy(update={"pair_id": f"{i}", "name": f"n{i}"}) for i, p in
             enumerate(local.pairs * 10)]  # fmt: skip
    ended = {"59": PairEnd(pair_id="59", status="failed", reason="boom")}
    long = local.model_copy(update={"pairs": pairs})
    state = JobState(status="running", pairs_running=["3"], seconds_total=4, seconds_done=1)
    out = io.StringIO()
    Console(file=out, width=90).print(table(Snapshot(long, state, ended, "words")))
    names = [line.split()[1] for line in out.getvalue().splitlines() if "│ n" in line]
    assert any(line.startswith("┏") for line in out.getvalue().splitlines())
    assert names[:2] == ["n59", "n3"] and len(names) == MOST_ROWS
    assert "60 pairs: 1 failed, 1 running, 58 queued" in out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_ctrl_c_detaches_and_says_how_to_come_back(
    home: Home,
    store: Store,
    local: LocalJob,
    terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Interrupted:
        """A driver whose user presses Ctrl-C."""

        def alive(self) -> bool:
            raise KeyboardInterrupt

        def logs(self) -> str:
            return ""

        def stop(self) -> None:
            pytest.fail("the job is to go on")

    write_record(store, layout.state("job"), JobState(status="running", pairs_total=6))
    screen = Screen()
    screen.console = Console(file=io.StringIO(), force_terminal=terminal)
    follow_in_terminal(Session(home, store), local, Interrupted(), screen, None)
    told = capsys.readouterr().out
    assert "the job goes on" in told and "nst-batch status job --watch" in told
    assert "nst-batch fetch job" in told
    assert read_state(store, "job").status == "running"
    monkeypatch.setattr(drivers, "driver_of", lambda *_: Interrupted())
    again = run("status", "job", "--watch")
    assert again.exit_code == 0 and "the job goes on" in again.output


def test_a_driver_does_not_get_the_terminals_ctrl_c(
    home: Home, local: LocalJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    driver = drivers.start_here(home, local, 1)
    try:
        assert os.getsid(driver.pid) == driver.pid != os.getsid(0)
    finally:
        driver.kill()
        driver.wait()


def test_watch_with_json_prints_nothing_else(store: Store, local: LocalJob, job: JobRecord) -> None:
    run_job(store, job, fake_executor(), 1)
    result = run("status", "job", "--watch", "--json")
    assert result.exit_code == 1, "a pair was skipped"
    assert json.loads(result.stdout)["status"] == "succeeded"


@pytest.fixture
def driver_log(home: Home, store: Store, job: JobRecord, local: LocalJob) -> Path:
    """What a driver has printed that lost a task and then succeeded."""
    import logging

    from jobs.execution.driver import log_to_stderr
    from jobs.execution.recorder import log

    log_to_stderr()
    (handler,) = log.handlers
    assert isinstance(handler, logging.StreamHandler)
    path = home.driver_log("job")
    try:
        with path.open("w") as file:
            handler.setStream(file)
            run_job(store, job, DroppingExecutor(), 1)
    finally:
        log.removeHandler(handler)
        log.propagate = True
    return path


def test_logs_of_a_pair_by_its_name(store: Store, driver_log: Path, local: LocalJob) -> None:
    assert read_state(store, "job").attempts_failed == 1
    plain = driver_log.read_text()
    assert "n0" not in plain, "the driver knows no names"
    whole = run("logs", "job")
    for pair in local.pairs:
        assert f"pair {pair.pair_id} ({pair.name}): succeeded" in whole.stdout
    # The first task was of a style, which three pairs share.
    ends = [p.name for p in local.pairs if "its worker died" in run("logs", "job", "--pair", p.name)
            .stdout]  # fmt: skip
    assert len(ends) == 3
    own = run("logs", "job", "--pair", "n5").stdout.splitlines()
    assert any("running" in line for line in own) and any("succeeded" in line for line in own)
    assert all("n5" in line or " task" in line for line in own)
    assert any(" up: 4 tasks, " in line and " for " not in line for line in own)
    shared = [line for line in own if " look: " in line]
    assert len(shared) == 1 and shared[0].endswith(", for 3 pairs")


def test_logs_as_json_are_what_is_printed(driver_log: Path, local: LocalJob) -> None:
    whole = json.loads(run("logs", "job", "--json").stdout)
    assert whole == {"job": "job", "lines": run("logs", "job").stdout.splitlines()}
    own = json.loads(run("logs", "job", "--pair", "n5", "--json").stdout)
    assert (own["job"], own["pair"]) == ("job", "n5")
    printed = run("logs", "job", "--pair", "n5").stdout.splitlines()
    assert own["lines"] == printed[: len(own["lines"])] != []
    assert len(printed) == len(own["lines"]) + len(own["stages"])
    last = own["stages"][-1]
    assert (last["stage"], last["tasks"], last["pairs"]) == ("up", 4, 1)
    assert own["stages"][0]["pairs"] == 3, "its style's"
    assert last["end"] >= last["start"] and last["core_s"] >= 0


@pytest.mark.parametrize(
    ("name", "words"), [("n55", "did you mean n5"), ("text", "was not submitted: is no picture")]
)
def test_pairs_that_have_no_logs(local: LocalJob, name: str, words: str) -> None:
    result = run("logs", "job", "--pair", name)
    assert result.exit_code == 2 and words in result.output
    assert len(result.output.splitlines()) == 1


def test_a_pair_is_found_by_a_name_that_looks_like_its_own(local: LocalJob) -> None:
    named = local.pairs[0].model_copy(update={"name": "cafe\u0301"})
    local = local.model_copy(update={"pairs": [named, *local.pairs[1:]]})
    assert pair_named(local, "caf\u00e9") == pair_named(local, "cafe\u0301") == named
