"""A store that plants code: a driver runs what its client named, or nothing."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.stored import pin_in_store
from jobs.client.drivers import pin_of
from jobs.client.home import Home, LocalJob
from jobs.execution import driver
from jobs.execution.driver import drive
from jobs.execution.loading import EvaluatorLoader, ModelPin
from jobs.execution.recorder import Recorder
from jobs.storage import layout
from jobs.storage.records import JobRecord, read_state, write_record
from jobs.storage.store import Store, open_store
from nst.errors import CircuitError, NstBatchError
from tests.fakes import PLAN, FakeEngine, cache_model, fake_job


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


@pytest.fixture
def job(store: Store) -> JobRecord:
    return fake_job(store)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Bundles that were handed to the engine, whose code they would be."""
    seen: list[bytes] = []
    monkeypatch.setattr(FakeEngine, "load", lambda _, plan, bundle, keys: seen.append(bundle))
    monkeypatch.setattr("jobs.execution.loading.key_set_id", lambda _: "key")
    return seen


def everything_planted(store: Store) -> None:
    for key in store.list("models/"):
        store.write(key, b"planted")


@pytest.mark.parametrize("part", [".json", ".zip"])
def test_a_planted_model_is_not_loaded(
    store: Store, job: JobRecord, loaded: list[bytes], part: str
) -> None:
    load = EvaluatorLoader(store.url, pin_in_store(store, job))
    load()
    assert loaded == [b"model"]
    (key,) = [k for k in store.list("models/") if k.endswith(part)]
    store.write(key, store.read(key) + b" ")
    with pytest.raises(CircuitError, match="was not loaded; nst-batch retry"):
        load()
    assert loaded == [b"model"]


def test_a_driver_here_reads_the_users_own_models(
    tmp_path: Path, store: Store, job: JobRecord, loaded: list[bytes]
) -> None:
    pin = replace(pin_in_store(store, job), folder=str(cache_model(tmp_path / "models")))
    everything_planted(store)
    EvaluatorLoader(store.url, pin)()
    assert loaded == [b"model"] and pin.job_plan(store, job) == PLAN
    (tmp_path / "models" / PLAN.model_id / "server.zip").write_bytes(b"planted")
    with pytest.raises(CircuitError, match=r"server\.zip is not what this job was started with"):
        EvaluatorLoader(store.url, pin)()
    assert loaded == [b"model"]


@pytest.mark.parametrize("change", [{"model_id": "../../planted"}, {"key_id": "other"}])
def test_a_record_cannot_name_another_model(
    store: Store, job: JobRecord, change: dict[str, str]
) -> None:
    pin = pin_in_store(store, job)
    planted = job.model_copy(update=change)
    write_record(store, layout.job("job"), planted)
    with pytest.raises(CircuitError, match="names another model or key set"):
        drive(Recorder(store, planted, 1), pin, lambda *_: pytest.fail("starts Ray"))
    assert read_state(store, "job").reason.startswith("job job: its record")


def test_every_driver_is_told_digests(
    monkeypatch: pytest.MonkeyPatch, store: Store, job: JobRecord, tmp_path: Path
) -> None:
    """Without them a driver does not start; with them it gets as far as its Ray."""
    seen: list[ModelPin] = []
    monkeypatch.setattr(driver, "seal", lambda: None)
    monkeypatch.setattr(driver, "log_to_stderr", lambda: None)
    monkeypatch.setattr(driver, "drive", lambda _, pin, connect: seen.append(pin))
    pin = replace(pin_in_store(store, job), folder=str(tmp_path))
    call = ["driver", store.url, "job", "--actors", "1", *pin.options, "--folder", pin.folder]
    monkeypatch.setattr(sys, "argv", call)
    driver.main()
    assert seen == [pin]
    for option in ("--plan", "--bundle", "--model", "--key"):
        at = call.index(option)
        monkeypatch.setattr(sys, "argv", call[:at] + call[at + 2 :])
        with pytest.raises(SystemExit):
            driver.main()
    assert seen == [pin]


def test_digests_are_of_the_clients_files(tmp_path: Path, store: Store, job: JobRecord) -> None:
    home = Home(tmp_path / "home")
    local = LocalJob(
        job_id="job", created="", store=store.url, quality="toy", width=32, height=32,
        engine="fake", key_id="key", model_id=PLAN.model_id, pairs=[], skipped=[],
    )  # fmt: skip
    with pytest.raises(NstBatchError, match="is not in"):
        pin_of(home, local)
    cache_model(home.models)
    in_store = pin_in_store(store, job)
    everything_planted(store)
    assert replace(pin_of(home, local), folder="") == in_store
