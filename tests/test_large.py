"""Contents of any width and height: the same network, wider circuits, more rows, no seams."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jobs
import nst
from jobs.client import drivers
from jobs.client.home import Home, LocalJob
from jobs.client.pictures import Box, read_picture
from jobs.execution.inprocess import InProcessExecutor
from jobs.execution.loading import EvaluatorLoader
from jobs.storage import layout
from jobs.storage.records import read_job
from jobs.storage.store import open_store
from nst.engines.concrete import ConcreteEngine
from nst.engines.concrete.plan import CircuitPlan
from nst.engines.tasks import InputPart
from nst.errors import CircuitError, InputError
from nst.model import Model
from nst.network import levels
from nst.network.architecture import COLUMNS, CONTENT, STYLE
from nst.network.integers import IntegerStage, Ints, space_to_depth
from nst.network.pixels import dither
from nst.pictures.size import LARGEST, SMALLEST, Size
from nst.training.quality import psnr
from tests.command_line import refused, run
from tests.fakes import run_job
from tests.plans import grid_of_pairs, made_up_plan
from tests.toy import TOY, TOY_SIZE, noise_pixels, random_network
from tests.toy_job import EXAMPLE, EXAMPLES, ToyJob

SIZE = (36, 20)
"""Of the encrypted picture: wider than high, and both on no grid; 40 x 24 are encrypted."""


def pixels(width: int, height: int) -> Ints:
    return noise_pixels(max(width, height))[:, :height, :width]


@pytest.mark.parametrize(
    ("text", "width", "height"),
    [("96x64", 96, 64), ("512", 512, 512), (" 100 x 67 ", 100, 67), ("64X32", 64, 32)],
)
def test_a_size_is_read_as_people_write_it(text: str, width: int, height: int) -> None:
    assert Size.parse(text) == Size(width, height)


@pytest.mark.parametrize("text", ["", "x", "12x", "x12", "-4x8", "12.5x8", "96x64x3", "large"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(InputError, match="is not WIDTHxHEIGHT") as caught:
        Size.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "size",
    [(SMALLEST - 1, 64), (64, SMALLEST - 1), (LARGEST + 1, 64), (64, LARGEST + 1), (0, 0)],
)
def test_sizes_end_somewhere(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"the width must be {SMALLEST} to "):
        Size.parse("x".join(map(str, size)))
    with pytest.raises(InputError, match="the width must be"):
        nst.Stylizer("draft", size=size)


def test_an_engine_says_how_wide_it_computes() -> None:
    widest = ConcreteEngine.widest
    with pytest.raises(InputError, match=f"the width must be {SMALLEST} to {widest:,} pixels"):
        nst.Stylizer("draft", size=(widest + 1, 64))


def test_commands_refuse_a_wrong_size_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["preview", "x", "--out", "y"], ["submit", "x"], ["circuits", "build"]):
        result = run(*arguments, "--size", "wide")
        refused(result, "error: invalid value for '--size': size 'wide' is not ")
    monkeypatch.setenv("NST_BATCH_SIZE", "1x1")
    result = run("preview", "x", "--out", "y")
    refused(result, "error: NST_BATCH_SIZE: ", "the width must be")


def in_the_clear(stage: IntegerStage, rows: list[Ints], code: Ints | None) -> Ints:
    """A row task as the circuit does it, written down once more: rows `[C, 1, W]` to one."""
    if COLUMNS in stage.stage.kind.summed:
        summed = sum(row.sum(2, keepdims=True) for row in rows)
        return stage.activate(
            np.tensordot(stage.weight[:, :, 0, 0], summed, 1) + stage.bias[:, None, None]
        )
    width = rows[0].shape[2]
    x = np.concatenate([np.concatenate(rows[i : i + 3], axis=1) for i in range(0, len(rows), 3)])
    x = np.concatenate([x[:, :, :1], x, x[:, :, -1:]], axis=2)
    stride = stage.stage.stride
    acc = np.stack(
        [
            (stage.weight * x[None, :, :, at : at + 3]).sum((1, 2, 3)) + stage.bias
            for at in range(0, width, stride)
        ],
        axis=1,
    )
    if stage.modulation is not None:
        assert code is not None
        acc = acc + (stage.modulation @ code)[:, None]
    return stage.activate(acc[:, None, :])


@pytest.mark.parametrize(("width", "height"), [(72, 24), (24, 56)])
def test_the_row_tasks_of_a_plan_at_another_height_make_the_whole_picture(
    width: int, height: int
) -> None:
    network = random_network(TOY)
    content, style = pixels(width, height), noise_pixels(TOY_SIZE, 1)
    plan = replace(made_up_plan(TOY_SIZE, body=TOY.body), width=width).at(Size(width, height))
    graph = plan.graph(grid_of_pairs(1, 1), {circuit.name: 1.0 for circuit in plan.circuits})
    inputs = {"c0": space_to_depth(content), "s0": space_to_depth(style)}
    made: list[Ints] = []
    for task in graph.tasks:
        rows = [
            inputs[s.input_id][:, s.part : s.part + 1] if isinstance(s, InputPart) else made[s]
            for s in task.sources
        ]
        stage = network.stages[task.stage]
        code = rows.pop()[:, 0, 0] if stage.modulation is not None else None
        made.append(in_the_clear(stage, rows, code))
    result = np.concatenate([made[i] for i in graph.outputs["p00"]], axis=1)
    code = network.style_code(style)
    np.testing.assert_array_equal(result, network.content_features(content, code))


def test_a_part_of_a_picture_becomes_what_it_is_in_the_whole() -> None:
    """Nothing depends on where in a picture a place is: there is no seam to be seen."""
    network = random_network(TOY)
    code = network.style_code(noise_pixels(TOY_SIZE, 1))
    content = pixels(224, 160)
    whole = network.content_features(content, code)
    top, left, height, width, border = 24, 40, 96, 136, 7
    part = network.content_features(content[:, top : top + height, left : left + width], code)
    inner = part[:, border:-border, border:-border]
    y, x = top // 4 + border, left // 4 + border
    np.testing.assert_array_equal(inner, whole[:, y : y + inner.shape[1], x : x + inner.shape[2]])
    assert np.ptp(inner) > 0


def test_a_plan_at_another_height_costs_by_its_rows() -> None:
    plan = replace(made_up_plan(64), width=192, input_ciphertext_bytes=3 * 64 * 64 * 24)
    twice = plan.at(Size(192, 128))
    assert twice.pbs_content == 2 * plan.pbs_content and twice.pbs_style == plan.pbs_style
    assert twice.stored.content == 2 * plan.stored.content
    assert twice.stored.content_part == plan.stored.content_part
    assert twice.stored.style == plan.stored.style == 64 * 64 * 24
    assert twice.at(plan.size) == plan
    for other in (Size(64, 64), Size(192, 60)):
        with pytest.raises(CircuitError, match=f"192 pixels wide, not {other}"):
            plan.at(other)


def test_a_plan_comes_back_from_its_record() -> None:
    plan = replace(made_up_plan(64), width=192)
    assert CircuitPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_the_dither_of_squares_has_not_changed() -> None:
    drawn = np.random.RandomState(20221115).uniform(-0.4, 0.4, (3, 64, 64))
    np.testing.assert_array_equal(dither(64, 64), drawn.astype(np.float32))
    assert dither(24, 40).shape == (3, 24, 40)


@pytest.mark.parametrize(
    ("fit", "box", "corner"),
    [("crop", Box(0, 0, 60, 30), (30, 60)), ("letterbox", Box(17, 1, 47, 31), (31, 47))],
)
def test_a_picture_is_padded_to_the_grid_by_its_edges(
    tmp_path: Path, fit: str, box: Box, corner: tuple[int, int]
) -> None:
    drawn = np.random.default_rng(3).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(tmp_path / "a.png")
    picture, found = read_picture(tmp_path / "a.png", Size(60, 30), fit)  # type: ignore[arg-type]
    assert picture.shape == (3, 32, 64) and found == box
    y, x = corner
    np.testing.assert_array_equal(
        picture[:, y:, x:],
        np.broadcast_to(picture[:, y - 1, x - 1, None, None], (3, 32 - y, 64 - x)),
    )


def test_crop_takes_the_part_in_the_middle_in_the_proportions_of_the_size(tmp_path: Path) -> None:
    wide = np.zeros((40, 100, 3), dtype=np.uint8)
    wide[10:30, :, 0] = 255  # the middle half of the height, all of the width
    Image.fromarray(wide).save(tmp_path / "a.png")
    picture, _ = read_picture(tmp_path / "a.png", Size(160, 32), "crop")
    assert picture[0, 1:-1].min() > 0.99 and picture[1].max() == 0


def test_another_size_is_encrypted_computed_and_cut_out(
    toy_job: ToyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole job of a picture that is no square, really encrypted, against its preview."""
    monkeypatch.setitem(levels.LEVELS, "toy", toy_job.level)

    def start_here(home: Home, local: LocalJob, actors: int, *__: object) -> None:
        store = open_store(local.store)
        loader = EvaluatorLoader(store.url, drivers.pin_of(home, local))
        record = read_job(store, local.job_id)
        state = run_job(store, record, InProcessExecutor(loader()), actors)
        plan = loader.pin.job_plan(store, record)
        assert isinstance(plan, CircuitPlan)
        assert (plan.style_size, plan.size) == (Size.square(TOY_SIZE), Size(40, 24))
        assert state.status == "succeeded"

    monkeypatch.setattr(drivers, "start_here", start_here)
    client = jobs.Client(tmp_path / "store", home=tmp_path / "home")
    paths = [EXAMPLES / side / f"{EXAMPLE}.jpg" for side in (CONTENT, STYLE)]
    job = client.submit([jobs.Pair("cat", *paths)], "toy", size=SIZE, actors=1)
    result = job.result(timeout=0)["cat"]
    assert result.size == SIZE
    stylizer = nst.Stylizer("toy", tmp_path / "home", size=SIZE)
    pictures = [Image.open(path) for path in paths]
    expected = stylizer.preview(*pictures)
    assert expected.size == SIZE
    shown = [np.asarray(p, dtype=np.float32) / 255 for p in (result, expected)]
    assert psnr(*shown) > 30
    square = np.asarray(nst.Stylizer("toy", size=(24, 24)).preview(*pictures), dtype=np.float32)
    assert np.abs(square[:20] - 255 * shown[1][:, 6:30]).mean() > 1  # another part of the content
    fetched = job.fetch(tmp_path / "out")
    assert fetched.done == ["cat"] and "36 × 20 pixels" in fetched.gallery.read_text()
    with Image.open(tmp_path / "out" / "cat.png") as picture:
        assert picture.size == SIZE
    # What a server computes for a Stylizer of another size does not pass for one of this.
    store, local = open_store(str(tmp_path / "store")), client.home.job(job.id)
    keys = [k for k in store.list(layout.results(job.id)) if local.pairs[0].pair_id in k]
    with pytest.raises(CircuitError, match="has 5 rows of 10 cells, not 6 of 10"):
        stylizer.decrypt([store.read(key) for key in sorted(keys)[:-1]], *pictures)


