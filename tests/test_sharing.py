"""Pairs that share ciphertexts: laid out, computed, ended and fetched together."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.client.fetch import fetch
from jobs.client.home import Home, LocalJob
from jobs.client.pairs import Pair
from jobs.client.preparation import prepare
from jobs.client.session import Session
from jobs.client.submit import submit
from jobs.execution.sharing import Shared, numbers, share, sharing
from jobs.storage import layout
from jobs.storage.records import JobRecord, read_job, read_marks
from jobs.storage.store import Store
from nst.model import Model
from tests.fakes import FakeEngine, fake_executor, run_job
from tests.plans import grid_of_pairs
from tests.test_second_engine import SIZE
from tests.toy import offer_toy, toy_weights
from tests.user_pairs import folder_of

TOGETHER = 3


def laid_out(*pairs: str) -> Shared:
    return share([(pair[0], pair[1]) for pair in pairs], TOGETHER, numbers())


def inputs(shared: Shared) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """By result, the positions whose contents and styles it is made of."""
    made = {r.result: (shared.contents[r.content], shared.styles[r.style]) for r in shared.records}
    return list(made.values())


def test_pairs_of_one_style_share_ciphertexts_first() -> None:
    shared = laid_out("as", "bt", "cs", "ds", "es")
    assert inputs(shared) == [((0, 2, 3), (0,)), ((1, 4), (1, 4))] or inputs(shared) == [
        ((0, 2, 3), (0,)),
        ((4, 1), (4, 1)),
    ]
    for index, (record, lane) in enumerate(zip(shared.records, shared.lanes, strict=True)):
        assert shared.contents[record.content][lane] == index


def test_what_is_the_same_is_encrypted_once() -> None:
    # One style of seven contents: three results, one encrypted style.
    shared = laid_out(*(f"{content}s" for content in "abcdefg"))
    assert len({r.result for r in shared.records}) == len(shared.contents) == 3
    assert list(shared.styles.values()) == [(0,)]
    # The same three contents with two styles: one encrypted input of contents.
    shared = laid_out("as", "bs", "cs", "at", "bt", "ct")
    assert (len(shared.contents), len(shared.styles)) == (1, 2)


def test_without_sharing_every_picture_and_pair_stands_alone() -> None:
    pairs = grid_of_pairs(2, 2)
    assert sharing(pairs, 1) == pairs
    shared = share([(p.content, p.style) for p in pairs], 1, numbers())
    assert [r.pair_id == r.result for r in shared.records] == [True] * 4
    assert (len(shared.contents), len(shared.styles)) == (2, 2)
    assert set(shared.lanes) == {0}


def test_pairs_of_one_result_must_have_the_same_pictures(tmp_path: Path) -> None:
    pairs = grid_of_pairs(2, 1)
    pairs[1].result = pairs[0].result
    record = {"job_id": "j", "created": "", "quality": "toy", "width": 8, "height": 8}
    with pytest.raises(ValueError, match="have other pictures"):
        JobRecord(**record, model_id="m", key_id="k", pairs=pairs)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(FakeEngine, "pairs_per_result", TOGETHER)
    offer_toy(monkeypatch, toy_weights(tmp_path / "toy.safetensors"), tmp_path / "home")
    return Session.open(Home(tmp_path / "home"), str(tmp_path / "store"), create=True)


@pytest.fixture
def local(session: Session, tmp_path: Path) -> LocalJob:
    """Five pairs: three of one style, and two of others."""
    folder = folder_of(tmp_path / "pairs", ["a", "b", "c", "d", "e"])
    styles = dict(zip("abcde", "aacad", strict=True))
    pairs = [
        Pair(name, folder / "content" / f"{name}.png", folder / "style" / f"{style}.png")
        for name, style in styles.items()
    ]
    model = Model.load("toy", session.home.models, SIZE, FakeEngine.name)
    return submit(session, model, *prepare(pairs, model, "crop"))


def results_in(store: Store, local: LocalJob) -> set[str]:
    prefix = layout.results(local.job_id)
    return {key.removeprefix(prefix).split("/")[1] for key in store.list(prefix)}


def test_a_result_is_stored_once_and_fetched_for_all_its_pairs(
    session: Session, local: LocalJob, tmp_path: Path
) -> None:
    job = read_job(session.store, local.job_id)
    assert len({pair.result for pair in job.pairs}) == 2
    state = run_job(session.store, job, fake_executor(), 1)
    assert (state.status, state.pairs_done) == ("succeeded", 5)
    assert results_in(session.store, local) == {pair.result for pair in job.pairs}
    fetched = fetch(session, local, tmp_path / "out", force=False)
    assert sorted(fetched.done) == list("abcde")
    assert len({(tmp_path / "out" / f"{name}.png").read_bytes() for name in "abcde"}) == 5


def test_pairs_that_share_ciphertexts_fail_together_and_alone(
    session: Session, local: LocalJob
) -> None:
    job = read_job(session.store, local.job_id)
    lost = job.pairs[2]
    sharing_it = {pair.pair_id for pair in job.pairs if pair.result == lost.result}
    assert len(sharing_it) == 2
    session.store.delete(layout.encrypted_input(job.job_id, lost.content))
    state = run_job(session.store, job, fake_executor(), 1)
    assert (state.pairs_done, state.pairs_failed) == (3, 2)
    ended = read_marks(session.store, job).ended
    assert {pair for pair, end in ended.items() if end.status == "failed"} == sharing_it


def test_another_driver_that_ends_one_pair_leaves_the_parts_of_the_others(
    session: Session, local: LocalJob
) -> None:
    job = read_job(session.store, local.job_id)
    first, second = [p for p in job.pairs if p.result == job.pairs[0].result][:2]
    # One that died between the markers of two pairs that share its result.
    run_job(session.store, job, fake_executor(), 1)
    (attempt,) = {end.attempt for end in read_marks(session.store, job).ended.values()}
    for pair in job.pairs:
        if pair.pair_id != first.pair_id:
            session.store.delete(layout.pair_end(job.job_id, pair.pair_id))
    session.store.delete(layout.job_end(job.job_id))
    executor = fake_executor()
    state = run_job(session.store, job, executor, 1)
    assert state.status == "succeeded"
    ends = read_marks(session.store, job).ended
    assert ends[first.pair_id].attempt == attempt != ends[second.pair_id].attempt
    for end in (ends[first.pair_id], ends[second.pair_id]):
        key = layout.result_part(job.job_id, end.attempt, first.result, 0)
        assert session.store.exists(key)
