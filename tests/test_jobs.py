"""Commands for submitted jobs, on jobs without cryptography that are driven in this process."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path, PurePath

import pytest
from ray.exceptions import AuthenticationError

from jobs.client import drivers, lifecycle
from jobs.client.drivers import ClusterDriver, LocalDriver
from jobs.client.home import JOB_FILE, Home, LocalJob, LocalPair
from jobs.client.pictures import Box
from jobs.client.session import Session
from jobs.execution import launch
from jobs.options import Target
from jobs.storage import layout
from jobs.storage.local_store import LocalStore
from jobs.storage.records import (
    STALE_AFTER,
    JobRecord,
    JobState,
    read_job,
    read_marks,
    read_state,
    write_record,
)
from jobs.storage.store import Store, open_store
from nst.errors import ClusterError
from tests.command_line import refused, run
from tests.fakes import PLAN, cache_model, fake_executor, fake_job, run_job, sha256
from tests.plans import grid_of_pairs

SILENT = "http://127.0.0.1:9"
"""A port that no Jobs API has."""
BOX = Box(0, 0, PLAN.size.width, PLAN.size.height)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("NST_BATCH_HOME", str(tmp_path / "home"))
    home = Home(tmp_path / "home")
    cache_model(home.models)
    return home


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


@pytest.fixture
def session(home: Home, store: Store) -> Session:
    return Session(home, store)


def local_job_of(home: Home, store: Store, job: JobRecord) -> LocalJob:
    """Remember a job as if it had been submitted from here."""
    local = LocalJob(
        job_id=job.job_id,
        created=job.created,
        store=store.url,
        quality=job.quality,
        width=job.width,
        height=job.height,
        engine=PLAN.engine,
        key_id=job.key_id,
        model_id=job.model_id,
        pairs=[
            LocalPair(
                pair_id=p.pair_id,
                result=p.result,
                name=f"name of {p.pair_id}",
                content=0,
                style=0,
                box=BOX,
            )
            for p in job.pairs
        ],
        skipped=[],
    )
    home.save_job(local)
    return local


@pytest.fixture
def local(home: Home, store: Store) -> LocalJob:
    return local_job_of(home, store, fake_job(store, pairs=grid_of_pairs(2, 1)))


@pytest.fixture
def drive(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Drivers run in this process, to their end; returns what they were given as actors."""
    started: list[int] = []

    def start_here(_: Home, local: LocalJob, actors: int, *__: object) -> None:
        started.append(actors)
        run_job(store, read_job(store, local.job_id), fake_executor(), actors)

    monkeypatch.setattr(drivers, "start_here", start_here)
    return started


def shown(job: str = "job") -> dict[str, str]:
    pairs = json.loads(run("status", job, "--json").stdout)["pairs"]
    return {pair["name"]: pair["status"] for pair in pairs}


def set_state(store: Store, **fields: object) -> None:
    state = JobState(pairs_total=2, heartbeat=store.clock(), **fields)  # type: ignore[arg-type]
    write_record(store, layout.state("job"), state)


def process_of(job: str) -> subprocess.Popen[bytes]:
    """A process that looks like a local driver of a job."""
    code = "import time; print('ready', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, job], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    return process


def test_a_job_from_retry_to_its_end(home: Home, local: LocalJob, drive: list[int]) -> None:
    assert set(shown().values()) == {"submitted"}
    assert "retry job" in run("status", "job").output
    result = run("retry", "job", "--actors", "3")
    assert result.exit_code == 0, result.output
    assert drive == [3]
    assert set(shown().values()) == {"succeeded"}
    (row,) = json.loads(run("list", "--json").stdout)
    assert (row["job"], row["status"], row["pairs_done"]) == ("job", "succeeded", 2)
    assert run("status", "job", "--watch").exit_code == 0
    # Nothing is left to do, so nothing is started.
    again = run("retry", "job", "--failed")
    assert again.exit_code == 0 and drive == [3]
    assert again.output == "job job: nothing is left to do\n"


