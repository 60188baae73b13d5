"""The states of a job: drivers that die, meet each other, are told to stop, or cannot go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.stored import pin_in_store
from jobs.execution import recorder as recording
from jobs.execution.driver import Backend, drive, on_running_ray
from jobs.execution.recorder import Recorder
from jobs.storage import layout
from jobs.storage.local_store import LocalStore
from jobs.storage.records import (
    Cancellation,
    JobRecord,
    JobState,
    PairEnd,
    pair_states,
    read_marks,
    read_state,
    write_record,
)
from jobs.storage.store import Store, open_store
from nst.errors import StoreError
from tests.fakes import Meddling, fake_executor, fake_job, run_job
from tests.plans import grid_of_pairs

PAIRS = 6


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


@pytest.fixture
def job(store: Store) -> JobRecord:
    return fake_job(store)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Results of all pairs of a run that nothing happened to."""
    store = open_store(str(tmp_path_factory.mktemp("undisturbed")), create=True)
    job = fake_job(store)
    assert run_job(store, job, fake_executor(), 1).status == "succeeded"
    return results(store, job)


def results(store: Store, job: JobRecord) -> dict[str, list[bytes]]:
    """Published parts by pair; every other part in the store is an orphan, and there is none."""
    ended = read_marks(store, job).ended
    published: dict[str, list[str]] = {}
    for end in ended.values():
        if end.status == "succeeded":
            published[end.pair_id] = [
                layout.result_part(job.job_id, end.attempt, end.pair_id, part)
                for part in range(end.parts)
            ]
    parts = sorted(key for keys in published.values() for key in keys)
    assert store.list(layout.results(job.job_id)) == parts
    return {pair: [store.read(key) for key in keys] for pair, keys in published.items()}


def statuses(store: Store, job: JobRecord) -> set[str]:
    state = read_state(store, job.job_id)
    ended = read_marks(store, job).ended
    pairs = [pair.pair_id for pair in job.pairs]
    return {pair.status for pair in pair_states(pairs, state, ended).values()}


class KilledError(BaseException):
    """Nothing of the driver runs after it."""


def kill() -> None:
    raise KilledError


def test_a_job_goes_through_its_states(store: Store, job: JobRecord) -> None:
    seen = [read_state(store, "job").status]

    def note() -> None:
        seen.append(read_state(store, "job").status)
        writing_state = read_state(store, "job")
        assert writing_state.heartbeat > 0 and not writing_state.stale(store.clock())

    run_job(store, job, Meddling(1, note), 1)
    seen.append(read_state(store, "job").status)
    assert seen == ["submitted", "queued", "succeeded"]
    assert statuses(store, job) == {"succeeded"}


def test_the_state_tells_which_pairs_run(
    store: Store, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "STATE_EVERY", 0.0)
    seen: list[tuple[str, set[str]]] = []
    run_job(
        store,
        job,
        Meddling(70, lambda: seen.append((read_state(store, "job").status, statuses(store, job)))),
        1,
    )
    ((status, pairs),) = seen
    assert status == "running" and {"running", "queued"} <= pairs <= {
        "succeeded", "running", "queued",
    }  # fmt: skip


@pytest.mark.parametrize("at", [1, 40, 90])
def test_a_killed_drivers_job_is_taken_up(
    store: Store, job: JobRecord, undisturbed: dict[str, list[bytes]], at: int
) -> None:
    with pytest.raises(KilledError):
        run_job(store, job, Meddling(at, kill), 1)
    state = read_state(store, "job")
    assert not state.finished
    assert state.stale(store.clock() + 1000)
    done = len(read_marks(store, job).ended)
    again = Meddling(0, kill)
    assert run_job(store, job, again, 1).status == "succeeded"
    assert results(store, job) == undisturbed
    groups = {t.group for t in again.tasks if t.group.startswith("result:")}
    assert len(groups) == PAIRS - done


