"""VGG networks with random weights, written in every kind of file that is accepted.

All files made from the same `Arrays` hold the same network: they differ in what they call their
layers and in how they want their pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nst.training.vgg import (
    CAFFE_MEAN,
    CHANNELS,
    FEATURE_SCALE,
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    LAYERS_16,
    Layer,
)

Arrays = dict[Layer, tuple[Tensor, Tensor]]
"""Weight and bias of each layer as the Caffe network has them, but RGB."""

POSITIONS_16 = dict(zip(LAYERS_16, (0, 2, 5, 7, 10, 12, 14, 17), strict=True))
"""Of the convolutions in `torchvision.models.vgg16().features`."""
POSITIONS_19 = POSITIONS_16 | {(3, 4): 16, (4, 1): 19}
NORMALISED = {
    (1, 1): 2, (1, 2): 5, (2, 1): 9, (2, 2): 12,
    (3, 1): 16, (3, 2): 19, (3, 3): 22, (3, 4): 25, (4, 1): 29,
}  # fmt: skip
"""Of the convolutions in pytorch-AdaIN's encoder."""


def random_arrays(layers: tuple[Layer, ...], seed: int = 0) -> Arrays:
    """Weights that keep the scale of what passes through them."""
    rng = torch.Generator().manual_seed(seed)
    out: Arrays = {}
    before = CHANNELS[0]
    for block, index in layers:
        after = CHANNELS[block]
        weight = torch.randn(after, before, 3, 3, generator=rng) * (2 / (9 * before)) ** 0.5
        out[block, index] = weight, torch.randn(after, generator=rng) * 10
        before = after
    return out


def write_npz(path: Path, arrays: Arrays) -> Path:
    """The `.npz` of a Caffe network."""
    named = {}
    for (block, index), (weight, bias) in arrays.items():
        named[f"b{block}c{index}w"], named[f"b{block}c{index}b"] = weight.numpy(), bias.numpy()
    np.savez(path, **named)
    return path


def torchvision_state(arrays: Arrays, prefix: str = "features.") -> dict[str, Tensor]:
    """The same network on pixels normalized by ImageNet's mean and deviation."""
    positions = POSITIONS_19 if (3, 4) in arrays else POSITIONS_16
    state: dict[str, Tensor] = {}
    for layer, (weight, bias) in arrays.items():
        bias = bias / FEATURE_SCALE
        if layer == (1, 1):
            mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_DEVIATION)
            offset = (255 * mean - torch.tensor(CAFFE_MEAN)) / FEATURE_SCALE
            bias = bias + (weight * offset.view(1, 3, 1, 1)).sum((1, 2, 3))
            weight = weight * (255 * deviation / FEATURE_SCALE).view(1, 3, 1, 1)
        state[f"{prefix}{positions[layer]}.weight"] = weight
        state[f"{prefix}{positions[layer]}.bias"] = bias
    return state


def normalised_state(arrays: Arrays) -> dict[str, Tensor]:
    """The same network on BGR, with a first layer that makes it from RGB in [0, 1]."""
    to_bgr = torch.eye(3).flip(0)
    state = {
        "0.weight": (255 / FEATURE_SCALE * to_bgr).view(3, 3, 1, 1),
        "0.bias": -torch.tensor(CAFFE_MEAN).flip(0) / FEATURE_SCALE,
    }
    for layer, (weight, bias) in arrays.items():
        state[f"{NORMALISED[layer]}.weight"] = weight.flip(1) if layer == (1, 1) else weight
        state[f"{NORMALISED[layer]}.bias"] = bias / FEATURE_SCALE
    return state


def write_state(path: Path, state: dict[str, Tensor]) -> Path:
    """A state dict as `torch.save` writes it."""
    torch.save(state, path)
    return path
