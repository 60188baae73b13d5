"""What every store promises, and what the local one does besides."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.storage import layout
from jobs.storage.local_store import PARTIAL, LocalStore
from jobs.storage.store import FORMAT, Store, address_of, open_store
from nst.errors import StoreContentError, StoreError
from tests.conftest import BUCKET

Opener = Callable[[], Store]


def local(request: pytest.FixtureRequest) -> Opener:
    folder = request.getfixturevalue("tmp_path") / "store"
    return lambda: open_store(str(folder), create=True)


def s3(request: pytest.FixtureRequest) -> Opener:
    server = request.getfixturevalue("s3_server")
    url = f"s3://{BUCKET}/{secrets.token_hex(4)}/a b?endpoint={server.endpoint}"
    return lambda: open_store(url, create=True)


STORES = {"local": local, "s3": s3}
"""By name, what makes an opener of one empty store. Another kind of store is added here."""


@pytest.fixture(params=STORES)
def opener(request: pytest.FixtureRequest) -> Opener:
    return STORES[request.param](request)


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()


def one_line(caught: pytest.ExceptionInfo[StoreError]) -> str:
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize("blob", [b"", b"x", bytes(range(256)) * 4096])
def test_what_is_written_is_read_back(store: Store, blob: bytes) -> None:
    store.write("a/b/c.ct", blob)
    assert store.read("a/b/c.ct") == blob
    assert store.exists("a/b/c.ct")


def test_another_process_finds_it_by_url(store: Store) -> None:
    store.write("a/b", b"1")
    assert open_store(store.url).read("a/b") == b"1"


def test_writing_again_replaces(store: Store) -> None:
    store.write("a", b"a long first blob")
    store.write("a", b"short")
    assert store.read("a") == b"short"
    assert store.list("a") == ["a"]


def test_what_is_missing_is_an_error(store: Store) -> None:
    store.write("a/b", b"1")
    for key in ("nothing", "a", "a/b/c", "a/nothing"):
        assert not store.exists(key)
        with pytest.raises(StoreContentError) as caught:
            store.read(key)
        assert key in one_line(caught)


def test_listing_is_by_prefix_and_sorted(store: Store) -> None:
    for key in ("j/2", "j/10/x", "j/1", "k/1", "jj/1"):
        store.write(key, b"")
    assert store.list("j/") == ["j/1", "j/10/x", "j/2"]
    assert store.list("j/1") == ["j/1", "j/10/x"]
    assert store.list("j") == ["j/1", "j/10/x", "j/2", "jj/1"]
    assert store.list("nothing/") == []
    assert set(store.list("")) == {"j/1", "j/10/x", "j/2", "jj/1", "k/1", layout.STORE}


def test_children_are_the_next_folders_only(store: Store) -> None:
    for key in ("jobs/2/job.json", "jobs/10/a/b", "jobs/10/c", "jobs/loose", "jobs2/x/y", "k/1/2"):
        store.write(key, b"")
    assert store.children("jobs/") == ["10", "2"]
    assert store.children("jobs/10/") == ["a"]
    assert store.children("nothing/") == []


def test_a_blob_is_created_once(store: Store) -> None:
    assert store.create("a/b", b"first")
    assert not store.create("a/b", b"second")
    assert store.read("a/b") == b"first"
    store.write("a/c", b"written")
    assert not store.create("a/c", b"created")
    assert store.read("a/c") == b"written"


def test_of_racing_creators_one_wins(opener: Opener) -> None:
    racers = 8  # SeaweedFS takes a second over every other one
    stores = [opener() for _ in range(racers)]
    for heat in range(3):
        won: list[int] = []
        barrier = threading.Barrier(racers)

        def race(
            number: int,
            won: list[int] = won,
            barrier: threading.Barrier = barrier,
            heat: int = heat,
        ) -> None:
            barrier.wait()
            if stores[number].create(f"race/{heat}", str(number).encode()):
                won.append(number)

        threads = [threading.Thread(target=race, args=(i,)) for i in range(racers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert stores[0].read(f"race/{heat}") == str(won[0]).encode()
    assert stores[0].list("race/") == [f"race/{heat}" for heat in range(3)]


def test_a_folder_may_be_emptied_while_others_write_into_it(tmp_path: Path) -> None:
    """Two drivers of a job clean up behind each other; folders that are empty go."""
    store, failed = open_store(str(tmp_path), create=True), []

    def come_and_go(name: str) -> None:
        try:
            for _ in range(300):
                store.write(f"results/pair/{name}", b"row")
                store.delete(f"results/pair/{name}")
        except StoreError as error:
            failed.append(error)

    threads = [threading.Thread(target=come_and_go, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_readers_see_whole_blobs_only(opener: Opener) -> None:
    writer, reader = opener(), opener()
    size = 1 << 20
    writer.write("row/0", b"0" * size)
    done = threading.Event()

    def replace() -> None:
        for i in range(1, 40):
            writer.write("row/0", str(i % 10).encode() * size)
        done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    while not done.is_set():
        blob = reader.read("row/0")
        assert len(blob) == size and blob == blob[:1] * size
        assert reader.list("row/") == ["row/0"]
        assert reader.list("") == ["row/0", layout.STORE]
    thread.join()


@pytest.mark.parametrize("key", ["../out", "a/../../out", "/etc/out", "", "a//b", "./a", "a/.."])
def test_no_key_leads_out_of_the_store(store: Store, key: str) -> None:
    for call in (
        lambda: store.write(key, b""),
        lambda: store.create(key, b""),
        lambda: store.read(key),
        lambda: store.delete(key),
        lambda: store.delete_prefix(f"{key}/"),
    ):
        with pytest.raises(StoreError) as caught:
            call()
        one_line(caught)


def test_what_is_deleted_is_gone(store: Store) -> None:
    for key in ("a/b/c", "a/b/d", "a/e"):
        store.write(key, b"1")
    store.delete("a/b/c")
    assert not store.exists("a/b/c")
    assert store.list("a/") == ["a/b/d", "a/e"]
    for missing in ("a/b/c", "a/b", "nothing", "a/e/below"):
        store.delete(missing)
    assert store.list("a/") == ["a/b/d", "a/e"]
    assert store.create("a/b/c", b"again")
    assert store.read("a/b/c") == b"again"


def test_a_folder_is_deleted_with_all_below_it(store: Store) -> None:
    below = [f"jobs/1/{i}/{j}" for i in range(3) for j in range(4)]
    for key in (*below, "jobs/11/x", "jobs/2/x"):
        store.write(key, b"1")
    assert store.delete_prefix("jobs/1/") == len(below)
    assert store.list("jobs/") == ["jobs/11/x", "jobs/2/x"]
    assert store.delete_prefix("jobs/1/") == 0
    for wide in ("", "jobs/1", "/"):
        with pytest.raises(StoreError):
            store.delete_prefix(wide)
    assert store.list("jobs/") == ["jobs/11/x", "jobs/2/x"]


def test_half_written_files_of_killed_writers_are_deleted(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    left = tmp_path / "jobs" / "1" / "inputs" / f"{PARTIAL}x"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    store.write("jobs/2/x", b"whole")
    assert store.delete_prefix("jobs/1/") == 0
    assert not left.exists() and not (tmp_path / "jobs" / "1").exists()
    assert store.read("jobs/2/x") == b"whole"


def test_its_clock_is_that_of_this_machine(store: Store) -> None:
    before = store.list("")
    assert abs(store.clock() - time.time()) < 10
    assert store.list("") == before


def test_large_blobs(store: Store) -> None:
    blob = os.urandom(20 << 20)
    store.write("big", blob)
    assert hashlib.sha256(store.read("big")).digest() == hashlib.sha256(blob).digest()
    assert not store.create("big", b"other")


def test_a_new_store_carries_its_format(store: Store) -> None:
    assert json.loads(store.read(layout.STORE)) == {"format": FORMAT}


@pytest.mark.parametrize("marker", [b'{"format": 99}', b"{}", b"[]", b"no json", b"\xff", b""])
def test_stores_of_other_formats_are_refused(opener: Opener, marker: bytes) -> None:
    opener().write(layout.STORE, marker)
    with pytest.raises(StoreContentError) as caught:
        opener()
    one_line(caught)


def test_what_is_no_store_becomes_one_on_demand_only(opener: Opener) -> None:
    """A disk that is away must not be taken for a store that lost its jobs."""
    store = opener()
    url = store.url
    store.delete(layout.STORE)
    with pytest.raises(StoreError, match="is not there: it has no store") as caught:
        open_store(url)
    one_line(caught)
    assert store.list("") == []
    opener().write("a", b"1")
    assert opener().read("a") == open_store(url).read("a") == b"1"


@pytest.mark.parametrize("call", ["read", "exists", "list", "children", "delete", "write", "clock"])
def test_a_folder_that_goes_away_is_out_of_reach(tmp_path: Path, call: str) -> None:
    mounted, away = tmp_path / "disk", tmp_path / "away"
    store = open_store(str(mounted / "store"), create=True)
    mounted.rename(away)
    arguments = {"write": ("a", b""), "clock": ()}.get(
        call, ("jobs/",) if call[0] in "lc" else ("a",)
    )
    with pytest.raises(StoreError, match="is not there; plug in or mount") as caught:
        getattr(store, call)(*arguments)
    assert type(caught.value) is StoreError
    with pytest.raises(StoreError, match="is not there; plug in or mount"):
        open_store(str(mounted / "store"))
    assert not mounted.exists()


def test_other_kinds_of_stores_are_refused() -> None:
    with pytest.raises(StoreError, match="ftp://host/path: only folders and s3://"):
        open_store("ftp://me:password@host/path?key=1")


def test_an_address_tells_where_bytes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    local, remote = address_of("~/store"), address_of("s3://bucket/a?profile=p&sse=AES256")
    assert (local.remote, local.folder, local.portable()) == (False, tmp_path / "store", local)
    assert (remote.remote, remote.folder) == (True, None)
    # Another machine has other profiles.
    assert remote.portable().url == "s3://bucket/a?sse=AES256"
    assert remote.name == "s3://bucket/a"


def test_emptied_folders_go(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for key in ("jobs/1/a/b", "jobs/1/c", "jobs/2/d"):
        store.write(key, b"1")
    assert store.delete_prefix("jobs/1/") == 2
    assert [p.name for p in (tmp_path / "jobs").iterdir()] == ["2"]


def test_a_blob_that_cannot_be_deleted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    store.write("jobs/1/x", b"1")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StoreError, match="cannot delete jobs/1/x: Permission denied"):
        store.delete("jobs/1/x")


def test_a_home_folder_may_be_abbreviated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    open_store("~/store", create=True).write("a", b"1")
    assert (tmp_path / "store" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
def test_a_file_is_no_store(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as caught:
        open_store(str(tmp_path / "file" / below), create=True)
    assert "file" in one_line(caught)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("jobs/1", b"")
    for call in (store.write, store.create):
        with pytest.raises(StoreError, match="jobs/1/state"):
            call("jobs/1/state", b"")
    with pytest.raises(StoreError, match="jobs"):
        store.write("jobs", b"")  # a folder
    assert store.list("") == ["jobs/1"]


def test_closed_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path), create=True)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        store.exists("a")


@pytest.mark.parametrize("call", ["write", "create"])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = LocalStore(tmp_path)
    store.write("a/kept", b"1")
    fdopen = os.fdopen

    class Full:
        def __init__(self, handle: int, mode: str) -> None:
            self.file = fdopen(handle, mode)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, blob: bytes) -> None:
            self.file.write(blob[: len(blob) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdopen", Full)
    for key in ("a/new", "a/kept"):
        with pytest.raises(StoreError, match="No space left"):
            getattr(store, call)(key, b"12345678")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["kept"]
    assert store.read("a/kept") == b"1"


def test_results_of_others_stay_private(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("jobs/1/x.ct", b"")
    assert (tmp_path / "jobs/1/x.ct").stat().st_mode & 0o077 == 0
