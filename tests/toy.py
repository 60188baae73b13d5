"""A tiny network with random weights, for tests that need real circuits but no trained picture.

Its sizes are the smallest at which every kind of stage occurs (a stage with two sources, a strided
one, both pools); its weights are drawn so that circuits can be built from them and ordinary
pictures stay well within the accumulators.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nst.architecture import LEVEL, PIXEL_MAX, PIXEL_MIN, WEIGHT_MAX, Architecture, Stage
from nst.color import PIXEL_STEPS
from nst.integer import IntegerNetwork, IntegerStage, Ints
from nst.server import Evaluator
from nst.weights import save_weights

TOY_SIZE = 32
TOY = Architecture(latent=4, body=1, up=1, style_stem=4, style_body=8, style_rows=8, code=6)
"""1,190 PBS a pair at 32 px: a quarter of a minute."""


def random_stage(stage: Stage, code: int, rng: np.random.Generator) -> IntegerStage:
    """Integer weights with which ordinary inputs give accumulators of a few levels."""
    kernel = 3 if stage.kind == "conv" else 1
    # Inputs of a stem are pixels, of the others small levels.
    few = stage.out_channels <= 8
    typical = PIXEL_STEPS if stage.name.endswith("stem") else 1.2 if few else 2.0
    fan_in = stage.in_channels * kernel * kernel
    # A pool's inputs are sums over many positions.
    spread = 1.4 * LEVEL / (typical * fan_in**0.5) if stage.kind == "conv" else 40 / fan_in

    def whole(*shape: int, spread: float) -> Ints:
        drawn = np.rint(rng.normal(0, spread, shape))
        return np.clip(drawn, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int64)

    # So that few channels carry enough: most of them are not zero.
    lift = {"style_stem": 0, "style_rows": 0, "style_code": 2 * LEVEL}.get(stage.name, LEVEL * few)
    return IntegerStage(
        stage,
        whole(stage.out_channels, stage.in_channels, kernel, kernel, spread=spread),
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
    height = len(sources[0])
    count = 1 if stage.kind == "pool" else height // stage.stride
    out = []
    for y in range(count) if only is None else only:
        if stage.kind == "conv":
            center = y * stage.stride
            # The border row stands in for its missing neighbour.
            wanted = [max(center - 1, 0), center, min(center + 1, height - 1)]
        else:
            wanted = list(range(height)) if stage.kind == "pool" else [y]
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
