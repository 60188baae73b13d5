"""Who is told that a job is over, what he is told, and what happens if that does not work."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.cli.job import see_through
from jobs.cli.keys import Passphrases
from jobs.client import drivers
from jobs.client.home import Home, JobBook
from jobs.execution import notify as notifying
from jobs.execution.driver import drive, tell_the_end
from jobs.execution.notify import Hook, message, notify
from jobs.execution.writer import JobWriter
from jobs.storage import layout
from jobs.storage.records import JobState, write_record
from jobs.storage.store import open_store
from tests.command_line import refused, run
from tests.fakes import fake_executor, fake_job, plain_results  # noqa: F401

STATE = JobState(status="failed", pairs_total=6, pairs_done=4, pairs_failed=2, reason="boom")
TOLD = {"job": "0f3c9a", "state": "failed", "succeeded": 4, "failed": 2}


class Webhook(ThreadingHTTPServer):
    """Answers with the given codes in turn, then with 204; None does not answer at all."""

    def __init__(self, *codes: int | None) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.codes, self.got = list(codes), list[dict[str, Any]]()
        self.url = f"http://127.0.0.1:{self.server_port}/services/T0K3N"


class _Answer(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/json"
        self.server.got.append(json.loads(body))
        code = self.server.codes.pop(0) if self.server.codes else 204
        if code is None:
            time.sleep(0.3)
            code = 204
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not on the screen."""


@contextmanager
def webhook(*codes: int | None) -> Iterator[Webhook]:
    server = Webhook(*codes)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifying, "PAUSE", 0.0)
    monkeypatch.setattr(notifying, "TIMEOUT", 0.1)


def writes_to(path: Path) -> str:
    """A command that writes its standard input into a file."""
    return f"tee '{path}'"


def test_ids_and_counts_are_told_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a file"
    with webhook() as server:
        told = message("0f3c9a", STATE)
        hook = Hook(writes_to(Path("a file")), server.url, str(tmp_path))
        assert list(notify(hook, told)) == []
    assert server.got == [TOLD]
    assert json.loads(path.read_text()) == TOLD


@pytest.mark.parametrize(
    ("codes", "calls", "problem"),
    [
        ((503, None), 3, None),
        ((429, 500, 502), 4, None),
        ((503,) * 9, notifying.ATTEMPTS, "notify URL: answered 503"),
        ((404,), 1, "notify URL: answered 404"),
    ],
)
def test_who_is_too_busy_is_asked_again(
    codes: tuple[int | None, ...], calls: int, problem: str | None
) -> None:
    with webhook(*codes) as server:
        assert list(notify(Hook(url=server.url), TOLD)) == ([problem] if problem else [])
    assert server.got == [TOLD] * calls


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        (Hook(url="http://127.0.0.1:1/T0K3N"), "notify URL: does not answer ("),
        (Hook("false"), "notify command: ended with 1"),
        (Hook("sleep 5"), "notify command: did not end within 0.05 s"),
        (Hook("/no/such/program"), "notify command: No such file or directory"),
    ],
)
def test_a_hook_that_fails_is_one_line_without_its_secrets(
    hook: Hook, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifying, "COMMAND_TIMEOUT", 0.05)
    (line,) = notify(hook, TOLD)
    assert line.startswith(problem) and "T0K3N" not in line and "\n" not in line