def test_dry_runs_and_estimates_are_those_of_the_size(
    toy_job: ToyJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(levels.LEVELS, "toy", toy_job.level)
    monkeypatch.setenv("NST_BATCH_HOME", str(toy_job.home.root))
    pairs = str(toy_job.folder / "pairs")

    def said(*arguments: str) -> dict:
        result = run(*arguments, "--quality", "toy", "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    # Of the level's own width: only rows are more, and nothing is compiled.
    before = set(toy_job.home.models.iterdir())
    usual, tall = (
        said("submit", pairs, "--dry-run", "--size", f"{TOY_SIZE}x{height}") for height in (32, 96)
    )
    assert set(toy_job.home.models.iterdir()) == before
    assert (tall["width"], tall["height"]) == (TOY_SIZE, 96)
    assert tall["bytes_up"] == 2 * usual["bytes_up"]
    assert tall["bytes_down"] == 3 * usual["bytes_down"]
    low, high = (said("circuits", "inspect", "--size", f"32x{height}") for height in (32, 96))
    assert (high["height"], high["pbs_content"]) == (96, 3 * low["pbs_content"])
    assert high["pbs_style"] == low["pbs_style"]
    model = Model.load("toy", toy_job.home.models)
    style_s = sum(s.tasks * model.seconds[s.name] for s in model.plan.stages if s.style)
    less, more = (
        3600 * said("estimate", "--pairs", "1", "--size", f"32x{height}")["work_core_hours"]
        for height in (32, 96)
    )
    assert more - style_s == pytest.approx(3 * (less - style_s))