@pytest.mark.parametrize("at", [1, 40, 90])
@pytest.mark.parametrize("looks", [0.0, 1e9])
def test_a_second_driver_does_the_whole_job_meanwhile(
    store: Store,
    job: JobRecord,
    undisturbed: dict[str, list[bytes]],
    at: int,
    looks: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first either notices, or finishes the pair at hand and finds its result unwanted."""
    monkeypatch.setattr(recording, "LOOK_EVERY", looks)
    first = Meddling(at, lambda: run_job(store, job, fake_executor(), 1))
    state = run_job(store, job, first, 1)
    assert (state.status, state.pairs_done) == ("succeeded", PAIRS)
    assert read_state(store, "job").status == "succeeded"
    assert results(store, job) == undisturbed
    if not looks:
        assert len(first.tasks) <= at + 1


def test_two_drivers_at_once(
    store: Store, job: JobRecord, undisturbed: dict[str, list[bytes]]
) -> None:
    states: list[JobState] = []
    start = threading.Barrier(3)

    def work() -> None:
        start.wait()
        states.append(run_job(store, job, fake_executor(), 1))

    drivers = [threading.Thread(target=work) for _ in range(3)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert [(s.status, s.pairs_done) for s in states] == [("succeeded", PAIRS)] * 3
    assert read_state(store, "job").status == "succeeded"
    assert results(store, job) == undisturbed


def test_a_cancelled_job_stops_and_keeps_what_is_done(
    store: Store, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "LOOK_EVERY", 0.0)
    wish = Cancellation(asked=0.0)
    executor = Meddling(90, lambda: write_record(store, layout.cancellation("job"), wish))
    state = run_job(store, job, executor, 1)
    assert state.status == "cancelled" and executor.closed
    assert len(executor.tasks) <= 91
    assert 0 < state.pairs_done < PAIRS
    assert statuses(store, job) == {"succeeded", "cancelled"}
    assert len(results(store, job)) == state.pairs_done
    assert not store.exists(layout.job_end("job"))


def test_a_poisoned_pair_fails_and_the_others_do_not(
    store: Store, undisturbed: dict[str, list[bytes]]
) -> None:
    job = fake_job(store, poisoned="c1")
    state = run_job(store, job, fake_executor(), 1)
    assert (state.status, state.pairs_done, state.pairs_failed) == ("failed", 4, 2)
    found = results(store, job)
    assert found == {pair: rows for pair, rows in undisturbed.items() if "p1" not in pair}
    assert {end.reason for end in read_marks(store, job).ended.values()} == {
        "", "stage stem refused its ciphertexts",
    }  # fmt: skip


def keys_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that are read of a store from now on."""
    keys: list[str] = []
    read = store.read

    def noted(key: str, limit: int | None = None) -> bytes:
        keys.append(key)
        return read(key, limit)

    monkeypatch.setattr(store, "read", noted)
    return keys


def test_what_many_pairs_came_to_stands_in_one_record(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = fake_job(store, pairs=grid_of_pairs(9, 3), poisoned="c1")
    assert run_job(store, job, fake_executor(), 1).pairs_failed == 3
    keys = keys_read(store, monkeypatch)
    ended = read_marks(store, job).ended
    assert keys == [layout.pair_ends("job")] and len(ended) == 27
    # The next driver reads as little.
    keys.clear()
    Recorder(store, job, 1)
    assert keys == [layout.pair_ends("job")]
    store.delete(layout.pair_ends("job"))
    assert read_marks(store, job).ended == ended


def test_a_driver_that_slept_tells_no_ends_of_before(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for dead, and a failed pair tried again: by its marker it has succeeded."""
    job = fake_job(store, pairs=grid_of_pairs(9, 2), poisoned="c1")
    run_job(store, job, fake_executor(), 1)
    sleeper: Recorder[bytes] = Recorder(store, job, 1)
    assert sleeper.ended["p10"].status == "failed"
    sleeper.on_tick(0, 1, 0)
    store.delete(layout.pair_ends("job"))
    again = PairEnd(pair_id="p10", status="succeeded", attempt="other", parts=4)
    write_record(store, layout.pair_end("job", "p10"), again)
    for name in ("STALE_AFTER", "LOOK_EVERY", "ENDS_EVERY"):
        monkeypatch.setattr(recording, name, 0.0)
    sleeper.on_end()
    assert sleeper.ended["p10"] == again == read_marks(store, job).ended["p10"]


class FullStore(LocalStore):
    """Takes records and no rows, once it is full."""

    room = 10

    def write(self, key: str, blob: bytes) -> None:
        if key.endswith(".ct"):
            self.room -= 1
            if self.room < 0:
                raise StoreError(f"store {self.root}: cannot write {key}: no space left")
        super().write(key, blob)


def test_a_full_store_stops_the_job_and_not_the_pairs(
    tmp_path: Path, store: Store, job: JobRecord, undisturbed: dict[str, list[bytes]]
) -> None:
    full = FullStore(tmp_path / "store")

    @contextmanager
    def connect(*_: object) -> Iterator[Backend[bytes]]:
        yield fake_executor(), ()

    with pytest.raises(StoreError):
        drive(Recorder(full, job, 1), pin_in_store(store, job), connect)
    state = read_state(store, "job")
    assert state.status == "failed" and "no space left" in state.reason
    assert statuses(store, job) == {"succeeded", "failed"}
    results(store, job)
    assert run_job(store, job, fake_executor(), 1).status == "succeeded"
    assert results(store, job) == undisturbed


def test_a_driver_that_cannot_start_leaves_another_alone(store: Store, job: JobRecord) -> None:
    late: Recorder[bytes] = Recorder(store, job, 1)

    def fails() -> None:
        late.could_not_go_on("no Ray here")
        assert read_state(store, "job").status == "queued"

    assert run_job(store, job, Meddling(1, fails), 1).status == "succeeded"
    assert read_state(store, "job").reason == ""


def test_a_driver_joins_the_cluster_that_started_it(
    store: Store, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    @contextmanager
    def running_ray(address: str) -> Iterator[None]:
        seen.append(address)
        raise StoreError("far enough")
        yield

    monkeypatch.setattr("cluster.local.running_ray", running_ray)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    with pytest.raises(StoreError):
        drive(Recorder(store, job, 0), pin_in_store(store, job), on_running_ray)
    assert seen == ["192.0.2.1:6379"]
    state = read_state(store, "job")
    assert (state.status, state.reason) == ("failed", "far enough")
