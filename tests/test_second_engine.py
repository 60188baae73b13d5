"""A second engine is one folder and one entry: whole jobs of one that the program does not know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.client.fetch import fetch
from jobs.client.home import Home
from jobs.client.pairs import find_pairs
from jobs.client.preparation import prepare
from jobs.client.session import Session
from jobs.client.submit import submit
from jobs.execution.driver import run_job
from jobs.execution.forecast import Forecaster, Offer, distinct_pairs
from jobs.execution.inprocess import InProcessExecutor
from jobs.execution.loading import EvaluatorLoader
from jobs.storage.records import read_job
from nst.model import Model
from nst.pictures.size import Size
from tests.fakes import FakeEngine
from tests.toy import offer_toy, toy_weights
from tests.user_pairs import folder_of

NAMES = ["lake", "sea"]
SIZE = Size(60, 30)


def stylized(session: Session, pairs: Path, out: Path) -> dict[str, np.ndarray]:
    """Results of a job on the fake engine, from files to files."""
    model = Model.load("toy", session.home.models, SIZE, FakeEngine.name)
    local = submit(session, model, *prepare(find_pairs(pairs)[0], model, "crop"))
    assert local.engine == FakeEngine.name
    job = read_job(session.store, local.job_id)
    evaluator = EvaluatorLoader(session.store.url, job.model_id, job.key_id)()
    state = run_job(session.store, job, InProcessExecutor(evaluator), 1)
    assert (state.status, state.pairs_done) == ("succeeded", len(NAMES))
    assert sorted(fetch(session, local, out, force=False).done) == NAMES
    return {name: np.asarray(Image.open(out / f"{name}.png")) for name in NAMES}


def test_jobs_of_a_second_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_toy(monkeypatch, toy_weights(tmp_path / "toy.safetensors"), tmp_path / "home")
    session = Session.open(Home(tmp_path / "home"), str(tmp_path / "store"), create=True)
    pairs = folder_of(tmp_path / "pairs", NAMES)
    first = stylized(session, pairs, tmp_path / "first")
    again = stylized(session, pairs, tmp_path / "again")
    lake, sea = (first[name] for name in NAMES)
    assert lake.shape == sea.shape == (SIZE.height, SIZE.width, 3)
    assert np.abs(lake.astype(int) - sea).mean() > 1
    for name in NAMES:
        np.testing.assert_array_equal(first[name], again[name])


def test_estimates_of_a_second_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_toy(monkeypatch, toy_weights(tmp_path / "toy.safetensors"), tmp_path / "home")
    model = Model.load("toy", tmp_path / "models", SIZE, FakeEngine.name)
    forecaster = Forecaster(model.plan, model.engine.rates(), Offer())
    (on,) = forecaster.estimate(distinct_pairs(2), [1]).on
    work = model.plan.graph(distinct_pairs(2), model.seconds).seconds
    assert on.job_s == pytest.approx(work, rel=0.01) and work > 0
