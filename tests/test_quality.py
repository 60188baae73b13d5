"""Figures of pictures, and the simulated noise of the circuits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nst.engines.base import PreparedInput
from nst.engines.concrete.preparation import prepare_content, prepare_style
from nst.engines.concrete.simulation import rounding_noise, simulate
from nst.network.architecture import LEVEL
from nst.network.finishing import finish
from nst.network.integers import Floats, IntegerNetwork
from nst.network.levels import P_ERROR, noise_levels
from nst.pictures.picture import Picture
from nst.training.quality import Comparison, eight_bits, measure, psnr
from nst.training.vgg import LAYERS_16, VGG16
from tests.toy import TOY_P_ERROR, TOY_SIZE
from tests.vggs import random_arrays, write_npz


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


@pytest.fixture(scope="module")
def pair(network: IntegerNetwork) -> tuple[PreparedInput, PreparedInput, Floats]:
    """A content and a style as they are encrypted, and their preview."""
    content, style = Picture(smooth(1)), Picture(smooth(2))
    prepared_style = prepare_style(network, style)
    prepared = prepare_content(network, content, prepared_style)
    preview = finish(network, content, style, prepared.features)
    return prepared.input, prepared_style.input, preview


def test_simulation(
    network: IntegerNetwork, pair: tuple[PreparedInput, PreparedInput, Floats]
) -> None:
    content, style, preview = pair
    assert preview.shape == (3, TOY_SIZE, TOY_SIZE)
    # Without noise it is the preview, with it a picture close by, another one each time.
    np.testing.assert_array_equal(simulate(network, content, style, lambda a: a), preview)
    noise = rounding_noise(TOY_P_ERROR, np.random.default_rng(3))
    runs = [simulate(network, content, style, noise) for _ in range(2)]
    assert all(15 < psnr(run, preview) < 60 for run in runs)
    assert not np.array_equal(*runs)
    again = rounding_noise(TOY_P_ERROR, np.random.default_rng(3))
    np.testing.assert_array_equal(simulate(network, content, style, again), runs[0])


def test_more_noise_is_further_from_the_preview(
    network: IntegerNetwork, pair: tuple[PreparedInput, PreparedInput, Floats]
) -> None:
    content, style, preview = pair
    little, much = (
        psnr(
            simulate(network, content, style, rounding_noise(p, np.random.default_rng(3))), preview
        )
        for p in (0.002, 0.3)
    )
    assert much < little
