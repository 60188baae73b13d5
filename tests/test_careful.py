"""What a careful user may choose: more bits, keys for one job alone, results to publish."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.client import fetch as fetching
from jobs.client import lifecycle
from jobs.client.fetch import doubt, fetch
from jobs.client.home import Home, LocalJob
from jobs.client.pairs import find_pairs
from jobs.client.preparation import prepare
from jobs.client.run import load_model
from jobs.client.session import Session
from jobs.client.submit import submit
from jobs.options import BuildOptions, PreviewOptions, SubmitOptions
from jobs.storage.records import read_job
from nst.engines import get_engine
from nst.engines.base import KeyPair
from nst.engines.cache import ModelCache
from nst.engines.ckks import CkksEngine
from nst.engines.concrete.client import CircuitCipher
from nst.engines.concrete.preparation import quantized
from nst.errors import CircuitError, InputError, StoreError
from nst.keyring import KeyRing
from nst.model import Model
from nst.network.architecture import STYLE, STYLE_CODE
from nst.network.integers import IntegerNetwork
from nst.network.levels import EXACT_P_ERROR
from nst.pictures.size import Size
from tests.fakes import FakeEngine, fake_executor, run_job
from tests.toy import (
    TOY_SIZE,
    TOY_SQUARE,
    encrypt,
    load_evaluator,
    noise_input,
    offer_toy,
    run_stage,
    toy_level,
    toy_weights,
)
from tests.user_pairs import folder_of

ROOT = Path(__file__).resolve().parent.parent
PASSPHRASE = "correct horse"


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    offer_toy(monkeypatch, toy_weights(tmp_path / "toy.safetensors"), tmp_path / "home")
    # Those of the fake are always the same.
    monkeypatch.setattr(FakeEngine, "make_keys", lambda *_: KeyPair(b"secret", os.urandom(8)))
    home, url = Home(tmp_path / "home"), str(tmp_path / "store")
    return Session.open(home, url, lambda key_id: PASSPHRASE, create=True)


def submitted(session: Session, tmp_path: Path, publishable: bool = False) -> LocalJob:
    model = Model.load("toy", session.home.models, engine=FakeEngine.name, publishable=publishable)
    source = tmp_path / "pairs"
    pairs, _ = find_pairs(source if source.exists() else folder_of(source, ["a", "b"]))
    return submit(session, model, *prepare(pairs, model, "crop"), fresh_key=not publishable)


def test_options_reach_the_circuits(session: Session) -> None:
    home = session.home
    level = load_model(SubmitOptions(quality="toy", security=132, publishable=True), home).level
    assert (level.security, level.exact, level.p_error) == (132, True, EXACT_P_ERROR)
    level = load_model(BuildOptions(quality="toy", security=132), home).level
    assert (level.security, level.exact) == (132, False)
    level = load_model(PreviewOptions(quality="toy", out=home.root), home).level
    assert level == toy_level(level.weights)


def test_more_bits_and_exactness_are_other_dearer_circuits(
    network: IntegerNetwork, tmp_path: Path
) -> None:
    cache, engine = ModelCache(tmp_path), get_engine("concrete")
    usual = toy_level()
    costs = {}
    for level in (usual, replace(usual, security=132), usual.exactly()):
        plan = cache.publish(engine, network, level, TOY_SQUARE).plan
        costs[plan.model_id] = sum(s.work * s.tasks for s in plan.stages)
    assert len(costs) == 3 and sorted(costs.values()) == list(costs.values())


@pytest.mark.slow
def test_exact_circuits_give_the_levels_of_the_network_in_the_clear(
    network: IntegerNetwork, tmp_path: Path
) -> None:
    engine = get_engine("concrete")
    published = ModelCache(tmp_path).publish(engine, network, toy_level().exactly(), TOY_SQUARE)
    ring = KeyRing(tmp_path / "keys")
    card = ring.create(published, "toy")
    cipher = ring.cipher(card.key_id, published)
    assert isinstance(cipher, CircuitCipher)
    evaluator = load_evaluator(published, ring.evaluation_keys(card.key_id))
    style = noise_input(STYLE, 1)
    rows = {STYLE: list(encrypt(cipher, style).parts)}
    for name, layer in network.stages.items():
        if layer.stage.branch == STYLE:
            rows[name] = run_stage(evaluator, layer.stage, [rows[s] for s in layer.stage.sources])
    code = cipher.decrypt_rows(STYLE_CODE, tuple(rows[STYLE_CODE]))
    assert np.array_equal(code[:, 0, 0], network.style_code(quantized(style)))


def test_the_leveled_engine_has_neither(tmp_path: Path) -> None:
    for level in (toy_level().exactly(), replace(toy_level(), security=132)):
        with pytest.raises(CircuitError, match="leave these options out"):
            CkksEngine().model_id(None, level, Size.square(TOY_SIZE))  # type: ignore[arg-type]


def test_a_fresh_key_is_for_its_job_alone_and_goes_with_it(
    session: Session, tmp_path: Path
) -> None:
    ring = session.ring
    model = Model.load("toy", session.home.models, engine=FakeEngine.name)
    shared = ring.create(model.published, "toy", PASSPHRASE)
    one, other = (submitted(session, tmp_path) for _ in range(2))
    assert len({one.key_id, other.key_id, shared.key_id}) == 3
    assert model.key_set(ring) == shared
    assert all(ring.is_protected(job.key_id) for job in (one, other))
    lifecycle.delete(session, one)
    assert {card.key_id for card in ring.list()} == {shared.key_id, other.key_id}
    assert not session.store.list(f"keys/{one.key_id}")


def test_a_fresh_key_has_the_passphrase_of_the_newest_or_is_not_made(
    session: Session, tmp_path: Path
) -> None:
    model = Model.load("toy", session.home.models, engine=FakeEngine.name)
    session.ring.create(model.published, "toy", "another passphrase")
    with pytest.raises(InputError, match="wrong passphrase"):
        submitted(session, tmp_path)
    assert len(session.ring.list()) == 1 and not session.store.list("jobs/")


def test_a_submit_that_fails_leaves_no_fresh_key(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(key: str, blob: bytes) -> None:
        if "/inputs/" in key:
            raise StoreError("full")
        write(key, blob)

    write = session.store.write
    monkeypatch.setattr(session.store, "write", full)
    with pytest.raises(StoreError, match="full"):
        submitted(session, tmp_path)
    assert not session.ring.list() and not session.store.list("keys/")


@pytest.fixture
def published_job(session: Session, tmp_path: Path) -> LocalJob:
    """A job whose results may be published, and which has ended."""
    local = submitted(session, tmp_path, publishable=True)
    run_job(session.store, read_job(session.store, local.job_id), fake_executor(), 1)
    return local


def test_what_may_be_published_is_deleted_from_the_store_first(
    session: Session, published_job: LocalJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leasts = []

    def same(*arguments: object) -> str:
        leasts.append(arguments[-1])
        return ""

    monkeypatch.setattr(fetching, "doubt", same)
    report = fetch(session, published_job, tmp_path / "out", force=False)
    assert report.deleted and report.done == ["a", "b"] and leasts == [1.0, 1.0]
    assert session.store.list("") == ["store.json"]
    assert not session.home.jobs() and not session.ring.list()


def test_a_result_that_differs_is_not_written_and_nothing_is_deleted(
    session: Session,
    published_job: LocalJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = iter(["", "only 99%"])
    monkeypatch.setattr(fetching, "doubt", lambda *_: next(answers))
    before = session.store.list("")
    report = fetch(session, published_job, tmp_path / "out", force=False)
    assert report.failed == {"b": "only 99%"} and not report.deleted
    assert not (tmp_path / "out" / "b.png").exists()
    assert session.store.list("") == before
    assert "before you publish" in caplog.text


def test_one_level_off_is_not_to_be_published(session: Session, tmp_path: Path) -> None:
    model = Model.load("toy", session.home.models)
    pairs, _ = find_pairs(folder_of(tmp_path / "pairs", ["a"]))
    ((pair,), _) = prepare(pairs, model, "crop")
    content, style = pair.content.input.picture, pair.style.input.picture
    features = np.array(pair.content.features)
    assert doubt(model, content, style, features, 1.0) == ""
    features.flat[3] += 1
    assert "only 99%" in doubt(model, content, style, features, 1.0)
    assert doubt(model, content, style, features) == ""
    assert doubt(model, content, style, features[:, 1:], 1.0)


def test_packages_with_known_flaws_are_not_loaded() -> None:
    """Those that docs/security.md lists as not reached."""
    ours = ["cluster.actors", "jobs.cli.main", "jobs.client.run", "jobs.execution.driver"]
    ours += ["nst.engines.concrete.compilation", "nst.training.export", "nst.training.loop"]
    listed = ["concrete.ml", "onnx", "skops", "setuptools.package_index"]
    code = f"import sys, {', '.join(ours)}; print([m for m in {listed} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
