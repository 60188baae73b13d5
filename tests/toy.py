"""A tiny network with random weights, for tests that need real circuits but no trained picture.

Its sizes are the smallest at which every kind of stage occurs (stages with several sources, strided
ones, both pools, a pool of a single row); its weights are drawn so that circuits can be built from
them and ordinary pictures stay well within the accumulators.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from nst.ciphertext import Envelope
from nst.engines import get_engine
from nst.engines.base import Cipher, Evaluator, PreparedInput, Published, Role
from nst.engines.cache import ModelCache
from nst.folders import HOME_VARIABLE
from nst.network import levels
from nst.network.architecture import (
    CONTENT,
    LEVEL,
    PIXEL_MAX,
    PIXEL_MIN,
    STYLE,
    STYLE_CODE,
    WEIGHT_MAX,
    Architecture,
    Grid,
    Stage,
    rows_read,
)
from nst.network.integers import IntegerNetwork, IntegerStage, Ints
from nst.network.levels import QualityLevel
from nst.network.pixels import PIXEL_STEPS
from nst.network.weights import save_weights
from nst.pictures.picture import Picture
from nst.pictures.size import Size

ENGINE = get_engine("concrete")
TOY_SIZE = 32
"""Pixels per side."""
TOY_SQUARE = Size.square(TOY_SIZE)
TOY = Architecture(
    latent=4, body=1, up=1, style_stem=4, style_body=8, style_deep=0, style_rows=8, code=16
)
"""1,216 PBS per pair at 32 px: a quarter of a minute."""
TOY_P_ERROR = 0.002
"""The toy was never trained to bear the noise that trained networks do."""


def random_stage(stage: Stage, code: int, rng: np.random.Generator) -> IntegerStage:
    """Integer weights with which ordinary inputs give accumulators of a few levels."""
    kernel = stage.kind.kernel
    few = stage.out_channels <= 8

    def whole(*shape: int, spread: float) -> Ints:
        drawn = np.rint(rng.normal(0, spread, shape))
        return np.clip(drawn, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int64)

    def weights(source: str, channels: int) -> Ints:
        fan_in = channels * kernel * kernel * len(stage.sources)
        typical = PIXEL_STEPS if source in (CONTENT, STYLE) else 1.2 if few else 2.0
        # A pool's inputs are sums over many positions, unless they are a vector already.
        summed = stage.kind.summed and stage.name != STYLE_CODE
        spread = 40 / fan_in if summed else 1.4 * LEVEL / (typical * fan_in**0.5)
        return whole(stage.out_channels, channels, kernel, kernel, spread=spread)

    parts = [weights(*each) for each in zip(stage.sources, stage.source_channels, strict=True)]
    # So that few channels carry enough: most of them are not zero.
    lifts = {"style_stem": 0, "style_rows": 0, "style_mix1": 2 * LEVEL, STYLE_CODE: 2 * LEVEL}
    lift = lifts.get(stage.name, LEVEL * few)
    return IntegerStage(
        stage,
        np.concatenate(parts, axis=1),
        rng.integers(-LEVEL // 2, LEVEL // 2, stage.out_channels) + lift,
        whole(stage.out_channels, code, spread=24 / code**0.5) if stage.modulated else None,
    )


def random_network(architecture: Architecture, seed: int = 0) -> IntegerNetwork:
    """A network of any sizes with random weights."""
    rng = np.random.default_rng(seed)
    return IntegerNetwork(
        architecture,
        {s.name: random_stage(s, architecture.code, rng) for s in architecture.stages()},
        head_weight=rng.normal(0, 0.1, (12, architecture.up, 3, 3)).astype(np.float32),
        head_bias=rng.normal(0, 0.1, 12).astype(np.float32),
        skip=0.7 * np.eye(3, dtype=np.float32),
    )


def toy_network(seed: int = 0) -> IntegerNetwork:
    """The toy network; another seed gives other weights."""
    return random_network(TOY, seed)


def toy_weights(path: Path, seed: int = 0) -> Path:
    """The toy network as `path`, a safetensors file, with its card beside it."""
    save_weights(toy_network(seed), path, {"trained": "no: random weights"})
    return path


def toy_level(weights: Path = Path("toy.safetensors"), side: int = TOY_SIZE) -> QualityLevel:
    """The toy as a quality level, with weights of `toy_weights`."""
    return QualityLevel("toy", side, weights, TOY_P_ERROR)


def offer_toy(patch: pytest.MonkeyPatch, weights: Path, home: Path) -> None:
    """Make weights of the toy a quality level, `toy`, and a folder the data directory."""
    patch.setitem(levels.LEVELS, "toy", toy_level(weights))
    patch.setenv(HOME_VARIABLE, str(home))


def publish_toy(models: ModelCache, network: IntegerNetwork, side: int = TOY_SIZE) -> Published:
    """Circuits of a network for squares with sides of so many pixels, with the toy's error rate."""
    return models.publish(ENGINE, network, toy_level(side=side), Size.square(side))


def load_evaluator(published: Published, evaluation_keys: bytes) -> Evaluator:
    """What a server does with a published model and evaluation keys."""
    return ENGINE.load(published.plan, published.server_bundle.read_bytes(), evaluation_keys)


def noise_input(role: Role, seed: int = 0, size: Size = TOY_SQUARE) -> PreparedInput:
    """A picture of noise, ready to be encrypted."""
    drawn = np.random.default_rng(seed).normal(0.5, 0.15, (3, size.height, size.width))
    return PreparedInput(Picture(np.clip(drawn, 0, 1).astype(np.float32)), role)


def encrypt(cipher: Cipher, prepared: PreparedInput) -> Envelope:
    """One picture under a key set."""
    (envelope,) = cipher.encrypt_all([[prepared]])
    return envelope


def noise_pixels(size: int, seed: int = 0) -> Ints:
    """Quantized pixels `[3, size, size]` spread like a whitened picture's."""
    drawn = np.random.default_rng(seed).normal(0, PIXEL_STEPS, (3, size, size))
    return np.clip(np.rint(drawn), PIXEL_MIN, PIXEL_MAX).astype(np.int64)


def run_stage(
    evaluator: Evaluator,
    stage: Stage,
    sources: Sequence[Sequence[bytes]],
    code: bytes | None = None,
    only: Sequence[int] | None = None,
) -> list[bytes]:
    """Evaluate a stage on encrypted rows.

    Args:
        evaluator: Circuits and keys.
        stage: What to evaluate.
        sources: Rows of each of the stage's sources, top to bottom.
        code: The encrypted style code, for a modulated stage.
        only: Rows of the result to compute; all if None.
    """
    kind, height = stage.kind, len(sources[0])
    count = kind.grid(Grid(height, stage.stride), stage.stride).rows
    out = []
    for y in range(count) if only is None else only:
        wanted = rows_read(kind.reads, y, stage.stride, height)
        arguments = [rows[i] for rows in sources for i in wanted]
        out.append(evaluator.run(stage.name, arguments if code is None else [*arguments, code]))
    return out


def assert_close_levels(encrypted: Ints, clear: Ints) -> None:
    """Levels agree but for the circuits' rounding: one level at most, and not often.

    5 to 15 % of the values are one level off; four more are granted to small samples.
    """
    assert encrypted.shape == clear.shape
    difference = np.abs(encrypted - clear)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 0.25 * difference.size + 4 * (difference.size < 100)
