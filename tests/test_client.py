"""The client library without the command line: preparing, remembering and fetching."""

from __future__ import annotations

import gc
import logging
import shutil
import sys
import tracemalloc
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from jobs.client.fetch import fetch, preview
from jobs.client.gallery import GALLERY, SHEET
from jobs.client.home import JOB_FILE, PICTURES, Home, LocalJob
from jobs.client.pairs import Skipped, find_pairs
from jobs.client.pictures import Floats, read_picture
from jobs.client.preparation import PreparedPair, prepare, prepared_pairs
from jobs.client.run import ready
from jobs.client.session import Session
from jobs.client.submit import submit
from jobs.options import SubmitOptions
from nst.engines.cache import ModelCache
from nst.errors import CircuitError, InputError
from nst.folders import explaining
from nst.model import Model
from nst.network import levels
from nst.network.integers import IntegerNetwork
from nst.pictures.picture import Picture
from nst.pictures.size import Size
from tests.fakes import FakeEngine
from tests.toy import TOY_SQUARE, offer_toy, toy_level, toy_weights
from tests.toy_job import NAME, ToyJob
from tests.user_pairs import folder_of


@pytest.fixture
def model(network: IntegerNetwork, tmp_path: Path) -> Model:
    """The toy, not published: previews need no more."""
    return Model(toy_level(), network, ModelCache(tmp_path / "models"), TOY_SQUARE)


def usable(item: PreparedPair | Skipped) -> PreparedPair:
    assert isinstance(item, PreparedPair), item
    return item


