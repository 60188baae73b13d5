"""Jobs whose time is over are deleted, and no others."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.client.home import HOME_VARIABLE, Home, JobBook
from jobs.client.retention import expired, prune
from jobs.client.submit import keep_until
from jobs.storage import layout
from jobs.storage.records import JobState, write_record
from jobs.storage.store import Store, open_store
from nst.errors import StoreError
from tests.command_line import run

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def kept(home: Home, job_id: str, store: Path, days: int | None) -> JobBook:
    """A job made ten days ago with two objects in its store."""
    created = NOW - timedelta(days=10)
    book = JobBook(
        job_id=job_id,
        created=created.isoformat(timespec="seconds"),
        store=str(store),
        quality="toy",
        key_id="k",
        model_id="c",
        pairs=[],
        skipped=[],
        keep_until=keep_until(created, days),
    )
    home.save_book(book)
    opened = open_store(str(store), create=True)
    opened.write(layout.encrypted_input(job_id, "a"), b"")
    opened.write(layout.checkpoint(job_id, "pair:p", "stem", 0), b"")
    return book


def test_the_days_are_counted_from_the_day_of_making(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    for days, over in ((None, False), (11, False), (10, True), (0, True)):
        assert expired(kept(home, f"job{days}", tmp_path / "store", days), NOW) is over


def test_only_what_is_over_and_idle_is_deleted(tmp_path: Path) -> None:
    home, store = Home(tmp_path / "home"), open_store(str(tmp_path / "store"), create=True)
    kept(home, "0ld", tmp_path / "store", 3)
    kept(home, "new", tmp_path / "store", 30)
    kept(home, "ever", tmp_path / "store", None)
    kept(home, "gone", tmp_path / "gone" / "x", 3)

    def opening(url: str) -> Store:
        if "gone" in url:
            raise StoreError("cannot be reached")
        return open_store(url)

    report = prune(home, opening, NOW)
    assert report.deleted == {"0ld": 2}
    assert report.left == {"gone": "cannot be reached"}
    assert {key.split("/")[1] for key in store.list("jobs/")} == {"new", "ever"}
    assert {book.job_id for book in home.books()} == {"new", "ever", "gone"}


def test_the_command_says_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    home = Home(tmp_path / "home")
    kept(home, "0ld", tmp_path / "store", 3)
    done = run("prune")
    assert done.exit_code == 0 and "0ld: 2 objects deleted" in done.output
    assert home.books() == []
    again = run("prune")
    assert again.exit_code == 0 and "nothing" in again.output


def test_json_says_what_is_deleted_and_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    home = Home(tmp_path / "home")
    kept(home, "0ld", tmp_path / "store", 3)
    kept(home, "gone", tmp_path / "gone", 3)
    (tmp_path / "gone" / "store.json").write_text("something else")
    done = run("prune", "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["deleted"] == {"0ld": 2} and "is damaged" in report["left"]["gone"]
    home.forget("gone")
    none = run("prune", "--json")
    assert (none.exit_code, json.loads(none.stdout)) == (0, {"deleted": {}, "left": {}})


def test_a_job_that_runs_is_left(tmp_path: Path) -> None:
    home, store = Home(tmp_path / "home"), open_store(str(tmp_path / "store"), create=True)
    book = kept(home, "runs", tmp_path / "store", 3)
    state = JobState(status="running", heartbeat=store.clock())
    write_record(store, layout.state("runs"), state)
    # Like a driver it has the job's id among its arguments.
    with subprocess.Popen(["sh", "-c", "read line", "runs"], stdin=subprocess.PIPE) as driver:
        home.save_book(book.model_copy(update={"driver_pid": driver.pid}))
        report = prune(home, open_store, NOW)
    assert report.deleted == {} and "is running" in report.left["runs"]
    assert prune(home, open_store, NOW).deleted == {"runs": 3}
