"""VGG16 features up to relu4_1, the space in which content and style are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS: tuple[tuple[int, int], ...] = (
    (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (4, 1),
)  # fmt: skip
"""Convolutions by (block, index within the block); a max-pool stands between blocks."""
TORCHVISION = {
    (1, 1): 0, (1, 2): 2, (2, 1): 5, (2, 2): 7, (3, 1): 10, (3, 2): 12, (3, 3): 14, (4, 1): 17,
}  # fmt: skip
"""Index of each convolution in torchvision's `vgg16().features`."""
CAFFE_MEAN = (123.68, 116.779, 103.939)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
FEATURE_SCALE = 128.0
"""Caffe pixels reach 128 in magnitude; dividing by it only rescales the features."""


class VGG16(nn.Module):
    """Frozen VGG16 (arXiv 1409.1556) returning relu1_1, relu2_1, relu3_1 and relu4_1."""

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        """Load weights.

        Args:
            path: A torchvision VGG16 state dict (`.pth`), or a `.npz` with arrays
                `b{block}c{conv}w` (OIHW, RGB order) and `b{block}c{conv}b` of the Caffe network.
            dtype: What to compute in; bfloat16 halves a training step on CPUs that have it.

        Raises:
            FileNotFoundError: if there is no such file.
            KeyError: if an array is missing.
        """
        super().__init__()
        weights, biases = _read(path)
        for layer in LAYERS:
            block, index = layer
            self.register_buffer(f"w{block}{index}", weights[layer].to(dtype))
            self.register_buffer(f"b{block}{index}", biases[layer].to(dtype))
        self.dtype = dtype

    def forward(self, picture: Tensor) -> list[Tensor]:
        """RGB pictures in [0, 1], `[N, 3, H, W]`, to the four feature maps."""
        mean = torch.tensor(CAFFE_MEAN, device=picture.device).view(1, 3, 1, 1)
        x = ((255 * picture - mean) / FEATURE_SCALE).to(self.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        features = []
        for block, index in LAYERS:
            if index == 1 and block > 1:
                x = F.max_pool2d(x, 2)
            padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
            weight, bias = getattr(self, f"w{block}{index}"), getattr(self, f"b{block}{index}")
            x = F.relu(F.conv2d(padded, weight, bias))
            if index == 1:
                features.append(x.float())
        return features


def _read(path: Path) -> tuple[dict[tuple[int, int], Tensor], dict[tuple[int, int], Tensor]]:
    weights, biases = {}, {}
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            for block, index in LAYERS:
                name = f"b{block}c{index}"
                weights[block, index] = torch.from_numpy(arrays[f"{name}w"].astype(np.float32))
                biases[block, index] = torch.from_numpy(
                    arrays[f"{name}b"].astype(np.float32) / FEATURE_SCALE
                )
        return weights, biases
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = {key.removeprefix("features."): value.float() for key, value in state.items()}
    for layer, position in TORCHVISION.items():
        weights[layer] = state[f"{position}.weight"]
        biases[layer] = state[f"{position}.bias"]
    # torchvision's network expects (x - mean) / deviation; fold that into its first layer, so
    # that both files are fed the same pixels.
    deviation = torch.tensor(IMAGENET_DEVIATION).view(1, 3, 1, 1)
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    first = weights[1, 1] / deviation
    offset = torch.tensor(CAFFE_MEAN).view(1, 3, 1, 1) / 255 - mean
    biases[1, 1] = biases[1, 1] + (first * offset).sum((1, 2, 3))
    weights[1, 1] = first * FEATURE_SCALE / 255
    return weights, biases
