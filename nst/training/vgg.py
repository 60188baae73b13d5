"""VGG features up to relu4_1, the space in which content and style are compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nst.errors import InputError

Layer = tuple[int, int]
"""A convolution by (block, index within the block); a max-pool stands between blocks."""

LAYERS_16: tuple[Layer, ...] = (
    (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (4, 1),
)  # fmt: skip
LAYERS_19: tuple[Layer, ...] = (*LAYERS_16[:-1], (3, 4), LAYERS_16[-1])
CHANNELS = (3, 64, 128, 256, 512)
"""Channels of the picture and of each block."""
CAFFE_MEAN = (123.68, 116.779, 103.939)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
FEATURE_SCALE = 128.0
"""Caffe pixels reach 128 in magnitude; dividing by it only rescales the features."""
MIN_SIDE = 16
"""Smallest side of a picture in pixels: below it relu4_1 has nothing to reflect."""
ACCEPTED = (
    "a torchvision VGG16 or VGG19 state dict (.pth), the normalised VGG of AdaIN "
    "(vgg_normalised.pth), or an .npz with arrays b1c1w, b1c1b, ... b4c1b"
)


@dataclass(frozen=True)
class _Kind:
    """A kind of file: its layers and what it calls them."""

    name: str
    layers: tuple[Layer, ...]
    prefixes: dict[Layer, str]


class VGG16(nn.Module):
    """Frozen VGG16 or VGG19 (arXiv 1409.1556) returning relu1_1, relu2_1, relu3_1 and relu4_1.

    Padding is by reflection, as in AdaIN (arXiv 1703.06868, section 6), whichever file is read:
    zeros would make the picture's frame the strongest feature of a small picture.

    Attributes:
        kind: Which of the accepted files it was read from, in words.
    """

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        """Load weights.

        Args:
            path: A torchvision VGG16 or VGG19 state dict, with or without the prefix `features.`;
                the normalised VGG19 of AdaIN, whose first layer takes RGB to the Caffe network's
                input; or a `.npz` with arrays `b{block}c{conv}w` (OIHW, RGB order) and
                `b{block}c{conv}b` of the Caffe network, VGG19 if it has `b3c4w`.
            dtype: What to compute in; bfloat16 halves a training step on CPUs that have it.

        Raises:
            InputError: if there is no such file, or it is none of these.
        """
        super().__init__()
        kind, weights, biases = _load(path)
        self.kind, self.layers, self.dtype = kind.name, kind.layers, dtype
        for block, index in self.layers:
            self.register_buffer(f"w{block}{index}", weights[block, index].to(dtype))
            self.register_buffer(f"b{block}{index}", biases[block, index].to(dtype))

    def forward(self, picture: Tensor) -> list[Tensor]:
        """RGB pictures in [0, 1], `[N, 3, H, W]`, sides from 16, to the four feature maps."""
        mean = torch.tensor(CAFFE_MEAN, device=picture.device).view(1, 3, 1, 1)
        x = ((255 * picture - mean) / FEATURE_SCALE).to(self.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        features = []
        for block, index in self.layers:
            if index == 1 and block > 1:
                x = F.max_pool2d(x, 2)
            padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
            weight, bias = getattr(self, f"w{block}{index}"), getattr(self, f"b{block}{index}")
            x = F.relu(F.conv2d(padded, weight, bias))
            if index == 1:
                features.append(x.float())
        return features


def _positions(layers: tuple[Layer, ...], first: int, step: int) -> dict[Layer, str]:
    """Index of each convolution in an `nn.Sequential` with one pool between blocks."""
    out: dict[Layer, str] = {}
    position = first
    for block, index in layers:
        position += index == 1 and block > 1
        out[block, index] = str(position)
        position += step
    return out


TORCHVISION_16 = _Kind("torchvision VGG16", LAYERS_16, _positions(LAYERS_16, 0, 2))
TORCHVISION_19 = _Kind("torchvision VGG19", LAYERS_19, _positions(LAYERS_19, 0, 2))
NORMALISED_19 = _Kind("normalised VGG19", LAYERS_19, _positions(LAYERS_19, 2, 3))
"""`vgg_normalised.pth`: 0 is the colour layer, then (pad, convolution, ReLU) for each layer."""
CAFFE_19 = _Kind("VGG19 arrays", LAYERS_19, {(b, i): f"b{b}c{i}" for b, i in LAYERS_19})
CAFFE_16 = _Kind("VGG16 arrays", LAYERS_16, {(b, i): f"b{b}c{i}" for b, i in LAYERS_16})
KINDS = (TORCHVISION_16, TORCHVISION_19, NORMALISED_19, CAFFE_19, CAFFE_16)
"""In the order in which a file is tried: VGG19's arrays contain those that VGG16 has."""