def test_pictures_are_kept_as_long_as_pairs_to_come_need_them(model: Model, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pairs", [str(i) for i in range(4)])
    alive: list[weakref.ref[Picture]] = []
    for item in prepared_pairs(find_pairs(source)[0], model, "crop"):
        pair = usable(item)
        alive += [weakref.ref(part.input.picture) for part in (pair.content, pair.style)]
        del item, pair
        # The iterator has let go of a pair by the time that it is handed out.
        assert not any(each() for each in alive)

    grid, _ = prepare(find_pairs(source, grid=True)[0], model, "crop")
    assert len(grid) == 16
    for part in ("content", "style"):
        assert len({id(getattr(pair, part).input.picture) for pair in grid}) == 4


def test_any_number_of_pairs_is_submitted_in_the_memory_of_a_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_toy(monkeypatch, toy_weights(tmp_path / "toy.safetensors"), tmp_path / "home")
    session = Session.open(Home(tmp_path / "home"), str(tmp_path / "store"), create=True)
    options = SubmitOptions(quality="toy", engine=FakeEngine.name, size=Size.square(256))
    names = [f"{i:02}" for i in range(40)]
    source = folder_of(tmp_path / "pairs", names)
    ready(source, options, session.home, session.store.url, planned=True)
    tracemalloc.start()
    batch = ready(source, options, session.home, session.store.url)
    local = submit(session, batch.model, batch.pairs, batch.skipped)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 3 * 256 * 256 * 4
    # What is encrypted and kept is what was prepared.
    kept = session.home.pictures(local.job_id)
    for prepared, pair in zip(batch.pairs, local.pairs, strict=True):
        np.testing.assert_array_equal(prepared.content.input.picture.rgb, kept[pair.content].rgb)
    first = local.pairs[0].content, local.pairs[0].style
    rgb, _ = read_picture(source / "content" / "00.png", options.size or Size(1, 1), "crop")
    np.testing.assert_array_equal(kept[first[0]].rgb, rgb)


def test_a_pair_that_cannot_be_used_costs_only_itself(model: Model, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pairs", ("a", "b", "c"))
    (source / "style" / "b.png").write_bytes(b"no picture")
    pairs, _ = find_pairs(source)
    found, skipped = prepare(pairs, model, "crop")
    assert [pair.name for pair in found] == ["a", "c"]
    assert [item.name for item in skipped] == ["b"] and "b.png" in skipped[0].reason

    report = preview(pairs, [Skipped("d", "no style")], model, "crop", tmp_path / "out", False)
    assert report.done == ["a", "c"]
    assert report.failed == {"b": skipped[0].reason, "d": "no style"}
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"a.png", "c.png", GALLERY, SHEET}
    with pytest.raises(InputError, match=r"already holds a\.png and 1 more"):
        preview(pairs, [], model, "crop", tmp_path / "out", False)


def test_a_pair_called_contact_sheet_keeps_its_result(model: Model, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pairs", ("contact-sheet",))
    report = preview(find_pairs(source)[0], [], model, "crop", tmp_path / "out", False)
    (name,) = report.done
    assert name == "contact-sheet"
    with Image.open(tmp_path / "out" / SHEET) as result:
        assert result.size == (TOY_SQUARE.width, TOY_SQUARE.height)
    with Image.open(tmp_path / "out" / "contact-sheet-2.png") as sheet:
        assert sheet.width > 3 * TOY_SQUARE.width


def test_a_full_disk_is_one_line_and_no_trace(
    toy_job: ToyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def full(_: object, path: Path) -> Iterator[BinaryIO]:
        with explaining(path), Path("/dev/full").open("w+b") as file:
            yield file

    traces: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", traces.append)
    monkeypatch.setattr(Home, "save_job", lambda *_: None)
    monkeypatch.setattr(Home, "_writing", full)
    pictures = [Picture(np.random.default_rng(0).random((3, 64, 64), np.float32))]
    with pytest.raises(InputError, match="No space left"):
        Home(tmp_path).add_job(toy_job.local, pictures)
    gc.collect()
    assert not traces


@pytest.mark.parametrize("name", [GALLERY, SHEET])
def test_files_of_the_user_are_not_replaced(model: Model, tmp_path: Path, name: str) -> None:
    (pairs, _), (others, _) = (
        find_pairs(folder_of(tmp_path / stem, (stem,))) for stem in ("a", "b")
    )
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(InputError, match=rf"already holds {name}; use --force"):
        preview(pairs, [], model, "crop", out, False)
    assert [path.read_text() for path in out.iterdir()] == ["mine"]
    preview(pairs, [], model, "crop", out, True)
    # Those of the program show what was written last.
    preview(others, [], model, "crop", out, False)
    left = {name} - {GALLERY, SHEET}
    assert {path.name for path in out.iterdir()} == {"a.png", "b.png", GALLERY, SHEET} | left


def test_a_dangling_link_is_not_replaced(model: Model, tmp_path: Path) -> None:
    pairs, _ = find_pairs(folder_of(tmp_path / "pairs", ("a",)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(tmp_path / "unplugged" / "a.png")
    with pytest.raises(InputError, match=r"already holds a\.png"):
        preview(pairs, [], model, "crop", tmp_path / "out", False)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1}', "[" * 9999])
def test_a_damaged_record_costs_only_its_own_job(
    toy_job: ToyJob, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home(tmp_path)
    home.add_job(toy_job.local, [])
    home.save_job(toy_job.local.model_copy(update={"job_id": "broken"}))
    damaged = tmp_path / "jobs" / "broken" / JOB_FILE
    damaged.write_text(text)
    with caplog.at_level(logging.WARNING, "nst-batch"):
        assert home.jobs() == [toy_job.local]
    (message,) = caplog.messages
    assert str(damaged) in message and "\n" not in message
    with pytest.raises(InputError, match="broken"):
        home.job("broken")


def picture(seed: int, width: int = 8) -> Picture:
    levels_ = np.random.default_rng(seed).integers(0, 256, (3, 8, width))
    return Picture(levels_.astype(np.float32) / np.float32(255))


def test_pictures_of_a_job_are_read_one_by_one(toy_job: ToyJob, tmp_path: Path) -> None:
    home, kept = Home(tmp_path), [picture(0), picture(1, 16), picture(2)]
    home.add_job(toy_job.local, kept)
    path = tmp_path / "jobs" / toy_job.local.job_id / PICTURES
    found = home.pictures(toy_job.local.job_id)
    assert len(found) == 3
    for i, each in enumerate(kept):
        np.testing.assert_array_equal(found[i].rgb, each.rgb)

    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("arr_1.npy").header_offset + 60
    data = bytearray(path.read_bytes())
    data[at : at + 20] = bytes(20)
    path.write_bytes(data)
    found = home.pictures(toy_job.local.job_id)
    np.testing.assert_array_equal(found[0].rgb, kept[0].rgb)
    for position in (1, 3):
        with pytest.raises(InputError, match=f"{PICTURES} is missing or damaged"):
            found[position]
    for text in (b"", b"junk"):
        path.write_bytes(text)
        with pytest.raises(InputError, match="missing or damaged"):
            home.pictures(toy_job.local.job_id)


def copied(job: ToyJob, folder: Path) -> tuple[Session, LocalJob]:
    """The toy job as another client has it, to be changed."""
    home = Home(folder / "home")
    shutil.copytree(job.home.root, home.root)
    return Session.open(home, job.local.store), home.job(job.local.job_id)


def fetched(session: Session, local: LocalJob, out: Path) -> Floats:
    report = fetch(session, local, out, force=True)
    assert report.done == [NAME], report.failed
    with Image.open(out / f"{NAME}.png") as image:
        return np.asarray(image)


def test_a_job_is_fetched_with_the_model_that_it_was_made_with(
    toy_job: ToyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, local = copied(toy_job, tmp_path)
    monkeypatch.setitem(levels.LEVELS, "toy", toy_job.level)
    before = fetched(session, local, tmp_path / "before")

    # The level has other weights now, the last layer among them.
    level = toy_level(toy_weights(tmp_path / "other.safetensors", seed=1))
    monkeypatch.setitem(levels.LEVELS, "toy", level)
    assert Model.load("toy", session.home.models).model_id != local.model_id
    np.testing.assert_array_equal(fetched(session, local, tmp_path / "after"), before)
    assert {path.name for path in session.home.models.iterdir()} == {local.model_id}

    shutil.rmtree(session.home.models / local.model_id)
    with pytest.raises(CircuitError, match=f"{local.model_id} is not in .* the version that subm"):
        fetch(session, local, tmp_path / "gone", force=False)


def test_a_picture_that_is_lost_costs_its_pair_only(
    toy_job: ToyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, local = copied(toy_job, tmp_path)
    monkeypatch.setitem(levels.LEVELS, "toy", toy_job.level)
    twice = [*local.pairs, local.pairs[0].model_copy(update={"name": "lost", "content": 7})]
    report = fetch(session, local.model_copy(update={"pairs": twice}), tmp_path / "out", False)
    assert report.done == [NAME] and "missing or damaged" in report.failed["lost"]
