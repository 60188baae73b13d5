"""The webhook at the end of a job: what is posted, by which process, and what if it fails."""

from __future__ import annotations

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

from jobs.client import drivers
from jobs.client.home import Home, LocalJob
from jobs.client.session import Session
from jobs.execution import launch
from jobs.execution import notify as notifying
from jobs.execution.driver import tell_the_end, walk_job
from jobs.execution.notify import URL_VARIABLE, message, notify
from jobs.execution.recorder import Recorder
from jobs.options import Target
from jobs.storage.records import JobState
from jobs.storage.store import open_store
from tests.command_line import refused, run
from tests.fakes import PLAN, cache_model, fake_executor, fake_job

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


def test_ids_and_counts_are_posted_and_nothing_else() -> None:
    with webhook() as server:
        assert notify(server.url, message("0f3c9a", STATE)) == ""
    assert server.got == [TOLD]


@pytest.mark.parametrize(
    ("codes", "calls", "problem"),
    [
        ((503, None), 3, ""),
        ((429, 500, 502), 4, ""),
        ((503,) * 9, notifying.ATTEMPTS, "notify URL: answered 503"),
        ((404,), 1, "notify URL: answered 404"),
    ],
)
def test_a_server_that_is_too_busy_is_asked_again(
    codes: tuple[int | None, ...], calls: int, problem: str
) -> None:
    with webhook(*codes) as server:
        assert notify(server.url, TOLD) == problem
    assert server.got == [TOLD] * calls


def test_a_webhook_that_fails_is_one_line_without_its_secret() -> None:
    line = notify("http://127.0.0.1:1/T0K3N", TOLD)
    assert line.startswith("notify URL: does not answer (")
    assert "T0K3N" not in line and "\n" not in line


@pytest.mark.parametrize("fails", [False, True])
def test_the_driver_posts_when_it_has_ended(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    recorder: Recorder[Any] = Recorder(store, fake_job(store, poisoned="c0"), 1)
    with webhook(400) as server:
        monkeypatch.setenv(URL_VARIABLE, server.url)
        tell_the_end(recorder)
        assert server.got == [], "it has not begun"
        if fails:
            recorder.could_not_go_on("no Ray")
        else:
            walk_job(recorder, PLAN, fake_executor())
        tell_the_end(recorder)
    done, failed = (0, 0) if fails else (4, 2)
    assert server.got == [{"job": "job", "state": "failed", "succeeded": done, "failed": failed}]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("NST_BATCH_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


@pytest.fixture
def local(home: Home) -> LocalJob:
    store = open_store(str(home.store), create=True)
    local = LocalJob(
        job_id="job", created="", store=store.url, quality="toy", width=32, height=32,
        engine="fake", key_id="k", model_id=PLAN.model_id, pairs=[], skipped=[],
    )  # fmt: skip
    home.save_job(local)
    cache_model(home.models)
    return local


def test_a_local_driver_gets_the_url_and_no_other_process_sees_it(
    home: Home, local: LocalJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$@"; env\n')
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("NST_BATCH_NOTIFY_URL", "https://another.example")
    for url in ("https://host/T0K3N", ""):
        home.driver_log("job").unlink(missing_ok=True)
        assert drivers.start_here(home, local, 1, url).wait() == 0
        arguments, *environment = home.driver_log("job").read_text().splitlines()
        assert "T0K3N" not in arguments
        assert (f"NST_BATCH_NOTIFY_URL={url}" in environment) is bool(url)
        assert "another" not in str(environment), "a flag decides, or the variable through it"


def test_a_cluster_gets_the_url_in_the_environment_of_the_driver(
    home: Home, local: LocalJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[dict[str, Any]] = []

    class Client:
        """A cluster's Jobs API."""

        def submit_job(self, **arguments: Any) -> None:
            submitted.append(arguments)

    @contextmanager
    def api(_: str) -> Iterator[Client]:
        yield Client()

    monkeypatch.setattr(launch, "jobs_api", api)
    target, session = Target("http://head:8265"), Session.open(home, local.store)
    drivers.start(session, local, target, 0, "https://host/T0K3N")
    drivers.start(session, local, target, 0)
    with_url, without = submitted
    variables = {"NST_BATCH_NOTIFY_URL": "https://host/T0K3N"}
    assert with_url["runtime_env"] == {"env_vars": variables}
    assert "T0K3N" not in with_url["entrypoint"] and "runtime_env" not in without


def test_an_address_that_cannot_work_is_found_at_once() -> None:
    refused(run("submit", "nowhere", "--notify-url", "ftp://host"), "--notify-url is no address")
