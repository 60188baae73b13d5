"""The client's last touch: the contrast of a result's octaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nst.pictures.octaves import LEAST, MOST, Floats, match_octaves
from nst.training import finishing


def noise(size: int, period: int, strength: float, seed: int) -> Floats:
    """Blocks of `period` pixels of random values on a smooth slope."""
    rng = np.random.default_rng(seed)
    blocks = rng.normal(size=(3, size // period, size // period)) * strength
    slope = np.linspace(-1, 1, size)[None, None, :]
    return (blocks.repeat(period, 1).repeat(period, 2) + slope).astype(np.float32)


def standardized(picture: Floats) -> Floats:
    mean, deviation = picture.mean((1, 2), keepdims=True), picture.std((1, 2), keepdims=True)
    return np.asarray((picture - mean) / deviation, dtype=np.float32)


def finest(picture: Floats) -> float:
    """Standard deviation of differences of neighbouring pixels."""
    return float(np.diff(picture, axis=2).std())


def test_a_result_takes_the_contrast_of_its_styles_strokes() -> None:
    result, style = standardized(noise(64, 2, 0.2, 1)), standardized(noise(32, 2, 0.3, 2))
    matched = match_octaves(result, style, 1.0)
    assert finest(result) < 0.8 * finest(style)
    assert finest(matched) == pytest.approx(finest(style), rel=0.15)
    half = match_octaves(result, style, 0.5)
    assert finest(result) < finest(half) < finest(matched)


def test_it_stays_standardized_and_keeps_what_is_large() -> None:
    result, style = standardized(noise(64, 4, 0.3, 3)), standardized(noise(64, 2, 0.6, 4))
    matched = match_octaves(result, style, 1.0)
    np.testing.assert_allclose(matched.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(matched.std((1, 2)), 1, atol=1e-3)
    means = [p.reshape(3, 64, 2, 32).mean((1, 3)) for p in (result, matched)]
    assert np.corrcoef(means[0].ravel(), means[1].ravel())[0, 1] > 0.99


def test_noise_is_not_blown_up_beyond_bounds() -> None:
    smooth, rough = standardized(noise(64, 1, 0.01, 5)), standardized(noise(64, 1, 3, 6))
    # What little there is becomes at most twice as strong, and stands on the same slope.
    assert finest(match_octaves(smooth, rough, 1.0)) < 1.1 * MOST * finest(smooth)
    assert finest(match_octaves(rough, smooth, 1.0)) > LEAST * finest(rough)


def test_the_same_strokes_stay_and_small_pictures_are_possible() -> None:
    picture = standardized(noise(16, 2, 0.5, 7))
    np.testing.assert_allclose(match_octaves(picture, picture, 1.0), picture, atol=1e-5)
    np.testing.assert_allclose(
        match_octaves(picture, standardized(noise(16, 1, 1, 8)), 0.0), picture, atol=1e-5
    )


def test_training_shows_its_losses_what_the_client_will_show() -> None:
    results = [standardized(noise(64, 2, 0.2 * k, k)) for k in (1, 2)]
    styles = [standardized(noise(64, 4, 0.3 * k, 9 + k)) for k in (1, 2)]
    wanted = [match_octaves(r, s, 0.6) for r, s in zip(results, styles, strict=True)]
    pictures = torch.from_numpy(np.stack(results)).requires_grad_()
    matched = finishing.match_octaves(pictures, torch.from_numpy(np.stack(styles)), 0.6)
    np.testing.assert_allclose(matched.detach().numpy(), np.stack(wanted), atol=1e-4)
    matched.square().mean().backward()
    assert pictures.grad is not None and pictures.grad.isfinite().all()
