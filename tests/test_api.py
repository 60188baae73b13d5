"""The Python interface: jobs as futures, and single pairs, on the toy network."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jobs
import nst
from jobs import api
from jobs.client import drivers, lifecycle
from jobs.client.home import Home, LocalJob
from jobs.client.pictures import read_picture
from jobs.client.preparation import prepare
from jobs.configuration import FILE
from jobs.storage import layout
from jobs.storage.records import JobState, write_record
from jobs.storage.store import open_store
from nst.ciphertext import Envelope
from nst.errors import CircuitError, ClusterError, InputError
from nst.model import Model
from nst.network import levels
from nst.network.architecture import STYLE
from nst.pictures.picture import to_image
from nst.pictures.size import Size
from nst.training.quality import psnr
from tests.toy import TOY_SIZE
from tests.toy_job import EXAMPLE, EXAMPLES, NAME, ToyJob


@pytest.fixture(autouse=True)
def toy_level(toy_job: ToyJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(levels.LEVELS, "toy", toy_job.level)
    monkeypatch.delenv("NST_BATCH_PASSPHRASE", raising=False)


@pytest.fixture
def client(toy_job: ToyJob, tmp_path: Path) -> Iterator[jobs.Client]:
    """With the keys and circuits of the job that has run; its own jobs are forgotten."""
    before = {local.job_id for local in toy_job.home.jobs()}
    yield jobs.Client(tmp_path / "store", home=toy_job.home.root)
    for local in toy_job.home.jobs():
        if local.job_id not in before:
            toy_job.home.forget(local.job_id)


@pytest.fixture
def stylizer(toy_job: ToyJob) -> nst.Stylizer:
    return nst.Stylizer("toy", toy_job.home.root)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Drivers do nothing but seem to be at work; this tells of which jobs."""
    ids: list[str] = []

    def start_here(home: Home, local: LocalJob, actors: int, *_: object) -> None:
        ids.append(local.job_id)

    monkeypatch.setattr(drivers, "start_here", start_here)
    monkeypatch.setattr(drivers.LocalDriver, "alive", lambda _: True)
    monkeypatch.setattr(drivers.LocalDriver, "stop", lambda _: None)
    return ids


def example(side: str) -> Image.Image:
    with Image.open(EXAMPLES / side / f"{EXAMPLE}.jpg") as image:
        return image.convert("RGB")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64)


def test_a_job_that_has_run_gives_its_pictures(
    toy_job: ToyJob, stylizer: nst.Stylizer, tmp_path: Path
) -> None:
    job = jobs.Client(home=toy_job.home.root).job(toy_job.local.job_id)
    assert (job.status(), job.done(), job.names) == ("succeeded", True, [NAME])
    results = job.result(timeout=0)
    assert list(results) == [NAME] and results.failed == {}
    clear = stylizer.preview(example("content"), example("style"))
    assert results[NAME].size == clear.size == (TOY_SIZE, TOY_SIZE)
    # Encrypted: the circuits' noise is in it, and only that.
    assert 20 < psnr(pixels(clear) / 255, pixels(results[NAME]) / 255) < 60
    assert not job.cancel() and not job.cancelled() and job.retry(failed=True) == 0

    report = job.fetch(tmp_path / "out")
    assert report.done == [NAME]
    with Image.open(tmp_path / "out" / f"{NAME}.png") as png:
        np.testing.assert_array_equal(pixels(png), pixels(results[NAME]))
    gallery = report.gallery.read_text()
    assert NAME in gallery and "core-seconds" in gallery and "on 1 actor" in gallery
    with pytest.raises(InputError, match=NAME):
        job.fetch(tmp_path / "out")