def test_failed_pairs_are_tried_again_only_if_asked(
    home: Home, store: Store, drive: list[int]
) -> None:
    pairs = grid_of_pairs(2, 1)
    local_job_of(home, store, fake_job(store, pairs=pairs, poisoned="c1"))
    assert run("retry", "job").exit_code == 1
    assert shown() == {"name of p00": "succeeded", "name of p10": "failed"}
    assert "refused" in run("status", "job").output
    assert run("status", "job").exit_code == 1
    kept = read_marks(store, fake_job(store, pairs=pairs)).ended["p00"]
    again = run("retry", "job")
    assert again.exit_code == 1 and len(drive) == 1
    assert "failed pairs: nst-batch retry job --failed" in again.output
    again = run("retry", "job", "--failed")
    assert again.exit_code == 0, again.output and len(drive) == 2
    assert set(shown().values()) == {"succeeded"}
    assert read_marks(store, fake_job(store, pairs=pairs)).ended["p00"] == kept


def test_many_pairs_are_told_in_few_lines_and_few_reads(
    home: Home, store: Store, drive: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = grid_of_pairs(9, 3)
    local_job_of(home, store, fake_job(store, pairs=pairs, poisoned="c8"))
    assert run("retry", "job").exit_code == 1
    reads: list[str] = []
    read = LocalStore.read

    def noted(self: LocalStore, key: str, limit: int | None = None) -> bytes:
        reads.append(key)
        return read(self, key, limit)

    monkeypatch.setattr(LocalStore, "read", noted)
    monkeypatch.setattr("jobs.cli.job.MOST_SHOWN", 4)
    text = run("status", "job").output
    assert text.count("failed ") >= 3 and text.count("succeeded") == 1
    assert "4 of 27 pairs; status job --json has all" in text
    assert len(reads) == 4 and not [key for key in reads if "pair-" in key]
    assert len(shown()) == 27
    # Failed pairs that get another chance are told by their new markers.
    fake_job(store, pairs=pairs)
    again = run("retry", "job", "--failed")
    assert again.exit_code == 0, again.output
    assert set(shown().values()) == {"succeeded"}


def test_a_cancelled_job_can_be_taken_up(store: Store, local: LocalJob, drive: list[int]) -> None:
    result = run("cancel", "job")
    assert result.exit_code == 0 and "cancelled, 0/2" in result.output
    assert set(shown().values()) == {"cancelled"}
    assert run("status", "job").exit_code == 1
    assert run("retry", "job").exit_code == 0
    assert set(shown().values()) == {"succeeded"}
    # A job that has ended is not cancelled any more.
    assert "succeeded" in run("cancel", "job").output
    assert not store.exists(layout.cancellation("job"))


def test_a_driver_that_does_not_listen_is_ended(
    session: Session, home: Home, store: Store, local: LocalJob
) -> None:
    process = process_of("job")
    try:
        home.save_job(local.model_copy(update={"driver_pid": process.pid}))
        set_state(store, status="running")
        assert lifecycle.cancel(session, home.job("job"), patience=0.2).status == "cancelled"
        assert process.wait(20) != 0
    finally:
        process.kill()


def test_a_job_at_work_is_left_alone(
    home: Home, store: Store, local: LocalJob, drive: list[int]
) -> None:
    process = process_of("job")
    try:
        home.save_job(local.model_copy(update={"driver_pid": process.pid}))
        set_state(store, status="running")
        refused(run("retry", "job"), "is running", "cancel")
        refused(run("delete", "job", "--yes"), "is running", "cancel")
        assert "driver gone" not in run("status", "job").output
    finally:
        process.kill()
        process.wait()
    result = run("status", "job")
    assert "driver gone" in result.output and "retry job" in result.output
    result = run("status", "job", "--watch")
    assert result.exit_code == 1 and "retry job" in result.output
    assert run("retry", "job").exit_code == 0 and len(drive) == 1


def test_a_process_that_got_the_drivers_number_is_not_the_driver(
    home: Home, local: LocalJob
) -> None:
    process = process_of("other")
    try:
        driver = LocalDriver(home, local.model_copy(update={"driver_pid": process.pid}))
        assert not driver.alive()
        driver.stop()
        assert process.poll() is None
    finally:
        process.kill()


def test_a_silent_cluster_is_judged_by_the_sign_of_life(
    session: Session, home: Home, store: Store, local: LocalJob
) -> None:
    local = local.model_copy(update={"cluster": SILENT, "submission": "s"})
    home.save_job(local)
    driver = ClusterDriver(local)
    set_state(store, status="running")
    assert lifecycle.at_work(store, local, read_state(store, "job"), driver)
    late = JobState(status="running", heartbeat=store.clock() - STALE_AFTER - 1)
    write_record(store, layout.state("job"), late)
    assert not lifecycle.at_work(store, local, late, driver)
    assert "driver gone" in run("status", "job").output
    # It cannot be stopped, and need not be.
    assert lifecycle.cancel(session, local).status == "cancelled"
    refused(run("logs", "job"), SILENT, "--cluster", code=3)


def test_a_cluster_that_does_not_answer(
    home: Home, store: Store, local: LocalJob, drive: list[int]
) -> None:
    refused(run("retry", "job", "--cluster", SILENT), SILENT, code=3)
    assert read_state(store, "job").status == "submitted" and not drive
    refused(run("retry", "job", "--cluster", "ftp://x"), "ftp://x", "http://host:8265")
    # Of two places the last one counts.
    assert run("retry", "job", "--cluster", SILENT, "--here").exit_code == 0 and drive


def test_a_retry_of_failed_pairs_asks_the_cluster_before_it_deletes_their_markers(
    session: Session, drive: list[int]
) -> None:
    pairs = grid_of_pairs(2, 1)
    local_job_of(session.home, session.store, fake_job(session.store, pairs=pairs, poisoned="c1"))
    assert run("retry", "job").exit_code == 1
    before = session.store.list("")
    refused(run("retry", "job", "--failed", "--cluster", SILENT), SILENT, code=3)
    assert session.store.list("") == before and "name of p10" in shown()
    assert run("status", "job").exit_code == 1 and len(drive) == 1


def test_what_a_cluster_is_told(
    session: Session, home: Home, store: Store, local: LocalJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store and ids, and nothing of this machine."""
    told: list[dict[str, object]] = []

    class Client:
        def __init__(self, address: str) -> None:
            assert address == "http://127.0.0.1:1"

        def submit_job(self, **arguments: object) -> None:
            told.append(arguments)

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", Client)
    monkeypatch.setattr(launch.socket, "create_connection", lambda *_: socket.socket())
    monkeypatch.setenv("NST_BATCH_PASSPHRASE", "correct horse")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    local = local.model_copy(update={"store": "s3://bucket/a?region=r&profile=mine"})
    drivers.start(session, local, Target("127.0.0.1:1", "/opt/the python"), 0)
    ((entrypoint, submission),) = [(t.pop("entrypoint"), t.pop("submission_id")) for t in told]
    assert told == [{}]
    pin = drivers.pin_of(home, local)
    assert entrypoint == (
        "'/opt/the python' -P -m nst_batch jobs.execution.driver 's3://bucket/a?region=r' job "
        f"--actors 0 --cluster --model {pin.model_id} --key key --plan {pin.plan} "
        f"--bundle {pin.bundle}"
    )
    saved = home.job("job")
    assert (saved.cluster, saved.cluster_python) == ("127.0.0.1:1", "/opt/the python")
    assert saved.submission == submission and "job" in str(submission)


def test_a_cluster_that_has_just_started_is_waited_for(
    session: Session, home: Home, local: LocalJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's head answers before it knows of a node that could take a job."""
    says = "Request failed with status code 500: No available agent to submit job"
    error = RuntimeError(f"{says}\nTraceback ...")
    asked: list[int] = []

    class Client:
        def __init__(self, _: str) -> None:
            """Of a cluster."""

        def submit_job(self, **_: object) -> None:
            asked.append(1)
            if len(asked) < 3:
                raise error

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", Client)
    monkeypatch.setattr(launch.socket, "create_connection", lambda *_: socket.socket())
    monkeypatch.setattr(launch, "AGENT_EVERY", 0)
    drivers.start(session, local, Target("127.0.0.1:1"), 0)
    assert len(asked) == 3 and home.job("job").submission
    monkeypatch.setattr(launch, "AGENT_SECONDS", 0)
    asked.clear()
    with pytest.raises(ClusterError, match=says):
        drivers.start(session, local, Target("127.0.0.1:1"), 0)
    assert len(asked) == 1


def test_a_token_that_is_missing_is_one_line(
    local: LocalJob, drive: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ray raises then is no error of Python's."""

    def client(_: str) -> None:
        raise AuthenticationError("Missing authentication token\n\nFor more information, see ...")

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", client)
    monkeypatch.setattr(launch.socket, "create_connection", lambda *_: socket.socket())
    refused(
        run("retry", "job", "--cluster", "h:1"), "h:1", "Missing authentication", "token", code=3
    )
    assert not drive


def test_logs_are_shown_without_what_steers_terminals(home: Home, local: LocalJob) -> None:
    assert run("logs", "job").output == ""
    home.driver_log("job").write_text("one\x1b[2J\ttwo\nthree")
    assert run("logs", "job").output == "one [2J two\nthree"


def test_logs_are_shown_without_what_ray_s_object_store_says(home: Home, local: LocalJob) -> None:
    dump = (
        "Plasma Store Usage:\n- objects spillable: 28\n- bytes in use: 681107\n\n"
        "- objects created by worker: 28\n\nEviction Stats:\n(global lru) used: 0%\n"
        "(global lru) bytes evicted: 0\n\n"
    )
    home.driver_log("job").write_text(f"one\n{dump}two\n\n{dump}{dump}- three\n")
    assert run("logs", "job").output == "one\ntwo\n\n- three\n"


def test_a_deleted_job_leaves_nothing(
    home: Home, store: Store, local: LocalJob, drive: list[int]
) -> None:
    run("retry", "job")
    store.write(layout.result_part("job", "dead", "p00", 0), b"an orphan")
    refused(run("delete", "job"), "--yes")
    assert home.jobs()
    result = run("delete", "job", "--yes")
    assert result.exit_code == 0, result.output
    assert store.list("") == [layout.STORE]
    assert home.jobs() == [] and not (home.root / "jobs" / "job").exists()
    refused(run("status", "job"), "job")


def test_what_other_jobs_use_outlives_a_job(home: Home, store: Store, local: LocalJob) -> None:
    local_job_of(home, store, fake_job(store, "other", grid_of_pairs(1, 1)))
    assert run("delete", "job", "--yes").exit_code == 0
    for key in (
        *store.list(layout.model(PLAN.model_id)),
        layout.evaluation_keys("key"),
        layout.job("other"),
    ):
        assert store.exists(key)
    assert not any(key.startswith("jobs/job/") for key in store.list(""))
    # What a job of another version uses is not known.
    store.write(layout.job("newer"), b'{"format": 99}')
    assert run("delete", "other", "--yes").exit_code == 0
    assert store.exists(layout.evaluation_keys("key"))
    store.delete(layout.job("newer"))
    local_job_of(home, store, fake_job(store, "last", grid_of_pairs(1, 1)))
    assert run("delete", "last", "--yes").exit_code == 0
    assert store.list("") == [layout.STORE]


def test_a_job_whose_upload_broke_off_can_only_be_deleted(
    home: Home, store: Store, local: LocalJob, drive: list[int]
) -> None:
    store.delete(layout.job("job"))
    assert "not uploaded" in run("status", "job").output
    refused(run("retry", "job"), "delete job")
    assert run("delete", "job", "--yes").exit_code == 0
    assert store.list("") == [layout.STORE] and home.jobs() == []


def test_a_store_that_is_away_hides_no_other_jobs(
    home: Home, store: Store, local: LocalJob, tmp_path: Path
) -> None:
    other = open_store(str(tmp_path / "elsewhere"), create=True)
    local_job_of(home, other, fake_job(other, "second", grid_of_pairs(1, 1)))
    (tmp_path / "elsewhere").rename(tmp_path / "away")
    result = run("list", "--json")
    assert result.exit_code == 3
    statuses = {row["job"]: row["status"] for row in json.loads(result.stdout)}
    assert statuses == {"job": "submitted", "second": "unknown"}


def test_missing_shared_objects_are_uploaded_again(
    home: Home, store: Store, local: LocalJob, drive: list[int]
) -> None:
    model = store.list(layout.model(local.model_id))
    assert len(model) == 2
    for key in model:
        store.delete(key)
    shutil.rmtree(home.models)
    refused(run("retry", "job"), local.model_id, "submit the pairs again")
    cache_model(home.models)
    store.write(model[0], b"planted")
    (home.keys / "key").mkdir(parents=True)
    (home.keys / "key" / "evaluation.key").write_bytes(b"good keys")
    assert run("retry", "job").exit_code == 0
    assert sorted(map(sha256, map(store.read, model))) == [PurePath(key).stem for key in model]
    # What was there is replaced if it is not what this machine has.
    assert store.read(layout.evaluation_keys("key")) == b"good keys"


def test_a_damaged_record_stops_no_other_job(
    session: Session, local: LocalJob, drive: list[int]
) -> None:
    session.home.save_job(local.model_copy(update={"job_id": "broken"}))
    damaged = session.home.root / "jobs" / "broken" / JOB_FILE
    damaged.write_text("{")
    listed = run("list", "--json")
    assert listed.exit_code == 0 and [row["job"] for row in json.loads(listed.stdout)] == ["job"]
    (warning,) = listed.stderr.splitlines()
    assert warning.startswith("warning: ") and str(damaged) in warning
    refused(run("status", "broken"), str(damaged))
    assert run("retry", "job").exit_code == 0


@pytest.mark.parametrize("command", [("retry",), ("cancel",), ("delete", "--yes"), ("logs",)])
def test_unknown_jobs(home: Home, command: tuple[str, ...]) -> None:
    refused(run(*command, "nothing"), "nothing", "nst-batch list")


def test_the_list_says_when_jobs_were_made_and_what_to_do_without_any(
    home: Home, store: Store, local: LocalJob
) -> None:
    local = local.model_copy(update={"created": "2026-11-26T13:32:59+00:00"})
    home.save_job(local)
    assert "2026-11-26 13:32" in run("list").output
    home.forget("job")
    assert "nst-batch submit" in run("list").output
    assert json.loads(run("list", "--json").stdout) == []


def test_watching_needs_a_job(home: Home) -> None:
    assert run("status", "--watch").exit_code == 2
    assert run("status").exit_code == 0


def test_cancelling_waits_for_the_driver(
    session: Session, home: Home, store: Store, local: LocalJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = process_of("job")
    try:
        home.save_job(local.model_copy(update={"driver_pid": process.pid}))
        set_state(store, status="running")
        waits: list[float] = []

        def stops(seconds: float) -> None:
            assert store.exists(layout.cancellation("job"))
            waits.append(seconds)
            set_state(store, status="cancelled", pairs_done=1)

        monkeypatch.setattr(lifecycle.time, "sleep", stops)
        state = lifecycle.cancel(session, home.job("job"))
        assert (state.status, state.pairs_done) == ("cancelled", 1)
        assert len(waits) == 1 and process.poll() is None
    finally:
        process.kill()


def test_a_driver_that_cannot_be_ended_is_not_called_cancelled(
    session: Session, store: Store, local: LocalJob
) -> None:
    local = local.model_copy(update={"cluster": SILENT, "submission": "s"})
    set_state(store, status="running")
    with pytest.raises(ClusterError):
        lifecycle.cancel(session, local, patience=0.1)
    assert read_state(store, "job").status == "running"
