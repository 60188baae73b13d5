"""Figures of pictures, and the simulated noise of the circuits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from nst.engines.base import PreparedContent, PreparedStyle
from nst.engines.cache import ModelCache
from nst.engines.concrete.simulation import rounding_noise, simulate
from nst.model import Model
from nst.network.architecture import LEVEL
from nst.network.integers import IntegerNetwork
from nst.network.levels import P_ERROR, noise_levels
from nst.pictures.picture import Floats, Picture
from nst.training.quality import Comparison, eight_bits, measure, psnr
from nst.training.vgg import LAYERS_16, VGG16
from tests.toy import TOY_P_ERROR, TOY_SIZE, TOY_SQUARE, toy_level
from tests.vggs import random_arrays, write_npz

NO_CACHE = ModelCache(Path("nowhere"))
"""Previews need no published model."""


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> VGG16:
    path = tmp_path_factory.mktemp("vgg") / "vgg.npz"
    return VGG16(write_npz(path, random_arrays(LAYERS_16)))


def smooth(seed: int, height: int = 32, width: int = 32) -> Floats:
    """A picture of soft blotches in 8-bit levels, `[3, height, width]`."""
    blocks = np.random.default_rng(seed).random((3, height // 8, width // 8), dtype=np.float32)
    return eight_bits(blocks.repeat(8, 1).repeat(8, 2))


def test_the_same_picture_has_no_error(vgg: VGG16) -> None:
    content, style = smooth(1), smooth(2)
    ((own, other),) = measure(vgg, [Comparison(content, style, [content, style])])
    assert own.content == pytest.approx(0, abs=1e-9) and own.style > 0.01
    assert other.style == pytest.approx(0, abs=1e-9) and other.content > 0.01


def test_grain_is_relative_to_the_inputs(vgg: VGG16) -> None:
    content, style = smooth(1), smooth(2)
    noisy = np.clip(content + np.random.default_rng(0).normal(0, 0.2, content.shape), 0, 1)
    ((plain, grainy),) = measure(
        vgg, [Comparison(content, style, [content, noisy.astype(np.float32)])]
    )
    assert plain.grain <= 1 < grainy.grain


def test_figures_do_not_depend_on_what_else_is_measured(vgg: VGG16) -> None:
    shapes = [(32, 32), (16, 32)]
    comparisons = [
        Comparison(
            smooth(i, *shapes[i % 2]),
            smooth(100 + i),
            [smooth(200 + 10 * i + k, *shapes[i % 2]) for k in range(i % 3)],
        )
        for i in range(19)
    ]
    counts: list[int] = []
    together = measure(vgg, comparisons, counts.append)
    assert sum(counts) == len(comparisons)
    assert [len(figures) for figures in together] == [i % 3 for i in range(19)]
    for comparison, figures in zip(comparisons, together, strict=True):
        (alone,) = measure(vgg, [comparison])
        for a, b in zip(figures, alone, strict=True):
            assert a.content == pytest.approx(b.content, rel=1e-4)
            assert a.style == pytest.approx(b.style, rel=1e-4)
            assert a.grain == pytest.approx(b.grain, rel=1e-4)


def test_results_are_measured_as_a_file_keeps_them(vgg: VGG16) -> None:
    content, style, result = smooth(1), smooth(2), smooth(3)
    off = result + np.float32(0.4 / 255)
    beyond = np.where(result > 0.9, 2.0, result).astype(np.float32)
    clipped = np.where(result > 0.9, 1.0, result).astype(np.float32)
    ((a, b, c, d),) = measure(vgg, [Comparison(content, style, [result, off, beyond, clipped])])
    assert a == b and c == d and a != c


def test_psnr() -> None:
    picture = np.full((3, 4, 4), 0.2, np.float32)
    assert psnr(picture, picture) == math.inf
    assert psnr(picture + np.float32(0.2), picture) == pytest.approx(
        -20 * math.log10(0.2), abs=1e-3
    )
    # Less than half a step of 8 bits is no difference.
    assert psnr(picture + np.float32(0.4 / 255), picture) == math.inf


@pytest.mark.parametrize("p_error", [0.002, 0.02, 0.2])
def test_noise_exceeds_half_a_level_as_often_as_it_should(p_error: float) -> None:
    noisy = rounding_noise(p_error, np.random.default_rng(1))(np.zeros((1000, 20, 20), np.int64))
    share = float(np.mean(np.abs(noisy) > LEVEL / 2))
    assert share == pytest.approx(p_error, rel=0.1)
    assert float(np.std(noisy)) == pytest.approx(noise_levels(p_error) * LEVEL, rel=0.02)


def test_noise_at_the_level_of_the_circuits() -> None:
    assert noise_levels(P_ERROR) == pytest.approx(0.1941, abs=1e-4)


@dataclass(frozen=True)
class Pair:
    """A pair, prepared for the toy."""

    model: Model
    content: PreparedContent
    style: PreparedStyle

    def runs(self, seed: int, p_error: float) -> list[Floats]:
        """Two results with the noise of one generator."""
        model = Model(replace(self.model.level, p_error=p_error), self.model.network, NO_CACHE)
        rng = np.random.default_rng(seed)
        return [model.simulate(self.content, self.style, rng) for _ in range(2)]


@pytest.fixture
def pair(network: IntegerNetwork) -> Pair:
    model = Model(toy_level(), network, NO_CACHE, TOY_SQUARE)
    style = model.prepare_style(Picture(smooth(2)))
    return Pair(model, model.prepare_content(Picture(smooth(1)), style), style)


def test_simulation(pair: Pair) -> None:
    content, style = pair.content.input, pair.style.input
    preview = pair.model.finish(content.picture, style.picture, pair.content.features)
    assert preview.shape == (3, TOY_SIZE, TOY_SIZE)
    # Without noise it is the preview, with it a picture close by, another one each time.
    features = simulate(pair.model.network, content, style, lambda a: a)
    np.testing.assert_array_equal(features, pair.content.features)
    runs = pair.runs(3, TOY_P_ERROR)
    assert all(15 < psnr(run, preview) < 60 for run in runs)
    assert not np.array_equal(*runs)
    np.testing.assert_array_equal(pair.runs(3, TOY_P_ERROR), runs)


def test_more_noise_is_further_from_the_preview(pair: Pair) -> None:
    preview = pair.model.finish(
        pair.content.input.picture, pair.style.input.picture, pair.content.features
    )
    errors = [psnr(pair.runs(3, p_error)[0], preview) for p_error in (0.002, 0.3)]
    assert errors[1] < errors[0]
