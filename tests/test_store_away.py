"""What users are told of a store that is not there, and of one that holds damaged things."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.client.home import Home
from jobs.storage import layout
from jobs.storage.local_store import LocalStore
from jobs.storage.store import open_store
from tests.command_line import refused, run
from tests.fakes import fake_job
from tests.test_jobs import local_job_of


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk with the store of one job that this user has submitted."""
    monkeypatch.setenv("NST_BATCH_HOME", str(tmp_path / "home"))
    store = open_store(str(tmp_path / "disk" / "store"), create=True)
    local_job_of(Home(tmp_path / "home"), store, fake_job(store))
    return tmp_path / "disk"


@pytest.mark.parametrize("left", [[], ["disk"], ["disk", "disk/store"]])
def test_a_store_on_a_disk_that_is_away(disk: Path, left: list[str]) -> None:
    """Whatever the mount point looks like, nothing is made, advised against or forgotten."""
    away = disk.rename(disk.parent / "away")
    for folder in left:
        (disk.parent / folder).mkdir()
    for command in (
        ["list"],
        ["status", "job"],
        ["retry", "job"],
        ["cancel", "job"],
        ["fetch", "job", "--out", str(disk.parent / "out")],
        ["delete", "job", "--yes"],
    ):
        result = run(*command)
        assert result.exit_code == 3, command
        assert "is not there" in result.stderr and "nst-batch delete" not in result.output
    assert (
        sorted(p.relative_to(disk.parent).as_posix() for p in disk.parent.rglob("disk*/**")) == left
    )
    for folder in reversed(left):
        (disk.parent / folder).rmdir()
    away.rename(disk)
    assert run("status", "job").exit_code == 0
    assert run("delete", "job", "--yes").exit_code == 0


def test_what_a_store_has_damaged_is_no_store_out_of_reach(disk: Path) -> None:
    store = open_store(str(disk / "store"))
    local_job_of(Home(disk.parent / "home"), store, fake_job(store, "other"))
    store.write(layout.state("job"), b"{")
    refused(run("status", "job"), "state.json is damaged", code=2)
    listed = run("list", "--json")
    assert listed.exit_code == 2 and "state.json is damaged" in listed.stderr
    statuses = {row["job"]: row["status"] for row in json.loads(listed.stdout)}
    assert statuses == {"job": "unknown", "other": "submitted"}
    (disk / "store" / layout.STORE).write_bytes(b"{")
    refused(run("status", "job"), "store.json is damaged", code=2)


def test_deleting_lists_no_object_of_other_jobs(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(disk / "store"))
    local_job_of(Home(disk.parent / "home"), store, fake_job(store, "other"))
    listed: list[str] = []
    whole = LocalStore.list

    def noted(self: LocalStore, prefix: str) -> list[str]:
        listed.append(prefix)
        return whole(self, prefix)

    monkeypatch.setattr(LocalStore, "list", noted)
    assert run("delete", "job", "--yes").exit_code == 0
    assert listed and {layout.whole_job("job"), layout.marks("job")}.issuperset(listed)