def _load(path: Path) -> tuple[_Kind, dict[Layer, Tensor], dict[Layer, Tensor]]:
    """Kind, weights and biases, such that the network takes what `forward` feeds it."""
    arrays = _read(path)
    kind = next((k for k in KINDS if _fits(arrays, k)), None)
    if kind is None:
        raise InputError(f"{path} holds no VGG that this version knows: give {ACCEPTED}")
    weights = {layer: arrays[f"{name}.weight"] for layer, name in kind.prefixes.items()}
    biases = {layer: arrays[f"{name}.bias"] for layer, name in kind.prefixes.items()}
    if kind in (CAFFE_16, CAFFE_19):
        return kind, weights, {layer: bias / FEATURE_SCALE for layer, bias in biases.items()}
    if kind is NORMALISED_19:
        matrix, offset = arrays["0.weight"][:, :, 0, 0], arrays["0.bias"]
    else:
        deviation = torch.tensor(IMAGENET_DEVIATION)
        matrix, offset = torch.diag(1 / deviation), -torch.tensor(IMAGENET_MEAN) / deviation
    weights[1, 1], biases[1, 1] = _refer_to_caffe(weights[1, 1], biases[1, 1], matrix, offset)
    return kind, weights, biases


def _refer_to_caffe(
    weight: Tensor, bias: Tensor, matrix: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """Fold a file's own normalization into its first layer, so that all are fed the same pixels.

    Exact because padding is by reflection: the offset is also in the padded border.

    Args:
        weight: `[64, 3, 3, 3]`.
        bias: `[64]`.
        matrix: `[3, 3]`; the file's network takes `matrix @ rgb + offset`, RGB in [0, 1].
        offset: `[3]`.
    """
    on_rgb = torch.einsum("oihw,ij->ojhw", weight, matrix)
    mean = torch.tensor(CAFFE_MEAN) / 255
    bias = (
        bias + torch.einsum("oihw,i->o", weight, offset) + torch.einsum("oihw,i->o", on_rgb, mean)
    )
    return on_rgb * FEATURE_SCALE / 255, bias


def _read(path: Path) -> dict[str, Tensor]:
    """All arrays of a file as float32; those of an `.npz` are renamed `b1c1.weight`."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file: give {ACCEPTED}")
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                suffix = {"w": "weight", "b": "bias"}
                return {
                    f"{name[:-1]}.{suffix[name[-1]]}": torch.from_numpy(
                        arrays[name].astype(np.float32)
                    )
                    for name in arrays.files
                    if name[-1] in suffix
                }
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {
            key.removeprefix("features."): value.float()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
    except Exception as error:  # zip, pickle and both libraries raise nearly anything
        raise InputError(f"{path} cannot be read as weights: give {ACCEPTED}") from error


def _fits(arrays: dict[str, Tensor], kind: _Kind) -> bool:
    """Whether every layer of a kind is there, with its shape."""
    wanted: dict[str, tuple[int, ...]] = {}
    before = CHANNELS[0]
    for (block, _), name in kind.prefixes.items():
        wanted[f"{name}.weight"] = (CHANNELS[block], before, 3, 3)
        wanted[f"{name}.bias"] = (CHANNELS[block],)
        before = CHANNELS[block]
    if kind is NORMALISED_19:
        wanted |= {"0.weight": (3, 3, 1, 1), "0.bias": (3,)}
    return all(name in arrays and arrays[name].shape == shape for name, shape in wanted.items())
