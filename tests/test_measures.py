"""Blockiness and spread on pictures whose answer is known; halves of strong styles."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from jobs.client.held_out import refuse_trained, spread_pairs, strong_pairs
from nst.errors import InputError
from nst.training.blockiness import blockiness
from nst.training.dataset import list_half, split
from nst.training.halves import half_of
from nst.training.quality import eight_bits
from nst.training.spread import spread, texture
from nst.training.vgg import LAYERS_16, VGG16
from tests.user_pairs import picture
from tests.vggs import random_arrays, write_npz

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def photograph(seed: int, side: int = 64) -> Floats:
    """Amplitudes that fall as 1/frequency, as those of photographs do; `[3, side, side]`."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1
    noise = np.fft.fft2(rng.normal(size=(side, side))) / frequency
    noise[0, 0] = 0
    grey = np.real(np.fft.ifft2(noise))
    return eight_bits(np.tile(0.5 + 0.15 * grey / grey.std(), (3, 1, 1)).astype(np.float32))


def cells(seed: int, side: int, period: int) -> Floats:
    """One random grey per cell: nothing repeats, and every border is an edge."""
    small = np.random.default_rng(seed).normal(0, 0.15, (side // period, side // period))
    return np.asarray(small.repeat(period, 0).repeat(period, 1), dtype=np.float32)


@pytest.mark.parametrize("side", [32, 64, 192])
def test_photographs_have_no_blockiness(side: int) -> None:
    found = [blockiness(photograph(seed, side)) for seed in range(8)]
    assert 0.9 < np.median(found) < 1.25 and max(found) < 1.6


@pytest.mark.parametrize("period", [4, 8])
@pytest.mark.parametrize("side", [64, 192])
def test_a_lattice_is_found_at_every_phase(side: int, period: int) -> None:
    for phase, seed in product((0, np.pi / 4, np.pi / 2), range(3)):
        wave = 0.06 * np.cos(2 * np.pi * np.arange(side) / period + phase)
        lattice = (wave[:, None] + wave[None]).astype(np.float32)
        assert blockiness(photograph(seed, side) + lattice) > 2


def test_borders_of_cells_are_found_whatever_is_in_the_cells() -> None:
    for seed in range(4):
        assert blockiness(photograph(seed, 128) + cells(seed, 128, 4)) > 3
        assert blockiness(photograph(seed, 128) + cells(seed, 128, 8)) > 1.8
        # Cells of another size are none of the network's.
        assert blockiness(photograph(seed, 126) + cells(seed, 126, 3)) < 1.3


def test_a_flat_picture_and_a_tiny_one_say_nothing() -> None:
    assert blockiness(np.full((3, 64, 64), 0.3, np.float32)) == pytest.approx(1)
    assert blockiness(photograph(1, 16)) == 1
    wide = np.concatenate([photograph(1), photograph(2)], axis=2)
    assert blockiness(wide) == pytest.approx(blockiness(wide.transpose(0, 2, 1)))


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> VGG16:
    path = tmp_path_factory.mktemp("vgg") / "vgg.npz"
    return VGG16(write_npz(path, random_arrays(LAYERS_16)))


def test_spread(vgg: VGG16) -> None:
    rng = np.random.default_rng(3)
    # From soft to hard textures.
    styles = [
        eight_bits(0.5 + 0.1 * rng.normal(size=(3, 32 // n, 32 // n)).astype(np.float32))
        .repeat(n, 1)
        .repeat(n, 2)
        for n in (1, 2, 4, 8)
    ]
    content = photograph(1, 32)
    of_styles = texture(vgg, styles)

    def measured(results: list[Floats]) -> float:
        return spread(texture(vgg, results), of_styles)

    assert measured([content] * 4) == pytest.approx(0, abs=1e-5)
    assert measured(styles) == pytest.approx(1)
    some = measured([0.7 * content + 0.3 * style for style in styles])
    more = measured([0.3 * content + 0.7 * style for style in styles])
    assert 0.02 < some < more < 1


def test_colours_and_contrast_are_no_texture(vgg: VGG16) -> None:
    content = photograph(1, 32)
    brighter = [gain * content + 0.1 for gain in (0.4, 0.6, 0.8)]
    styles = [photograph(seed, 32) for seed in (2, 3, 4)]
    assert spread(texture(vgg, brighter), texture(vgg, styles)) == pytest.approx(0, abs=1e-3)


def test_halves() -> None:
    names = [Path(folder, f"{i}.jpg") for folder in ("a", "b") for i in range(200)]
    halves = [half_of(name) for name in names]
    assert 70 < halves[:200].count("choosing") < 130
    # A style stays where it is, wherever the folder goes.
    assert halves[:200] == halves[200:]


def test_strong_pairs(tmp_path: Path) -> None:
    contents, strong = tmp_path / "contents", tmp_path / "strong"
    for i in range(50):
        picture(contents / f"c{i:02}.png", i)
    for i in range(9):
        picture(strong / f"s{i}.png", i)
    deciding, choosing = list_half(strong, "deciding"), list_half(strong, "choosing")
    assert len(deciding) + len(choosing) == 9 and not set(deciding) & set(choosing)
    held_out = set(split(sorted(contents.iterdir()))[1])
    pairs = strong_pairs(contents, strong, "deciding", 10)
    assert pairs == strong_pairs(contents, strong, "deciding", 10)
    assert {p.content for p in pairs} <= held_out and len({p.name for p in pairs}) == 10
    times = [[p.style for p in pairs].count(style) for style in deciding]
    assert sum(times) == 10 and max(times) - min(times) <= 1
    grid = spread_pairs(contents, strong, "choosing")
    first, last = grid[: len(choosing)], grid[len(choosing) :]
    assert [p.style for p in first] == [p.style for p in last] == choosing
    assert len({p.content for p in grid}) == 2 and {p.content for p in grid} <= held_out


def test_strong_styles_are_not_trained_on(tmp_path: Path) -> None:
    inside = tmp_path / "style" / "strong"
    inside.mkdir(parents=True)
    (tmp_path / "linked").symlink_to(inside)
    refuse_trained(tmp_path / "other", tmp_path / "style")
    for folder in (inside, tmp_path / "linked"):
        with pytest.raises(InputError, match="trained on"):
            refuse_trained(folder, tmp_path / "style")
    for i in (1, 3):
        picture(tmp_path / "few" / f"{i}.png", i)
    missing = {"choosing", "deciding"} - {half_of(Path(f"{i}.png")) for i in (1, 3)}
    assert missing, "names that fall into one half"
    with pytest.raises(InputError, match="has no style of the"):
        list_half(tmp_path / "few", missing.pop())