def test_submitted_jobs_are_futures(
    client: jobs.Client, started: list[str], toy_job: ToyJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.submit(toy_job.folder / "pairs", "toy")
    assert started == [job.id] and client.jobs()[-1].id == job.id
    assert (job.status(), job.done()) == ("queued", False)
    with pytest.raises(TimeoutError, match=job.id):
        job.result(timeout=0)
    stop = lifecycle.cancel
    monkeypatch.setattr(lifecycle, "cancel", lambda *job: stop(*job, patience=0.0))
    assert job.cancel() and job.cancelled() and job.done() and job.cancel()
    with pytest.raises(CancelledError, match=job.id):
        job.result()
    # Another driver goes on with it, while the caller waits.
    play_back = toy_job.play_back()

    def sleep(_: float) -> None:
        play_back(toy_job.home, toy_job.home.job(job.id), 1)

    monkeypatch.setattr(api.time, "sleep", sleep)
    assert job.retry() == 1 and len(started) == 2
    assert job.status() == "queued"
    original = jobs.Client(home=toy_job.home.root).job(toy_job.local.job_id).result()
    np.testing.assert_array_equal(pixels(job.result(30)[NAME]), pixels(original[NAME]))
    job.delete()
    with pytest.raises(InputError, match=job.id):
        client.job(job.id)


def test_pairs_that_cannot_be_read_have_reasons(
    client: jobs.Client, toy_job: ToyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    content, style = (EXAMPLES / side / f"{EXAMPLE}.jpg" for side in ("content", "style"))
    pairs = [
        jobs.Pair("../up/and<b>away", content, style),
        jobs.Pair("bad", tmp_path / "bad.png", style),
        jobs.Pair("../up/and<b>away", content, style),
    ]
    monkeypatch.setattr(drivers, "start_here", toy_job.play_back())
    job = client.submit(pairs, "toy")
    results = job.result()
    assert list(results) == job.names == ["_up_and<b>away", "_up_and<b>away-2"]
    assert list(results.failed) == list(job.skipped) == ["bad"]
    assert "bad.png" in results.failed["bad"]
    report = job.fetch(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == [
        "_up_and<b>away-2.png", "_up_and<b>away.png", "contact-sheet.png",
    ]  # fmt: skip
    page = report.gallery.read_text()
    assert "_up_and&lt;b&gt;away" in page and "<b>" not in page and "bad.png" in page


def test_a_job_that_stops_says_why(
    client: jobs.Client, started: list[str], toy_job: ToyJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.submit(toy_job.folder / "pairs", "toy")
    monkeypatch.setattr(drivers.LocalDriver, "alive", lambda _: False)
    assert job.done()
    with pytest.raises(ClusterError, match="driver is gone"):
        job.result()
    state = JobState(status="failed", reason="no room for actors")
    write_record(open_store(toy_job.home.job(job.id).store), layout.state(job.id), state)
    with pytest.raises(ClusterError, match="no room for actors"):
        job.result()
    assert job.logs() == ""


def test_what_is_wrong_is_named_before_anything_is_submitted(
    client: jobs.Client, started: list[str], toy_job: ToyJob, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="best"):
        client.submit(tmp_path, "best")
    with pytest.raises(InputError, match="nowhere"):
        client.submit(tmp_path / "nowhere", "toy")
    with pytest.raises(InputError, match="no pair can be used"):
        client.submit([], "toy")
    with pytest.raises(InputError, match="needs a store"):
        jobs.Client(cluster="http://head:8265").submit(toy_job.folder / "pairs", "toy")
    with pytest.raises(InputError, match="0f3c9a"):
        client.job("0f3c9a")
    pairs = toy_job.folder / "pairs"
    with pytest.raises(InputError, match="notify-url is no address"):
        client.submit(pairs, "toy", notify_url="nowhere")
    with pytest.raises(InputError, match="actors: 0 is less than 1"):
        client.submit(pairs, "toy", actors=0)
    with pytest.raises(InputError, match="size: size 9 x 9"):
        client.submit(pairs, "toy", size=(9, 9))
    with pytest.raises(TypeError, match="no option 'qualty'"):
        client.submit(pairs, qualty="toy")
    assert started == []


@dataclass
class Started:
    """What a driver was started with."""

    local: LocalJob
    actors: int
    notify_url: str


@pytest.fixture
def last(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    """Drivers do nothing; this tells what they were given."""
    seen: list[Started] = []

    def start_here(home: Home, local: LocalJob, actors: int, notify_url: str) -> None:
        seen.append(Started(local, actors, notify_url))

    monkeypatch.setattr(drivers, "start_here", start_here)
    return seen


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An empty working directory: where the project's file and the user's would be."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    user = tmp_path / "config" / "nst-batch"
    for folder in (user, tmp_path / "here"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return Path(FILE), user / FILE


def test_what_is_not_given_is_configured_as_for_submit(
    client: jobs.Client,
    last: list[Started],
    toy_job: ToyJob,
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project, user = files
    pairs = toy_job.folder / "pairs"
    user.write_text('quality = "toy"\n[submit]\nactors = 3\nsize = "32x16"\n'
                    'notify-url = "https://user.example"\n')  # fmt: skip
    client.submit(pairs)
    assert (last[-1].local.quality, last[-1].actors) == ("toy", 3)
    assert last[-1].notify_url == "https://user.example" and last[-1].local.size == Size(32, 16)
    project.write_text("actors = 4")
    client.submit(pairs)
    assert last[-1].actors == 4
    monkeypatch.setenv("NST_BATCH_ACTORS", "5")
    client.submit(pairs, "toy")
    assert last[-1].actors == 5
    monkeypatch.setenv("NST_BATCH_SUBMIT_ACTORS", "6")
    client.submit(pairs, "toy")
    assert last[-1].actors == 6
    client.submit(pairs, "toy", actors=7, notify_url="", size=(32, 32))
    assert last[-1].actors == 7 and last[-1].notify_url == ""
    assert last[-1].local.size == Size(32, 32)
    project.write_text('quality = "nosuch"')
    with pytest.raises(InputError, match=f"{FILE}: quality: no quality level 'nosuch'"):
        client.submit(pairs, "toy")
    # `retry` has its own.
    project.write_text("[retry]\nactors = 8")
    monkeypatch.setattr(drivers.LocalDriver, "alive", lambda _: False)
    monkeypatch.delenv("NST_BATCH_ACTORS")
    job = client.job(last[-1].local.job_id)
    assert job.retry() == 1 and last[-1].actors == 8
    assert job.retry(actors=9, notify_url="https://now.example") == 1
    assert (last[-1].actors, last[-1].notify_url) == (9, "https://now.example")


def test_the_store_and_the_cluster_are_configured(
    last: list[Started], toy_job: ToyJob, files: tuple[Path, Path], tmp_path: Path
) -> None:
    project, pairs, home = files[0], toy_job.folder / "pairs", toy_job.home.root
    project.write_text(f'store = "{tmp_path / "configured"}"\nendpoint-url = "http://127.0.0.1:1"')
    job = jobs.Client(home=home).submit(pairs, "toy")
    assert last[-1].local.store == str(tmp_path / "configured")
    job.delete()
    project.write_text('cluster = "http://127.0.0.1:1"\nlimit = 1')
    with pytest.raises(InputError, match="a cluster needs a store"):
        jobs.Client(home=home).submit(pairs, "toy")
    before = toy_job.home.jobs()
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1"):
        jobs.Client(tmp_path / "store", home=home).submit(pairs, "toy")
    assert toy_job.home.jobs() == before, "nothing is encrypted for a cluster that is not there"
    jobs.Client(tmp_path / "store", cluster="", home=home).submit(pairs, "toy").delete()
    project.write_text("[submit]\nlimt = 1")
    with pytest.raises(InputError, match=r"submit\.limt: no option of submit; did you mean limit"):
        jobs.Client(tmp_path / "store", home=home).submit(pairs, "toy")


def test_a_job_over_the_limit_is_not_submitted(
    client: jobs.Client,
    last: list[Started],
    toy_job: ToyJob,
    files: tuple[Path, Path],
) -> None:
    pairs = toy_job.folder / "pairs"
    files[0].write_text("limit = 1e-9")
    with pytest.raises(InputError, match=r"core-hours, more than the limit of 1e-09: .* limit="):
        client.submit(pairs, "toy")
    assert last == []
    client.submit(pairs, "toy", limit=math.inf)
    assert len(last) == 1


def test_auto_takes_the_best_level_that_the_budget_allows(
    client: jobs.Client,
    last: list[Started],
    toy_job: ToyJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # From the last: they come back in the order in which they went, turned round.
    for name in [name for name in reversed(levels.LEVELS) if name != "toy"]:
        monkeypatch.delitem(levels.LEVELS, name)
    pairs = toy_job.folder / "pairs"
    assert client.submit(pairs, "auto", budget=3600).quality == "toy"
    with pytest.raises(InputError, match="no quality level fits"):
        client.submit(pairs, "auto", budget=1e-3)


def test_a_preview_is_that_of_the_command_line(toy_job: ToyJob, stylizer: nst.Stylizer) -> None:
    paths = [EXAMPLES / side / f"{EXAMPLE}.jpg" for side in ("content", "style")]
    model = Model.load("toy", toy_job.home.models)
    ((prepared,), _) = prepare([jobs.Pair("x", *paths)], model, "crop")
    expected = pixels(to_image(prepared.preview(model)))
    images = example("content"), example("style")
    np.testing.assert_array_equal(pixels(stylizer.preview(*images)), expected)
    arrays = [np.asarray(image) for image in images]
    np.testing.assert_array_equal(pixels(stylizer.preview(*arrays)), expected)


def test_what_stylizer_encrypts_is_for_the_circuits_and_its_key(
    toy_job: ToyJob, stylizer: nst.Stylizer
) -> None:
    content, style = example("content"), example("style")
    sent = stylizer.encrypt(content, style)
    assert (sent.key_id, sent.model_id) == (toy_job.local.key_id, toy_job.local.model_id)
    rgb, _ = read_picture(EXAMPLES / STYLE / f"{EXAMPLE}.jpg", Size.square(TOY_SIZE), "crop")
    for blob in (sent.content, sent.style):
        envelope = Envelope.unpack(blob, "picture")
        envelope.require(sent.key_id, sent.model_id, "picture")
        assert len(envelope.parts) == TOY_SIZE // 4
        assert rgb.tobytes()[:24] not in blob
    assert stylizer.encrypt(content, style).content != sent.content
    assert len(stylizer.evaluation_keys()) > 1_000_000
    assert stylizer.published.plan.model_id == sent.model_id


def test_stylizer_decrypts_what_a_server_made(toy_job: ToyJob, stylizer: nst.Stylizer) -> None:
    content, style = example("content"), example("style")
    parts = toy_job.parts()
    result = stylizer.decrypt(parts, content, style)
    fetched = jobs.Client(home=toy_job.home.root).job(toy_job.local.job_id).result()
    np.testing.assert_array_equal(pixels(result), pixels(fetched[NAME]))
    damaged = parts[1][:-1] + bytes([parts[1][-1] ^ 1])
    with pytest.raises(CircuitError, match="row 1 of the result is damaged"):
        stylizer.decrypt([parts[0], damaged, *parts[2:]], content, style)
    with pytest.raises(CircuitError, match="has 7 rows"):
        stylizer.decrypt(parts[:-1], content, style)


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)]
)
def test_pixels_of_another_kind_are_refused(stylizer: nst.Stylizer, wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"\[H, W, 3\]"):
        stylizer.preview(wrong, example("style"))


def run_alone(code: str) -> str:
    """What a program prints that runs in a process of its own."""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_packages_load_nothing_until_it_is_asked_for() -> None:
    """A server process can import them; there the client's half stays out of reach."""
    code = """
import sys
import jobs, nst
heavy = {"concrete", "torch", "ray", "PIL", "numpy", "rich"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
from nst.sealing import seal
seal()
try:
    nst.Stylizer
except ImportError:
    print("refused")
try:
    jobs.Client
except ImportError:
    print("refused")
"""
    assert run_alone(code) == "refused\nrefused\n"
    code = "import sys, nst; nst.Stylizer('draft'); print({'concrete', 'ray'} & set(sys.modules))"
    assert run_alone(code) == "set()\n"
    with pytest.raises(AttributeError):
        nst.nothing  # noqa: B018
    with pytest.raises(AttributeError):
        jobs.nothing  # noqa: B018
