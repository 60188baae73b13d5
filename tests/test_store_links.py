"""A folder store into which others put links, pipes and the like."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.storage.local_store import DEEPEST, LocalStore
from nst.errors import StoreContentError


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder of the user's that is no store; it must stay as it is."""
    folder = tmp_path / "foreign"
    (folder / "inner").mkdir(parents=True)
    for name in ("job.json", "inner/x.ct"):
        (folder / name).write_bytes(b"precious")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "store")
    store.root.mkdir()
    store.write("jobs/good/job.json", b"1")
    return store


def untouched(foreign: Path) -> bool:
    files = {p: p.read_bytes() for p in foreign.rglob("*") if p.is_file()}
    return files == {foreign / n: b"precious" for n in ("job.json", "inner/x.ct")}


@pytest.mark.parametrize("at", ["jobs/bad", "jobs", "jobs/bad/inputs"])
def test_no_link_is_followed(store: LocalStore, foreign: Path, at: str) -> None:
    if at == "jobs":
        store.delete_prefix("jobs/")
        (store.root / at).rmdir() if (store.root / at).exists() else None
    (store.root / at).parent.mkdir(exist_ok=True)
    (store.root / at).symlink_to(foreign)
    key = f"{at}/job.json"
    calls: list[Callable[[], object]] = [
        lambda: store.read(key),
        lambda: store.exists(key),
        lambda: store.write(key, b"overwritten"),
        lambda: store.write(f"{at}/new/file", b"added"),
        lambda: store.create(f"{at}/new", b"added"),
        lambda: store.delete(key),
        lambda: store.list(f"{at}/"),
        lambda: store.children(f"{at}/"),
        lambda: store.delete_prefix(f"{at}/"),
    ]
    for call in calls:
        with pytest.raises(StoreContentError, match="is a link, which is not followed") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not any(key.startswith(f"{at}/") for key in store.list(""))
    assert untouched(foreign)


def test_a_job_is_deleted_and_not_what_its_links_lead_to(store: LocalStore, foreign: Path) -> None:
    folder = store.root / "jobs/good"
    (folder / "inputs").symlink_to(foreign)
    (folder / "a.ct").symlink_to(foreign / "job.json")
    os.mkfifo(folder / "pipe")
    assert store.children("jobs/good/") == [] and store.list("jobs/") == ["jobs/good/job.json"]
    assert store.delete_prefix("jobs/good/") == 1
    assert not folder.exists() and untouched(foreign)


def test_a_linked_blob_is_replaced_and_not_written_through(
    store: LocalStore, foreign: Path
) -> None:
    key = "jobs/good/state.json"
    (store.root / key).symlink_to(foreign / "job.json")
    assert not store.exists(key) and not store.create(key, b"2")
    with pytest.raises(StoreContentError, match="is a link or no regular file; remove it"):
        store.read(key)
    store.write(key, b"2")
    assert store.read(key) == b"2" and untouched(foreign)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "loop"])
def test_only_regular_files_are_blobs(
    store: LocalStore, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And reading a pipe that has no writer waits for none."""
    key, path = "jobs/good/x", store.root / "jobs/good/x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(path.parent)
        socket.socket(socket.AF_UNIX).bind("x")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    with pytest.raises(StoreContentError):
        store.read(key)
    assert not store.exists(key) and store.list("jobs/") == ["jobs/good/job.json"]


def test_a_store_may_be_named_by_a_link(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.root)
    assert LocalStore(tmp_path / "link").read("jobs/good/job.json") == b"1"


def test_folders_without_end_are_not_walked(store: LocalStore) -> None:
    deep = store.root / "jobs/deep" / "/".join("d" * 2 * DEEPEST)
    deep.mkdir(parents=True)
    (deep / "x").touch()
    assert store.list("jobs/") == ["jobs/good/job.json"]
    with pytest.raises(StoreContentError):
        store.read("jobs/a\0b")