@pytest.mark.parametrize("fails", [False, True])
def test_the_driver_tells_when_it_has_ended(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    writer = JobWriter(store, fake_job(store, poisoned="c0"), 1)

    @contextmanager
    def connect(_: JobWriter) -> Iterator[Any]:
        if fails:
            raise RuntimeError("no Ray")
        yield fake_executor()

    with webhook(400) as server:
        for name, value in Hook(url=server.url).to_environment().items():
            monkeypatch.setenv(name, value)
        tell_the_end(writer)
        assert server.got == [], "it has not begun"
        if fails:
            with pytest.raises(RuntimeError):
                drive(writer, connect)
        else:
            drive(writer, connect)
        tell_the_end(writer)
    done, failed = (0, 0) if fails else (4, 2)
    assert server.got == [{"job": "job", "state": "failed", "succeeded": done, "failed": failed}]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("NST_BATCH_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


@pytest.fixture
def book(home: Home) -> JobBook:
    store = open_store(str(home.store), create=True)
    book = JobBook(
        job_id="job", created="", store=store.url, quality="toy", key_id="k", model_id="c",
        pairs=[], skipped=[],
    )  # fmt: skip
    home.save_book(book)
    return book


def test_a_local_driver_gets_the_hook_and_no_other_process_sees_it(
    home: Home, book: JobBook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$@"; env\n')
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("NST_BATCH_NOTIFY_COMMAND", "another one")
    hook = Hook(url="https://host/T0K3N", folder="/home/me")
    assert drivers.start_here(home, book, 1, hook).wait() == 0
    arguments, *environment = home.driver_log("job").read_text().splitlines()
    assert "T0K3N" not in arguments
    assert f"NST_BATCH_NOTIFY_URL={hook.url}" in environment
    assert "NST_BATCH_NOTIFY_FOLDER=/home/me" in environment
    assert "another one" not in str(environment), "a flag decides, or the variable through it"


def test_a_cluster_gets_the_url_only(
    home: Home, book: JobBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[dict[str, Any]] = []

    class Client:
        """A cluster's Jobs API."""

        def submit_job(self, **arguments: Any) -> None:
            submitted.append(arguments)

    @contextmanager
    def api(_: str) -> Iterator[Client]:
        yield Client()

    monkeypatch.setattr(drivers, "_jobs_api", api)
    place, store = drivers.Place("http://head:8265"), open_store(book.store)
    drivers.start(home, store, book, 0, place, Hook("true", "https://host/T0K3N"))
    drivers.start(home, store, book, 0, place)
    with_hook, without = submitted
    variables = {"NST_BATCH_NOTIFY_URL": "https://host/T0K3N"}
    assert with_hook["runtime_env"] == {"env_vars": variables}
    assert "T0K3N" not in with_hook["entrypoint"] and "runtime_env" not in without


class Gone:
    """A driver that does not run."""

    def alive(self) -> bool:
        return False

    def logs(self) -> str:
        return ""

    def stop(self) -> None:
        """Nothing is there to be stopped."""


@pytest.mark.parametrize(
    ("cluster", "status", "told"),
    [
        ("", "running", "stopped"),
        ("", "succeeded", None),
        ("http://head:8265", "running", "stopped"),
        ("http://head:8265", "succeeded", "succeeded"),
    ],
)
def test_who_waits_tells_what_the_driver_cannot(
    home: Home, book: JobBook, tmp_path: Path, cluster: str, status: Any, told: str | None
) -> None:
    store = open_store(book.store)
    state = JobState(status=status, pairs_total=1, pairs_done=1, first_task=1, last_task=2)
    state.heartbeat = store.clock()
    write_record(store, layout.state("job"), state)
    fake_job(store, pairs=[])
    book = book.model_copy(update={"cluster": cluster})
    path, console = tmp_path / "told", Console(file=io.StringIO())
    hook = Hook(writes_to(path), "http://127.0.0.1:1/")
    try:
        see_through(home, store, book, Gone(), console, None, Passphrases(), hook)
    except SystemExit as end:
        assert status == "running" and end.code == 1
    assert (json.loads(path.read_text())["state"] if path.exists() else None) == told


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["--notify-command", "nosuchprogram x"], ["no program nosuchprogram"]),
        (["--notify-command", "echo 'x"], ["is no command", "quotation marks"]),
        (["--notify-url", "ftp://host"], ["--notify-url is no address"]),
        (
            [*("--cluster", "http://h:1", "--store", "s3://bucket/p", "--no-wait"),
             *("--notify-command", "true")],
            ["--notify-command needs --wait"],
        ),
    ],
)  # fmt: skip
def test_hooks_that_cannot_work_are_found_at_once(call: list[str], words: list[str]) -> None:
    refused(run("submit", "nowhere", *call), *words)
