"""The trained network and the integers read off it compute the same thing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from nst.errors import CircuitError
from nst.network.architecture import (
    CONTENT,
    CONV,
    OUTPUT,
    POOL,
    ROW_POOL,
    STYLE,
    STYLE_CODE,
    Architecture,
    Grid,
    Kind,
    Stage,
    rows_read,
)
from nst.network.levels import LEVELS
from nst.network.pixels import dither, quantize_pixels
from nst.network.weights import load_weights, save_weights
from nst.pictures.color import ColorStatistics, whiten
from nst.training.network import StyleTransfer, cells, pixel_levels
from nst.training.stage_layer import StageLayer
from nst.training.trainable import Conditions
from tests.toy import TOY, noise_pixels, toy_network, toy_weights

SIZE = 32
SMALL = dataclasses.replace(TOY, latent=6, body=2, up=2, style_deep=6, code=8)


def black() -> np.ndarray:
    return np.zeros((3, SIZE, SIZE), np.float32)


def white() -> np.ndarray:
    return np.ones((3, SIZE, SIZE), np.float32)


def checkerboard() -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.broadcast_to((y + x) % 2, (3, SIZE, SIZE)).astype(np.float32)


def noise() -> np.ndarray:
    return np.random.default_rng(3).random((3, SIZE, SIZE), dtype=np.float32)


def gradient() -> np.ndarray:
    ramp = np.linspace(0, 1, SIZE, dtype=np.float32)
    return np.stack(
        [np.tile(ramp, (SIZE, 1)), np.tile(ramp[:, None], SIZE), np.full((SIZE,) * 2, 0.4)]
    )


@pytest.mark.parametrize("name", LEVELS)
def test_a_level_trains_the_network_that_it_ships(name: str) -> None:
    level = LEVELS[name]
    assert Architecture(**level.sizes) == load_weights(level.weights).architecture


PICTURES = [black, white, checkerboard, noise, gradient]


def whitened(picture: np.ndarray) -> np.ndarray:
    """A picture `[3, S, S]` as the network gets it."""
    picture = picture.astype(np.float32)
    return whiten(picture, ColorStatistics.of(picture))


def make_network(seed: int = 0, quantized: bool = True) -> StyleTransfer:
    """A trainable network with biases, and a style that matters, as after some training."""
    torch.manual_seed(seed)
    network = StyleTransfer(SMALL)
    with torch.no_grad():
        for layer in network.stages.values():
            layer.bias.normal_(1.5 if layer.stage.kind == POOL else 0.3, 0.7)
            if layer.modulation is not None:
                layer.modulation.weight.normal_(0, 0.05)
        network.head.bias.normal_(0, 0.1)
        network.head.weight.normal_(0, 0.1)
    network.quantize(quantized)
    return network


def as_batch(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture)[None]


def joined(layer: StageLayer, levels: dict[str, Tensor]) -> Tensor:
    """The sources of a stage."""
    return torch.cat([levels[s] for s in layer.stage.sources], 1)


def levels_of(network: StyleTransfer, style: Tensor, content: Tensor) -> dict[str, Tensor]:
    """Outputs of every stage, by name, and the inputs."""
    off = Conditions()
    on = network.quantized
    levels = {
        STYLE: cells(pixel_levels(style, on)),
        CONTENT: cells(pixel_levels(content, on, torch.tensor(dither(*content.shape[-2:])))),
    }
    for name, layer in network.stages.items():
        code = levels[STYLE_CODE].flatten(1) if layer.stage.modulated else None
        levels[name] = layer(joined(layer, levels), code, off)
    return levels


@pytest.mark.parametrize("make", PICTURES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_numpy_forward_is_the_training_forward_bit_for_bit(
    make: Callable[[], np.ndarray], seed: int
) -> None:
    network = make_network(seed)
    integers = network.integers()
    picture, other = whitened(make()), whitened(noise()[:, ::-1])
    for content, style in ((picture, other), (other, picture)):
        with torch.no_grad():
            expected = levels_of(network, as_batch(style), as_batch(content))
            code = network.style_code(as_batch(style), Conditions())
            result = network(as_batch(content), code, Conditions())[0].numpy()
        ours = integers.style_code(quantize_pixels(style))
        np.testing.assert_array_equal(ours, code[0].numpy())
        features = integers.content_features(quantize_pixels(content, dithered=True), ours)
        np.testing.assert_array_equal(features, expected[OUTPUT][0].numpy())
        np.testing.assert_allclose(integers.finish(content, features), result, atol=2e-4)


@pytest.mark.parametrize(
    ("kind", "stride"),
    [(CONV, 1), (CONV, 2), (ROW_POOL, 1), (POOL, 1), (Kind(1), 2), (Kind(5), 1), (Kind(5), 2)],
)
def test_a_kind_of_stage_is_read_from_its_fields_everywhere(kind: Kind, stride: int) -> None:
    """Also kinds that no network has: in training, in integers, and row by row."""
    torch.manual_seed(1)
    layer = StageLayer(Stage("some", CONTENT, kind, ("a", "b"), (2, 3), 4, stride), code=1)
    layer.quantize(True)
    source = Grid(8, 12)
    x = torch.randint(-2, 3, (1, 5, source.rows, source.width)).float()
    with torch.no_grad():
        levels = layer(x, None, Conditions())[0].numpy()
    stage, whole, grid = layer.integers(), x[0].numpy().astype(np.int64), kind.grid(source, stride)
    acc = stage.accumulate(whole, None)
    assert acc.shape[1:] == (grid.rows, grid.width) and np.unique(acc).size > 2
    np.testing.assert_array_equal(stage.activate(acc), levels)
    for row in range(grid.rows):
        window = whole[:, rows_read(kind.reads, row, stride, source.rows)]
        alone = stage.accumulate(window, None, window=True)
        np.testing.assert_array_equal(alone, acc[:, row : row + 1])


def test_the_compared_network_is_not_trivially_zero() -> None:
    network = make_network()
    with torch.no_grad():
        levels = levels_of(network, as_batch(whitened(gradient())), as_batch(whitened(noise())))
    for name, values in levels.items():
        assert values.unique().numel() > 2, f"{name} is nearly constant: the comparison is blind"


def test_training_starts_without_quantization() -> None:
    style, content = as_batch(whitened(gradient())), as_batch(whitened(noise()))
    network = make_network(quantized=False)
    with torch.no_grad():
        levels = levels_of(network, style, content)
        for name, values in levels.items():
            assert not torch.equal(values, values.round()), f"{name} is quantized in the warm-up"
        # A change far below a quantization step changes every later value.
        network.stages["style_stem"].conv.weight.mul_(1 + 1e-4)
        moved = levels_of(network, style, content)
        for name in network.stages:
            assert not torch.equal(levels[name], moved[name])
    assert not network.quantized


def test_quantization_can_be_switched_on_and_off() -> None:
    style, content = as_batch(whitened(gradient())), as_batch(whitened(noise()))
    network = make_network(quantized=False)
    with torch.no_grad():
        before = levels_of(network, style, content)
        network.quantize(True)
        during = levels_of(network, style, content)
        network.quantize(False)
        after = levels_of(network, style, content)
    for name, layer in network.stages.items():
        values = during[name]
        assert torch.equal(values, values.round())
        assert values.min() >= layer.stage.output_min and values.max() <= layer.stage.output_max
        assert torch.equal(before[name], after[name])


def test_noise_moves_a_level_by_one_at_most() -> None:
    torch.manual_seed(0)
    network = make_network()
    changed = 0
    with torch.no_grad():
        levels = levels_of(network, as_batch(whitened(gradient())), as_batch(whitened(noise())))
        for name, layer in network.stages.items():
            code = levels[STYLE_CODE].flatten(1) if layer.stage.modulated else None
            noisy = layer(joined(layer, levels), code, Conditions(noise=0.1))
            difference = (noisy - levels[name]).abs()
            assert difference.max() <= 1, name
            assert difference.mean() < 0.3, name
            changed += int(difference.sum())
    assert changed > 0, "the noise does nothing"


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "quantized"])
def test_gradients_reach_every_parameter(quantized: bool) -> None:
    network = make_network(quantized=quantized)
    style, content = as_batch(whitened(gradient())), as_batch(whitened(noise()))
    target = torch.randn(1, 3, SIZE, SIZE)
    code = network.style_code(style, Conditions(noise=0.05))
    result = network(content, code, Conditions(noise=0.05))
    (result * target).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"no gradient reaches {name}"
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0, f"no gradient reaches {name}"


def test_overflow_is_penalized_and_only_overflow() -> None:
    network = make_network()
    style = as_batch(whitened(noise()))
    with torch.no_grad():
        for layer in network.stages.values():
            layer.conv.weight.mul_(0.05)
            layer.bias.zero_()
    conditions = Conditions()
    network(style, network.style_code(style, conditions), conditions)
    assert float(conditions.overflow) == 0

    layer = network.stages["stem"]
    with torch.no_grad():
        layer.conv.weight.fill_(7 / 64)
    conditions = Conditions()
    bright = torch.full_like(style, 3.0)
    network(bright, network.style_code(style, conditions), conditions)
    assert float(conditions.overflow) > 1
    conditions.overflow.backward()
    # Smaller weights overflow less.
    assert (layer.conv.weight.grad > 0).all()


def test_weights_survive_the_file(tmp_path: Path) -> None:
    network = make_network().integers()
    path = tmp_path / "low.safetensors"
    save_weights(network, path, {"steps": 12})
    loaded = load_weights(path)
    assert loaded.architecture == network.architecture
    assert list(loaded.stages) == list(network.stages)
    for name, stage in network.stages.items():
        again = loaded.stages[name]
        assert again.stage == stage.stage
        np.testing.assert_array_equal(again.weight, stage.weight)
        np.testing.assert_array_equal(again.bias, stage.bias)
        if stage.modulation is None:
            assert again.modulation is None
        else:
            np.testing.assert_array_equal(again.modulation, stage.modulation)
    style, content = noise_pixels(SIZE, 1), noise_pixels(SIZE, 2)
    code = loaded.style_code(style)
    features = loaded.content_features(content, code)
    np.testing.assert_array_equal(code, network.style_code(style))
    np.testing.assert_array_equal(features, network.content_features(content, code))
    picture = whitened(noise())
    np.testing.assert_array_equal(
        loaded.finish(picture, features), network.finish(picture, features)
    )


def test_the_card_carries_the_checksum_of_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "low.safetensors"
    save_weights(toy_network(), path, {"steps": 12})
    card = json.loads(path.with_suffix(".json").read_text())
    assert card == {"steps": 12, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    """Change the tensors and the metadata of a weights file, whose card would give it away."""
    path.with_suffix(".json").unlink()
    with safe_open(path, framework="np") as file:
        metadata = dict(file.metadata())
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(arrays, metadata)
    save_file(arrays, path, metadata)


def other_format(_: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["format"] = "99"


def no_format(_: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata.clear()


def unknown_size(_: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["architecture"] = json.dumps({**TOY.to_dict(), "heads": 8})


def broken_architecture(_: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["architecture"] = "{"


def wider(_: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["architecture"] = json.dumps({**TOY.to_dict(), "latent": 8})


def no_stage(arrays: dict[str, Any], _: dict[str, str]) -> None:
    del arrays["body1.weight"]


def no_modulation(arrays: dict[str, Any], _: dict[str, str]) -> None:
    del arrays["stem.modulation"]


def no_head(arrays: dict[str, Any], _: dict[str, str]) -> None:
    del arrays["head.bias"]


DAMAGE = [
    other_format,
    no_format,
    unknown_size,
    broken_architecture,
    wider,
    no_stage,
    no_modulation,
    no_head,
]


@pytest.mark.parametrize("change", DAMAGE, ids=lambda f: f.__name__)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Any], dict[str, str]], None], tmp_path: Path
) -> None:
    path = toy_weights(tmp_path / "low.safetensors")
    load_weights(path)
    rewrite(path, change)
    with pytest.raises(CircuitError, match=r"low\.safetensors") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(keep: int, tmp_path: Path) -> None:
    path = toy_weights(tmp_path / "low.safetensors")
    path.with_suffix(".json").unlink()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CircuitError, match=r"low\.safetensors"):
        load_weights(path)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CircuitError, match=r"none\.safetensors"):
        load_weights(tmp_path / "none.safetensors")
