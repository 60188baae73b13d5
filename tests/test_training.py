"""Losses, pictures, calibration, checkpoints and the training loop in one process."""

from __future__ import annotations

import dataclasses
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.fields import options_of
from nst.engines.ckks.network import LeveledNetwork
from nst.errors import CircuitError, InputError
from nst.network.architecture import Architecture
from nst.pictures import reading
from nst.training import dataset, loop, validation
from nst.training.calibration import accumulator_levels, factors, rescale_moments, rescale_stages
from nst.training.checkpoint import Checkpoint, RunFolder, initial_network
from nst.training.dataset import (
    Batch,
    Crop,
    Crops,
    Loader,
    Mix,
    Targets,
    list_pictures,
    random_square,
    split,
)
from nst.training.engines import TRAINABLE
from nst.training.leveled import LeveledStyleTransfer
from nst.training.loop import MOST_LOST, Losses, Run, Trainer, Worker, default_cache
from nst.training.losses import (
    content_loss,
    contrastive_loss,
    grain,
    lattice,
    statistics,
    style_loss,
)
from nst.training.network import StyleTransfer
from nst.training.options import TrainOptions
from nst.training.pretraining import pretrain_style
from nst.training.stage_layer import SAFE_LEVELS
from nst.training.trainable import Conditions, Trainable
from nst.training.validation import score
from nst.training.vgg import VGG16
from tests.leveled_toy import random_leveled
from tests.toy import TOY, toy_level, toy_network, toy_weights
from tests.training_data import (
    LEVELED,
    SIZE,
    SIZES,
    UNUSABLE,
    USABLE,
    make_pictures,
    make_run,
    picture,
)

CPU = torch.device("cpu")
CONCRETE: dict[str, Any] = {"consistency_weight": 1.0}
CKKS: dict[str, Any] = {
    "engine": "ckks",
    "mix": ((32, 2), (48, 3)),
    "photo_styles": 3,
    "widen": 0.5,
}
"""All that the first engine's runs are without: two sizes in turn, two learning rates."""
VARIED = dataclasses.replace(TOY, latent=6, body=2, up=2, style_deep=5, code=8)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Nothing here is worth more, and sums come out the same every time."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and VGG, made once."""
    path = tmp_path_factory.mktemp("training")
    make_run(path)
    return path


