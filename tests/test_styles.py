"""The library of styles: one upload and one style branch for many jobs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.client import lifecycle
from jobs.client.drivers import pin_of
from jobs.client.fetch import fetch
from jobs.client.home import Home, LocalJob
from jobs.client.pairs import find_contents
from jobs.client.run import ready
from jobs.client.session import Session
from jobs.client.styles import add, listed, open_style, remove
from jobs.client.submit import submit
from jobs.execution.inprocess import InProcessExecutor
from jobs.execution.loading import EvaluatorLoader
from jobs.options import SubmitOptions
from jobs.storage import layout
from jobs.storage.records import read_job, read_trace
from nst.engines.base import KeyPair
from nst.errors import InputError
from nst.model import Model
from tests.command_line import refused, run
from tests.fakes import FakeEngine, run_job
from tests.toy import offer_toy, toy_weights
from tests.user_pairs import folder_of, picture

FAKE = {"quality": "toy", "engine": FakeEngine.name}


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    offer_toy(monkeypatch, toy_weights(tmp_path / "toy.safetensors"), tmp_path / "home")
    monkeypatch.setattr(FakeEngine, "make_keys", lambda *_: KeyPair(b"secret", os.urandom(4)))
    monkeypatch.setenv("NST_BATCH_HOME", str(tmp_path / "home"))
    return Session.open(Home(tmp_path / "home"), str(tmp_path / "store"), create=True)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "pairs", ["lake", "sea"])


def model_of(session: Session) -> Model:
    return Model.load("toy", session.home.models, engine=FakeEngine.name)


def submitted(session: Session, source: Path, style: str = "") -> LocalJob:
    options = SubmitOptions(style=style, store=session.store.url, **FAKE)  # type: ignore[arg-type]
    batch = ready(source, options, session.home, session.store.url)
    return submit(session, batch.model, batch.pairs, batch.skipped, style=batch.style)


def done(session: Session, local: LocalJob) -> list[str]:
    """Run a job to its end; the stages that were computed."""
    job = read_job(session.store, local.job_id)
    evaluator = EvaluatorLoader(session.store.url, replace(pin_of(session.home, local), folder=""))
    state = run_job(session.store, job, InProcessExecutor(evaluator()), 1)
    assert state.status == "succeeded"
    return [task.stage for task in read_trace(session.store, local.job_id)]


def test_jobs_share_a_style_that_is_computed_once(
    session: Session, pairs: Path, tmp_path: Path
) -> None:
    painting = picture(tmp_path / "wheat.png", 77, 64, 64)
    style = add(session, model_of(session), "wheat", painting)
    first, second = (submitted(session, pairs, "wheat") for _ in range(2))
    for local in (first, second):
        job = read_job(session.store, local.job_id)
        assert {pair.style for pair in job.pairs} == {style.style_id}
        inputs = session.store.list(f"{layout.whole_job(local.job_id)}inputs/")
        assert len(inputs) == 2, "the contents alone"
    stages = done(session, first)
    assert "code" in stages and not {"look", "code"} & set(done(session, second))
    assert session.store.exists(layout.library_result(style.style_id, "code", 0))
    # As if each pair had brought the painting along.
    for name in ("lake", "sea"):
        Image.open(painting).save(pairs / "style" / f"{name}.png")
    own = submitted(session, pairs)
    done(session, own)
    pictures = []
    for number, local in enumerate((second, own)):
        out = tmp_path / f"out{number}"
        fetch(session, local, out, force=False)
        pictures.append([np.asarray(Image.open(out / f"{n}.png")) for n in ("lake", "sea")])
    np.testing.assert_array_equal(*pictures)


def test_a_style_outlives_its_jobs_and_goes_when_it_is_removed(
    session: Session, pairs: Path, tmp_path: Path
) -> None:
    style = add(session, model_of(session), "wheat", picture(tmp_path / "wheat.png", 7))
    local = submitted(session, pairs, "wheat")
    done(session, local)
    lifecycle.delete(session, local)
    assert session.store.list(layout.STYLES)
    assert [each.style_id for each in listed(session.home)] == [style.style_id]
    again = submitted(session, pairs, "wheat")
    assert not {"look", "code"} & set(done(session, again))
    remove(session.home, "wheat", session)
    assert not session.store.list(layout.STYLES) and not listed(session.home)
    assert "wheat" not in "".join(session.store.list(""))


def test_a_style_is_for_one_model_and_store(session: Session, pairs: Path, tmp_path: Path) -> None:
    model = model_of(session)
    add(session, model, "wheat", picture(tmp_path / "wheat.png", 7))
    with pytest.raises(InputError, match="there is a style 'wheat' already"):
        add(session, model, "wheat", tmp_path / "wheat.png")
    for name in ("", "a/b", ".hidden"):
        with pytest.raises(InputError, match="no style can be called"):
            add(session, model, name, tmp_path / "wheat.png")
    other = SubmitOptions(style="wheat", store=str(tmp_path / "other"), **FAKE)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is in store"):
        ready(pairs, other, session.home, str(tmp_path / "other"))
    for key, what in (("grid", True), ("fresh_key", True), ("publishable", True)):
        with pytest.raises(InputError, match="leave out --"):
            ready(
                pairs,
                replace(other, store=session.store.url, **{key: what}),
                session.home,
                session.store.url,
            )
    card = session.home.styles / "wheat" / "style.json"
    card.write_text(card.read_text().replace(model.plan.model_id, "e1fe" * 4))
    with pytest.raises(InputError, match="for another model or size"):
        ready(pairs, replace(other, store=session.store.url), session.home, session.store.url)


def test_contents_are_those_of_a_folder(tmp_path: Path) -> None:
    style = picture(tmp_path / "wheat.png")
    for name in ("a", "b"):
        picture(tmp_path / "plain" / f"{name}.png")
    (tmp_path / "plain" / "b.jpg").write_bytes(b"twice")
    found, skipped = find_contents(tmp_path / "plain", style)
    assert [(pair.name, pair.style) for pair in found] == [("a", style)]
    assert [each.name for each in skipped] == ["b"]
    folder_of(tmp_path / "pairs", ["lake"])
    assert [pair.name for pair in find_contents(tmp_path / "pairs", style)[0]] == ["lake"]
    (tmp_path / "empty").mkdir()
    for wrong, message in (("empty", "holds no pictures"), ("none", "cannot be read")):
        with pytest.raises(InputError, match=message):
            find_contents(tmp_path / wrong, style)


def test_commands(session: Session, pairs: Path, tmp_path: Path) -> None:
    painting = picture(tmp_path / "wheat.png", 7)
    fake = ("--quality", "toy", "--engine", FakeEngine.name, "--store", session.store.url)
    assert "no styles yet" in run("styles", "list").output
    refused(run("styles", "remove", "wheat"), "no style 'wheat'")
    refused(run("submit", pairs, *fake, "--style", "wheat"), "no style 'wheat'")
    added = run("styles", "add", "wheat", painting, *fake)
    assert added.exit_code == 0 and "--style wheat" in added.output, added.output
    assert "wheat  toy" in run("styles", "list").output
    (session.home.styles / "wheat" / "style.json").write_text("{")
    refused(run("submit", pairs, *fake, "--style", "wheat"), "is damaged")
    assert run("styles", "remove", "wheat").exit_code == 0
    with pytest.raises(InputError, match="no style"):
        open_style(session.home, "wheat")
