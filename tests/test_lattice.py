"""What repeats from cell to cell is taken out of a result, and little else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nst.pictures.lattice import PERIOD, without_lattice

Floats = NDArray[np.float32]


def standardized(picture: Floats) -> Floats:
    mean, deviation = picture.mean((1, 2), keepdims=True), picture.std((1, 2), keepdims=True)
    return np.asarray((picture - mean) / deviation, dtype=np.float32)


def strokes(height: int, width: int, seed: int) -> Floats:
    """A slope and noise, no two cells of which are alike."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(-2, 2, width, dtype=np.float32)[None, None]
    return standardized(rng.normal(size=(3, height, width)).astype(np.float32) + slope)


def tiles(height: int, width: int, seed: int) -> Floats:
    """The same random cell everywhere."""
    cell = np.random.default_rng(seed).normal(size=(3, PERIOD, PERIOD)).astype(np.float32)
    return np.tile(cell, (1, height // PERIOD, width // PERIOD))


def likeness(one: Floats, other: Floats) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_a_lattice_is_taken_out_and_the_strokes_stay() -> None:
    clean, lattice = strokes(64, 96, 1), tiles(64, 96, 2)
    seen = standardized(clean + lattice)
    assert likeness(seen, lattice) > 0.6
    result = without_lattice(seen, 1.0)
    assert abs(likeness(result, lattice)) < 0.1
    assert likeness(result, clean) > 0.97
    half = likeness(without_lattice(seen, 0.5), lattice)
    assert likeness(result, lattice) + 0.1 < half < likeness(seen, lattice) - 0.1


def test_what_does_not_repeat_is_hardly_changed() -> None:
    clean = strokes(64, 64, 3)
    assert likeness(without_lattice(clean, 1.0), clean) > 0.97


def test_results_are_standardized_whatever_they_are() -> None:
    for picture in (strokes(16, 24, 4), tiles(32, 32, 5), np.zeros((3, 16, 16), np.float32)):
        result = without_lattice(picture, 1.0)
        np.testing.assert_allclose(result.mean((1, 2)), 0, atol=1e-4)
        assert np.isfinite(result).all() and (result.std((1, 2)) < 1.01).all()
