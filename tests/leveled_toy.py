"""A tiny leveled network with random weights, and parameters of a ring that is quick."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nst.engines.base import Published
from nst.engines.ckks import CkksEngine
from nst.engines.ckks.network import LeveledArchitecture, LeveledNetwork
from nst.engines.ckks.parameters import Parameters
from nst.network.architecture import CELL_CHANNELS
from nst.network.levels import QualityLevel
from nst.pictures.picture import Picture
from nst.pictures.size import Size

TINY = LeveledArchitecture(channels=6, stages=2, up=1, style=(5,), code=4)
QUICK = Parameters(
    degree=8192,
    first_bits=29,
    level_bits=(33, 20, 24, 36, 36),
    special_bits=40,
    pixel_bits=21,
    value_bits=21,
    result_bits=21,
    style_pixel_bits=19,
    style_bits=18,
    code_bits=21,
)
"""218 bits, all that the ring bears."""
TOY_ENGINE = CkksEngine(QUICK)


def random_leveled(architecture: LeveledArchitecture = TINY, seed: int = 0) -> LeveledNetwork:
    """Random weights with which values stay about 1."""
    rng, a = np.random.default_rng(seed), architecture

    def weights(out: int, inside: int, *kernel: int) -> dict[str, np.ndarray]:
        fan_in = inside * int(np.prod(kernel))
        return {
            "weight": rng.normal(0, fan_in**-0.5, (out, inside, *kernel)),
            "bias": rng.normal(0, 0.2, out),
            "curvature": rng.uniform(0.08, 0.3, out) * rng.choice([-1, 1], out),
        }

    arrays = {}
    before = CELL_CHANNELS
    for index, out in enumerate(a.style):
        arrays |= {f"style{index}.{k}": v for k, v in weights(out, before, 3, 3).items()}
        before = out
    arrays |= {f"pool.{k}": v for k, v in weights(a.code, sum(a.style)).items()}
    for index, (inside, out) in enumerate(a.content()):
        arrays |= {f"content{index}.{k}": v for k, v in weights(out, inside, 3, 3).items()}
        arrays[f"content{index}.modulation"] = rng.normal(0, 0.5 * a.code**-0.5, (out, a.code))
    arrays["head.weight"] = rng.normal(0, 0.1, (12, a.up, 3, 3))
    arrays["head.bias"] = rng.normal(0, 0.1, 12)
    arrays["skip"] = 0.7 * np.eye(3)
    return LeveledNetwork.of(a, arrays, octaves=0.5)


def toy_picture(size: Size, seed: int = 0) -> Picture:
    """Blurred noise."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(3, size.height + 2, size.width + 2))
    soft = sum(
        drawn[:, y : y + size.height, x : x + size.width] for y in range(3) for x in range(3)
    )
    return Picture(np.clip(0.5 + 0.06 * np.asarray(soft), 0, 1).astype(np.float32))


def publish_leveled(
    network: LeveledNetwork, size: Size, side: int, folder: Path, engine: CkksEngine = TOY_ENGINE
) -> Published:
    """A published model in a new folder."""
    folder.mkdir(parents=True)
    level = QualityLevel("toy", side, Path("toy.safetensors"))
    return Published(folder, engine.publish(network, level, size, folder))


def decibels(expected: np.ndarray, received: np.ndarray) -> float:
    """Signal against error."""
    error = np.mean((np.asarray(received, float) - expected) ** 2)
    return float(10 * np.log10(np.var(expected) / error))