@pytest.fixture
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation in a tenth of the time."""
    monkeypatch.setattr(validation, "PAIRS", 4)


# Losses


def test_the_contrastive_loss_is_own_distance_over_the_sum_of_the_others() -> None:
    style = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 20.0]])
    result = torch.tensor([[1.0, 0.0], [10.0, 2.0], [0.0, 17.0]])
    squared = [[1, 81, 401], [104, 4, 424], [289, 389, 9]]
    expected = [1 / (81 + 401), 4 / (104 + 424), 9 / (289 + 389)]
    np.testing.assert_allclose(contrastive_loss(result, style), expected, rtol=1e-4)
    assert np.trace(squared) == 14


def test_results_are_contrasted_with_styles_and_never_with_results() -> None:
    style, result = torch.randn(4, 8), torch.randn(4, 8)
    before = contrastive_loss(result, style)
    result[1:] = torch.randn(3, 8)
    after = contrastive_loss(result, style)
    assert before[0] == after[0]
    assert not torch.isclose(before[1:], after[1:]).any()


def test_losses_of_flat_pictures_are_finite() -> None:
    flat, other = torch.zeros(1, 8, 4, 4), torch.randn(1, 8, 4, 4)
    assert content_loss(other, flat).isfinite().all()
    assert style_loss(statistics([other]), statistics([flat])).isfinite().all()
    white = torch.ones(1, 3, 8, 8)
    assert grain(white, white, white).isfinite().all()


@pytest.mark.parametrize("size", [32, 64, 192])
@pytest.mark.parametrize("period", [2, 4, 8])
def test_strokes_that_repeat_in_every_cell_are_a_lattice(size: int, period: int) -> None:
    torch.manual_seed(0)
    random = torch.rand(2, 3, size, size)
    cell = torch.rand(2, 3, period, period)
    repeated = cell.repeat(1, 1, size // period, size // period)
    slopes = torch.linspace(0, 1, size).expand(2, 3, size, size)
    for innocent in (random, slopes):
        assert (lattice(innocent) < 0.15).all()
        assert (lattice(innocent + 0.5 * repeated) > 2 * lattice(innocent)).all()
    assert (lattice(repeated) > 0.5).all()


def test_the_learning_rate_rises_then_falls_to_its_share() -> None:
    options = TrainOptions(max_iter=1000, lr=2e-3, lr_decay=0.1)
    rates = [options.learning_rate(step) for step in range(1001)]
    assert rates[0] == pytest.approx(2e-5, rel=1e-3)
    assert max(rates) == pytest.approx(2e-3, rel=0.05)
    assert rates[-1] == pytest.approx(2e-4)
    assert all(a > b for a, b in pairwise(rates[150:]))


# Pictures


def test_pictures_are_found_at_any_depth_and_some_held_out(folder: Path) -> None:
    found = list_pictures(folder / "content")
    assert len(found) == USABLE + UNUSABLE
    train, held_out = split(found)
    assert sorted(train + held_out) == found
    assert held_out == [found[0], found[16]]


def test_linked_folders_are_followed_once_each(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    (data / "2014").mkdir(parents=True)
    (data / "a").symlink_to(folder / "content")
    (data / "again").symlink_to(folder / "content")
    (data / "2014" / "loop").symlink_to(data)
    picture(1).save(data / "2014" / "b.tif")
    (data / "2014" / "._b.tif").write_bytes(b"what macOS leaves")
    (data / ".thumbnails").mkdir()
    picture(1).save(data / ".thumbnails" / "b.png")
    found = list_pictures(data)
    assert len(found) == USABLE + UNUSABLE + 1 and found == sorted(found)
    assert data / "2014" / "b.tif" in found


@pytest.mark.parametrize("count", [0, 1])
def test_a_folder_without_enough_pictures_is_refused(count: int, tmp_path: Path) -> None:
    for i in range(count):
        picture(i).save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match=f"holds {count} pictures"):
        list_pictures(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        list_pictures(tmp_path / "none")


def test_what_can_be_read_is_read_and_the_rest_is_passed_over(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crops = Crops(list_pictures(folder / "content"), SIZE, 0)
    drawn = [crop for i in range(30) for crop in crops.draw(4, random.Random(i))]
    assert all(c.rgb.shape == c.white.shape == (3, SIZE, SIZE) for c in drawn)
    assert all(c.rgb.min() >= 0 and c.rgb.max() <= 1 for c in drawn)
    assert sorted(p.name for p in crops.skipped) == [
        "d-empty.jpg", "d-text.png", "d-tiny.png", "truncated.jpg",
    ]  # fmt: skip
    # Each is complained about once.
    assert len(caplog.messages) == UNUSABLE
    assert all("\n" not in reason for reason in crops.skipped.values())


def test_a_folder_in_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="in a row cannot be used") as caught:
        Crops(list_pictures(tmp_path), SIZE, 0).draw(2, random.Random(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cache", [0, 40])
def test_what_is_drawn_does_not_depend_on_what_was_drawn_before(folder: Path, cache: int) -> None:
    paths = list_pictures(folder / "content")
    fresh, used = Crops(paths, SIZE, cache), Crops(paths, SIZE, cache)
    for i in range(20):
        used.draw(4, random.Random(1000 + i))
    for i in range(4):
        pairs = zip(fresh.draw(4, random.Random(i)), used.draw(4, random.Random(i)), strict=True)
        assert all(torch.equal(a.rgb, b.rgb) for a, b in pairs)


def test_a_cache_keeps_so_many_crops_and_their_targets(folder: Path) -> None:
    crops = Crops(list_pictures(folder / "content"), SIZE, 3)
    seen = [c for i in range(40) for c in crops.draw(4, random.Random(i))]
    kept = {id(c) for c in seen if sum(c is other for other in seen) > 1}
    assert len(kept) == 3
    assert default_cache(64, (1.0, 1.5)) > 3000
    assert default_cache(192, (1.0,)) > 500


def test_a_large_jpeg_is_decoded_small_and_another_large_file_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = picture(1, 2000, 1600)
    large.save(tmp_path / "a.jpg")
    large.save(tmp_path / "b.png")
    monkeypatch.setattr(reading, "MAX_PIXELS", 500 * 400)
    assert random_square(tmp_path / "a.jpg", SIZE, random.Random(0)).shape == (3, SIZE, SIZE)
    with pytest.raises(InputError, match="too many pixels"):
        random_square(tmp_path / "b.png", SIZE, random.Random(0))
    for name in ("a.jpg", "b.png"):
        with pytest.raises(InputError, match="too many pixels"):
            dataset.center_square(tmp_path / name, SIZE)


def test_a_bomb_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(1, 200, 160).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"a\.png' has too many pixels"):
        random_square(tmp_path / "a.png", SIZE, random.Random(0))


def make_loader(folder: Path, cache: int = 0, scales: tuple[float, ...] = (1.0, 1.5)) -> Loader:
    vgg = VGG16(folder / "vgg.npz")
    paths = [split(list_pictures(folder / name))[0] for name in ("content", "style")]
    contents, styles = (Crops(p, SIZE, cache) for p in paths)
    return Loader(contents, styles, Targets(vgg, CPU, together=not cache), 2, scales)


def assert_same(a: Batch, b: Batch) -> None:
    for field in dataclasses.fields(Batch):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, list):
            pairs = [
                (x, y) for p, q in zip(left, right, strict=True) for x, y in zip(p, q, strict=True)
            ]
        else:
            pairs = [(torch.as_tensor(left), torch.as_tensor(right))]
        assert all(torch.equal(x, y) for x, y in pairs), field.name


@pytest.mark.parametrize("cache", [0, 20])
def test_a_loader_that_starts_later_gives_the_same_batches(folder: Path, cache: int) -> None:
    whole = list(make_loader(folder, cache).batches("1/0", 0, 6, 2))
    later = list(make_loader(folder, cache).batches("1/0", 3, 6, 3))
    other = next(make_loader(folder, cache).batches("1/1", 0, 6, 2))
    assert [b.scale for b in whole] == [1.0, 1.5] * 3
    for a, b in zip(whole[3:], later, strict=True):
        assert_same(a, b)
    assert not torch.equal(whole[0].content, other.content)


def test_sizes_take_turns_and_scales_after_them(folder: Path) -> None:
    small, large = make_loader(folder), make_loader(folder)
    large.contents.size = large.styles.size = 40
    large.batch_size, large.scales = 3, (1.0,)
    mix = Mix([small, large, small])
    whole = list(mix.batches("1/0", 0, 7, 2))
    assert [len(b.style) for b in whole] == [2, 3, 2, 2, 3, 2, 2]
    assert [b.content.shape[-1] for b in whole] == [32, 40, 32, 32, 40, 32, 32]
    assert [b.scale for b in whole] == [1.0, 1.0, 1.0, 1.5, 1.0, 1.5, 1.0]
    for a, b in zip(whole[4:], mix.batches("1/0", 4, 7, 3), strict=True):
        assert_same(a, b)
    # A picture that cannot be used is complained about once, not at every size.
    assert len(mix.skipped) == len(set(mix.skipped)) > 0


def test_styles_are_widened_as_often_as_they_should(folder: Path) -> None:
    paths = [folder / "style" / f"c{i}.jpg" for i in range(8)]

    def drawn(widen: float) -> list[Crop]:
        crops = Crops(paths, SIZE, 0, widen)
        return [crop for i in range(20) for crop in crops.draw(4, random.Random(i))]

    plain, never = drawn(0.0), drawn(1e-9)
    always, again = drawn(1.0), drawn(1.0)
    assert all(torch.equal(a.rgb, b.rgb) for a, b in zip(always, again, strict=True))
    assert not any(torch.equal(a.rgb, b.rgb) for a, b in zip(plain, always, strict=True))
    assert all(
        a.rgb.shape == (3, SIZE, SIZE) and 0 <= a.rgb.min() <= a.rgb.max() <= 1 for a in always
    )
    spread = [torch.stack([c.rgb.std() for c in some]).std() for some in (plain, never, always)]
    assert spread[2] > spread[0] and spread[2] > spread[1]


def test_targets_are_what_vgg_says(folder: Path) -> None:
    batch = make_loader(folder).batch("x", 1.0)
    vgg = VGG16(folder / "vgg.npz")
    np.testing.assert_allclose(batch.content_target, vgg(batch.content)[-1], rtol=2e-3, atol=1e-3)
    for ours, theirs in zip(batch.style_target, statistics(vgg(batch.style)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# Calibration


def trained_like(architecture: Architecture, seed: int = 0) -> StyleTransfer:
    """A float network whose stages have all kinds of ranges."""
    torch.manual_seed(seed)
    network = StyleTransfer(architecture)
    rng = random.Random(seed)
    with torch.no_grad():
        for layer in network.stages.values():
            layer.conv.weight.mul_(rng.choice([0.5, 1.0, 4.0]))
            layer.bias.normal_(0.5, 0.5)
            if layer.modulation is not None:
                layer.modulation.weight.normal_(0, 0.1)
        network.head.weight.normal_(0, 0.1)
    network.quantize(False)
    return network


def float_result(network: StyleTransfer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        code = network.style_code(batch.style_white, Conditions())
        return network(batch.content_white, code, Conditions()), code


@pytest.mark.parametrize("architecture", [TOY, VARIED], ids=["toy", "varied"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_calibration_leaves_the_float_function_as_it_is(
    architecture: Architecture, seed: int, folder: Path
) -> None:
    network = trained_like(architecture, seed)
    batches = [make_loader(folder).batch(f"{seed}/{k}", 1.0) for k in range(2)]
    other = make_loader(folder).batch("other", 1.0)
    levels = accumulator_levels(network, batches)
    before, code = float_result(network, other)
    found = factors(network, levels)
    assert len({round(f, 3) for f in found.values()}) > 2
    rescale_stages(network, found)
    after, code_after = float_result(network, other)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(code_after, code * found["style_code"], rtol=1e-3, atol=1e-3)
    for name, level in accumulator_levels(network, batches).items():
        assert level == pytest.approx(levels[name] * found[name], rel=1e-2, abs=0.02)
        assert level <= SAFE_LEVELS * 1.01


def test_a_stage_grows_only_as_far_as_its_weights_fit() -> None:
    network = trained_like(TOY)
    with torch.no_grad():
        network.stages["stem"].conv.weight.fill_(0.1)
        network.stages["style_stem"].conv.weight.fill_(0.01)
    found = factors(network, dict.fromkeys(network.stages, 1.0))
    assert found["stem"] == pytest.approx(7.5 / 6.4, rel=1e-3)
    assert found["style_stem"] == pytest.approx(SAFE_LEVELS)
    # What is too large shrinks, whatever the weights.
    found = factors(network, dict.fromkeys(network.stages, 13.0))
    assert found["style_stem"] == pytest.approx(0.5)


def test_adams_moments_follow_the_parameters(folder: Path) -> None:
    network, batch = trained_like(TOY), make_loader(folder).batch("x", 1.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0)

    def gradients() -> list[torch.Tensor]:
        optimizer.zero_grad()
        code = network.style_code(batch.style_white, Conditions())
        network(batch.content_white, code, Conditions()).abs().sum().backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    before = gradients()
    optimizer.step()
    by = {s.name: 0.5 + 0.1 * i for i, s in enumerate(TOY.stages())}
    rescale_moments(network, optimizer, rescale_stages(network, by))
    after = gradients()
    assert any(not torch.allclose(a, b, rtol=0.1) for a, b in zip(after, before, strict=True))
    # The moments are those that gradients of the rescaled network would have made.
    for parameter, gradient in zip(network.parameters(), after, strict=True):
        scale, state = gradient.abs().max().clamp(min=1e-3), optimizer.state[parameter]
        close = {"rtol": 1e-2, "atol": 1e-3}
        torch.testing.assert_close(state["exp_avg"] / 0.1 / scale, gradient / scale, **close)
        second = state["exp_avg_sq"] / 0.001 / scale**2
        torch.testing.assert_close(second, (gradient / scale) ** 2, **close)


# Where a run starts from


def test_a_run_starts_from_shipped_weights(tmp_path: Path) -> None:
    path, shipped = toy_weights(tmp_path / "toy.safetensors"), toy_network()
    network = initial_network(path, {}, SIZE)
    again = network.integers()
    assert again.architecture == shipped.architecture
    for name, stage in shipped.stages.items():
        np.testing.assert_array_equal(again.stages[name].weight, stage.weight)
        np.testing.assert_array_equal(again.stages[name].bias, stage.bias)
        if stage.modulation is not None:
            np.testing.assert_array_equal(again.stages[name].modulation, stage.modulation)
    np.testing.assert_array_equal(again.head_weight, shipped.head_weight)
    np.testing.assert_array_equal(again.skip, shipped.skip)


def test_weights_of_the_second_engine_start_a_run_of_it(tmp_path: Path) -> None:
    path, shipped = tmp_path / "leveled.safetensors", random_leveled(LEVELED)
    shipped.save(path, {})
    network = initial_network(path, {}, SIZE, 40, engine="ckks")
    assert network.sizes == SIZES["ckks"]
    again = network.weights(octaves=shipped.octaves)
    assert isinstance(again, LeveledNetwork)
    for name, array in shipped.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)
    with pytest.raises(CircuitError, match="are of engine ckks, not concrete"):
        initial_network(path, {}, SIZE)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"style": [4, "a"]}, "style cannot be"),
        ({"style": 4}, "style cannot be 4"),
        ({"channels": -1}, "channels cannot be -1"),
        ({"heads": 8}, "heads"),
    ],
)
def test_an_impossible_leveled_architecture_is_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"no architecture .*{message}") as caught:
        initial_network(None, sizes, SIZE, engine="ckks")
    assert "\n" not in str(caught.value)


def test_what_the_second_engine_could_not_compute_is_not_trained() -> None:
    with pytest.raises(CircuitError, match="the network has 9 levels"):
        initial_network(None, {"stages": 5}, SIZE, engine="ckks")
    with pytest.raises(InputError, match="pictures of 24 pixels"):
        initial_network(None, {}, 24, engine="ckks")


def test_weights_of_one_resolution_start_another(tmp_path: Path) -> None:
    path = toy_weights(tmp_path / "toy.safetensors")
    network = initial_network(path, {"style_stride": 2}, 64)
    assert network.architecture == dataclasses.replace(TOY, style_stride=2)
    with pytest.raises(InputError, match="do not fit"):
        initial_network(path, {"latent": 8}, SIZE)


@pytest.mark.parametrize("sizes", [{"heads": 8}, {"style_stride": 3}, {"latent": "many"}])
def test_an_impossible_architecture_is_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no architecture") as caught:
        initial_network(None, sizes, SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_damaged_checkpoint_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    if content is None:
        torch.save({"weights": 1}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.ckpt is damaged"):
        Checkpoint.read(path)
    with pytest.raises(InputError, match="no checkpoint"):
        Checkpoint.read(tmp_path / "b.ckpt")


# The loop


class Stopped(Exception):  # noqa: N818
    """What a killed process looks like from inside."""


def stop_at(step: int) -> Worker:
    """A worker that dies right after the checkpoint of a step."""

    def report(figures: dict[str, float], checkpoint: Path | None) -> None:
        assert checkpoint is not None and checkpoint.exists()
        if figures["step"] == step:
            raise Stopped

    return Worker(report=report)


def lines_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]


def assert_equal_state(a: Checkpoint, b: Checkpoint) -> None:
    assert a.network.keys() == b.network.keys()
    for name, tensor in a.network.items():
        assert torch.equal(tensor, b.network[name]), name
    for key, state in a.optimizer["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b.optimizer["state"][key][name])
    assert (a.step, a.options, a.architecture) == (b.step, b.options, b.architecture)
    assert a.engine == b.engine
    assert a.validation == b.validation


@pytest.mark.usefixtures("few_pairs")
@pytest.mark.parametrize(
    ("cache", "stop", "options"),
    [
        *((cache, stop, CONCRETE) for cache, stop in [(0, 1), (0, 2), (0, 4), (20, 4)]),
        *((cache, stop, CKKS) for cache, stop in [(0, 1), (0, 2), (20, 3)]),
    ],
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    cache: int, stop: int, options: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    run = make_run(folder, options, cache=cache, out=tmp_path / "whole")
    assert Trainer(run, Worker()).train() == 6
    broken = dataclasses.replace(run, out=tmp_path / "broken", save_every=0.0)
    with pytest.raises(Stopped):
        Trainer(broken, stop_at(stop)).train()
    # A line of the step after the checkpoint, half written.
    with (broken.out / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": {stop + 1}}}\n{{"st')
    resumed = dataclasses.replace(broken, resume=True)
    resumed.check()
    assert Trainer(resumed, Worker()).train() == 6

    states = [Checkpoint.read(RunFolder(r.out).last) for r in (run, resumed)]
    assert states[0].step == 6 and states[0].seconds > 0
    assert states[0].engine == run.options.engine
    assert_equal_state(*states)
    # Nothing is recorded twice.
    steps = [line["step"] for line in lines_of(resumed) if "held_out" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert sum("calibration" in line for line in lines_of(resumed)) == 1
    # At the end there is nothing left to do.
    assert Trainer(resumed, stop_at(6)).train() == 6


@pytest.mark.usefixtures("few_pairs")
@pytest.mark.parametrize("engine", TRAINABLE)
def test_a_run_leaves_metrics_a_sheet_and_the_best_checkpoint(
    engine: str, folder: Path, tmp_path: Path
) -> None:
    run = make_run(folder, {"engine": engine}, out=tmp_path / "out", save_every=0.0)
    run.check()
    trainer = Trainer(run, Worker())
    trainer.train()
    first, *lines = lines_of(run)
    assert first["workers"] == 1 and first["options"]["size"] == SIZE
    saved = [line for line in lines if "held_out" in line]
    assert set(saved[-1]["train"]) == {
        "content", "style", "ssc", "grain", "overflow", "idle", "range", "consistency", "lattice",
        "total",
    }  # fmt: skip
    measured = {"content", "style", "grain", "overflow"} | (
        {"largest"} if engine == "ckks" else set()
    )
    assert set(saved[-1]["held_out"]) == measured
    assert saved[-1]["skipped"] == sum(len(line.get("skipped_now", [])) for line in (first, *lines))
    # The first engine's float networks cannot be exported, so none of them is the best.
    kind = TRAINABLE[engine]
    least = 2 if kind.needs_quantization else 0
    scores = {line["step"]: line["score"] for line in saved if line["step"] > least}
    best = Checkpoint.read(RunFolder(run.out).best)
    assert scores[best.step] == min(scores.values()) == score(best.validation)
    with Image.open(run.out / "sample.png") as sheet:
        assert sheet.width > 3 * SIZE
    kind.build({}, best.architecture).load_state_dict(best.network)
    assert not list(run.out.glob("*.partial"))


@pytest.mark.usefixtures("few_pairs")
def test_a_used_folder_is_not_used_again_by_accident(folder: Path, tmp_path: Path) -> None:
    run = make_run(folder, {"max_iter": 1, "warm_up": 0}, out=tmp_path / "out")
    Trainer(run, Worker()).train()
    with pytest.raises(InputError, match="--resume"):
        run.check()
    resumed = dataclasses.replace(run, resume=True)
    resumed.check()
    dataclasses.replace(resumed, sizes={}).check()
    with pytest.raises(InputError, match="has latent 4, not 8"):
        dataclasses.replace(resumed, sizes={"latent": 8}).check()
    with pytest.raises(InputError, match="has size 32, not 64"):
        dataclasses.replace(resumed, level=toy_level(side=64)).check()


@pytest.mark.usefixtures("few_pairs")
def test_a_run_of_the_other_engine_is_refused(folder: Path, tmp_path: Path) -> None:
    run = make_run(folder, {"engine": "ckks", "max_iter": 1}, out=tmp_path / "out")
    Trainer(run, Worker()).train()
    other = make_run(folder, out=run.out, resume=True)
    with pytest.raises(InputError, match=r"^the run in .* has engine ckks, not concrete: go on"):
        other.check()
    begun = make_run(folder, out=tmp_path / "other", init=RunFolder(run.out).last)
    with pytest.raises(InputError, match=r"checkpoint\.ckpt is of engine ckks, not concrete: name"):
        begun.check()
    resumed = dataclasses.replace(run, resume=True)
    options = dataclasses.replace(run.options, style_rate=1.0, max_iter=2)
    with pytest.raises(InputError, match="with another --style-rate"):
        Trainer(dataclasses.replace(resumed, options=options), Worker())
    # Another rate of the style branch is that from now on.
    options = dataclasses.replace(run.options, style_rate=0.5)
    trainer = Trainer(dataclasses.replace(resumed, options=options), Worker())
    assert [g["share"] for g in trainer.optimizer.param_groups] == [1.0, 0.5]


def test_recipes_fill_in_what_a_run_does_not_say(folder: Path, tmp_path: Path) -> None:
    ours, theirs = TrainOptions(), TrainOptions(engine="ckks")
    assert (ours.content_weight, ours.mix, ours.batch_size) == (1.0, (), 8)
    assert (theirs.content_weight, theirs.mix[1], theirs.consistency_weight) == (1.3, (64, 8), 0)
    assert TrainOptions(engine="ckks", content_weight=2.0).content_weight == 2.0
    # Pairs per step are pairs at the level's size.
    assert TrainOptions(engine="ckks", batch_size=4).mix == ()
    run = make_run(folder, {"engine": "ckks", "max_iter": 50, "style_steps": None, "warm_up": None})
    assert (run.style_steps, run.warm_up, run.parts) == (1_800, 40, ((SIZE, 2),))
    begun = dataclasses.replace(run, init=tmp_path / "some.ckpt")
    assert (begun.style_steps, begun.warm_up) == (0, 0)
    mixed = make_run(folder, {"engine": "ckks", "mix": ((64, 2), (36, 2))}, out=tmp_path / "out")
    with pytest.raises(InputError, match="'36x2': sides must be multiples of 8"):
        options_of(TrainOptions)["mix"].from_text("36x2")
    assert options_of(TrainOptions)["mix"].from_text("64x2,40x3") == ((64, 2), (40, 3))
    with pytest.raises(InputError, match="no list of sides and pairs"):
        options_of(TrainOptions)["mix"].from_text("64")
    mixed.check()


@pytest.mark.parametrize(("megabytes", "kept"), [(150, [True, True]), (30, [True, False])])
def test_a_mix_keeps_crops_only_where_there_is_room_for_all(
    megabytes: int, kept: list[bool], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CACHE_BYTES", megabytes * 10**6)
    mix = {"engine": "ckks", "mix": ((32, 2), (128, 2)), "scales": (1.0, 1.5, 3.0)}
    trainer = Trainer(make_run(folder, mix, cache=None, out=tmp_path / "out"), Worker())
    assert [bool(loader.styles.cache) for loader in trainer.loader.loaders] == kept
    # What a mix enlarges, it enlarges up to 256 pixels.
    assert [loader.scales for loader in trainer.loader.loaders] == [(1.0, 1.5, 3.0), (1.0, 1.5)]


@pytest.mark.usefixtures("few_pairs")
def test_the_style_branch_learns_at_a_rate_of_its_own(folder: Path, tmp_path: Path) -> None:
    moved = {}
    for share in (1.0, 0.01):
        options = {"engine": "ckks", "max_iter": 1, "style_rate": share, "photo_styles": 100}
        trainer = Trainer(make_run(folder, options, out=tmp_path / f"{share}"), Worker())
        assert len(trainer.styles) == 30
        before = {n: p.clone() for n, p in trainer.network.named_parameters()}
        trainer.train()
        after = dict(trainer.network.named_parameters())
        moved[share] = {n: float((after[n] - before[n]).abs().max()) for n in before}
    for name in ("convs.0.weight", "style_convs.0.weight", "pool.weight"):
        ratio = 0.01 if name.startswith(("style_", "pool")) else 1.0
        assert moved[0.01][name] == pytest.approx(ratio * moved[1.0][name], rel=0.5), name


@pytest.mark.usefixtures("few_pairs")
def test_the_style_branch_and_the_warm_up_are_left_out_of_a_run_that_begins_with_weights(
    folder: Path, tmp_path: Path
) -> None:
    decided = {"max_iter": 20, "style_steps": None, "warm_up": None}
    run = make_run(folder, decided, out=tmp_path / "out")
    assert (run.style_steps, run.warm_up) == (2_500, 2)
    begun = dataclasses.replace(run, init=toy_weights(tmp_path / "toy.safetensors"))
    assert (begun.style_steps, begun.warm_up) == (0, 0)
    stopped = dataclasses.replace(begun, save_every=0.0)
    with pytest.raises(Stopped):
        Trainer(stopped, stop_at(1)).train()
    # It goes on as it began, though this call does not say from what that was.
    resumed = Trainer(dataclasses.replace(run, resume=True), Worker())
    assert (resumed.step, resumed.warm_up) == (1, 0)


@pytest.mark.parametrize("warm_up", [6, 7])
def test_a_warm_up_that_leaves_no_quantized_step_is_refused(
    warm_up: int, folder: Path, tmp_path: Path
) -> None:
    """Only quantized networks are kept: such a run would announce a file that it never writes."""
    run = make_run(folder, {"warm_up": warm_up}, out=tmp_path / "out")
    with pytest.raises(InputError, match=f"^--warm-up {warm_up} leaves none of 6 steps quantized"):
        run.check()
    make_run(folder, {"warm_up": 5}, out=tmp_path / "out").check()
    make_run(folder, {"warm_up": None, "max_iter": 1}, out=tmp_path / "out").check()
    # The second engine rounds float weights itself.
    make_run(folder, {"warm_up": warm_up, "engine": "ckks"}, out=tmp_path / "out").check()


def test_an_infinite_gradient_costs_a_step_and_no_more(
    folder: Path, tmp_path: Path, few_pairs: None
) -> None:
    run = make_run(folder, {"max_iter": 2, "warm_up": 0}, out=tmp_path / "out")
    trainer = Trainer(run, Worker())
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    batch = make_loader(folder).batch("x", 1.0)
    broken = dataclasses.replace(batch, content_target=batch.content_target * float("nan"))
    trainer._train_on(broken, "seed")
    assert all(torch.equal(v, before[k]) for k, v in trainer.network.state_dict().items())
    trainer._train_on(batch, "seed")
    assert not torch.equal(trainer.network.head.weight, before["head.weight"])


def test_a_run_in_which_no_step_can_be_taken_ends(folder: Path, tmp_path: Path) -> None:
    run = make_run(folder, {"max_iter": 100, "warm_up": 0}, out=tmp_path / "out")
    trainer = Trainer(run, Worker())
    batch = make_loader(folder).batch("x", 1.0)
    broken = dataclasses.replace(batch, content_target=batch.content_target * float("nan"))
    for _ in range(MOST_LOST - 1):
        trainer._train_on(broken, "seed")
    trainer._train_on(batch, "seed")
    assert trainer.lost == 0
    trainer._log({})
    (start, line) = (json.loads(text, parse_constant=pytest.fail) for text in metrics_of(run))
    assert line["train"]["total"] is None
    assert (start["contents"], start["styles"]) == (15, 15)
    trainer.lost = MOST_LOST - 1
    with pytest.raises(InputError, match=rf"^the gradient of {MOST_LOST} steps in a row"):
        trainer._train_on(broken, "seed")


def metrics_of(run: Run) -> list[str]:
    return (run.out / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize("engine", TRAINABLE)
def test_the_losses_add_up_and_reach_every_parameter(engine: str, folder: Path) -> None:
    options = TrainOptions(engine=engine, consistency_weight=3.0, style_weight=0.5)
    network: Trainable = trained_like(VARIED)
    if engine == "ckks":
        torch.manual_seed(0)
        network = LeveledStyleTransfer(LEVELED)
    losses = Losses(network, VGG16(folder / "vgg.npz").requires_grad_(False), options, 0.19)
    batch = make_loader(folder).batch("x", 1.5)
    for quantized in (False, True):
        network.quantize(quantized)
        out = losses(batch)
        weighted = sum(
            getattr(options, f"{key}_weight", 1.0) * value
            for key, value in out.items()
            if key != "total"
        )
        torch.testing.assert_close(out["total"], weighted)
        # The second engine has no noise: two passes are one.
        assert (out["consistency"] > 0) == (quantized and engine == "concrete")
        out["total"].backward()
        assert all(p.grad is not None for p in losses.parameters() if p.requires_grad)
        losses.zero_grad()
    # Nothing but the network is trained, or sent to other workers.
    assert {id(p) for p in losses.parameters()} == {id(p) for p in network.parameters()}
    assert {id(b) for b in losses.buffers()} == {id(b) for b in network.buffers()}


def test_the_score_prefers_style_but_not_at_any_price() -> None:
    good = {"content": 0.6, "style": 0.5, "grain": 0.5}
    assert score(good) == 0.5
    assert score({**good, "style": 0.45}) < score(good)
    assert score({**good, "style": 0.45, "content": 0.8}) > score(good)
    assert score({**good, "style": 0.45, "grain": 1.2}) > score(good)


def test_held_out_pictures_that_cannot_be_used_are_passed_over(
    folder: Path, tmp_path: Path, few_pairs: None
) -> None:
    vgg = VGG16(folder / "vgg.npz")
    paths = list_pictures(make_pictures(tmp_path / "some", 1))
    held_out = validation.Validation(paths, paths, vgg, SIZE, CPU)
    assert len(held_out.content) == len(held_out.style) == 4
    assert isinstance(held_out.content[0], Crop)
    with pytest.raises(InputError, match="no held-out picture"):
        validation.Validation([tmp_path / "some" / "d-empty.jpg"], paths, vgg, SIZE, CPU)


@pytest.mark.parametrize(
    ("engine", "branch"), [("concrete", ("stages.style_",)), ("ckks", ("style_", "pool"))]
)
def test_the_style_branch_is_taught_before_the_first_step(
    engine: str, branch: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    def begin(steps: int, name: str) -> Trainer:
        options = {"engine": engine, "style_steps": steps, "max_iter": 1}
        return Trainer(make_run(folder, options, out=tmp_path / name), Worker())

    trainer = begin(4, "taught")
    first, *lines = lines_of(trainer.run)
    assert first["step"] == 0 and "style_told" in lines[-1]
    assert not trainer.network.quantized
    untaught, again = begin(0, "untaught").network, begin(4, "again").network
    for name, parameter in trainer.network.named_parameters():
        same = torch.equal(parameter, dict(untaught.named_parameters())[name])
        assert same != (name.startswith(branch) and parameter.requires_grad), name
        assert torch.equal(parameter, dict(again.named_parameters())[name]), name


def test_a_taught_code_tells_textures_apart(folder: Path, tmp_path: Path) -> None:
    stripes = tmp_path / "textures"
    stripes.mkdir()
    rng = np.random.default_rng(3)
    for i in range(24):
        across, period = i % 2, 3 + 3 * (i // 2 % 2)
        wave = 90 * np.sin(2 * np.pi * (np.arange(48) / period + rng.random()))
        grey = np.broadcast_to(wave if across else wave[:, None], (48, 48))
        noisy = 128 + grey[:, :, None] + rng.normal(0, 12, (48, 48, 3))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(stripes / f"{i:02d}.png")
    crops = Crops(list_pictures(stripes), SIZE, 0)
    vgg = VGG16(make_run(folder).vgg).eval()

    def told(steps: int) -> float:
        torch.manual_seed(1)
        return pretrain_style(StyleTransfer(TOY), crops, vgg, CPU, steps, 0.19, 1, lambda _: None)

    # Nothing is told by a code that is the same for all; less than nothing by a random one.
    assert told(2) < -1
    assert -0.2 < told(200) <= 1
