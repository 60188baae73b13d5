"""VGG files: all kinds are read, the same network gives the same features whichever holds it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nst.errors import InputError
from nst.training.vgg import (
    CHANNELS,
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    LAYERS_16,
    LAYERS_19,
    VGG16,
)
from tests.vggs import (
    NORMALISED,
    POSITIONS_16,
    POSITIONS_19,
    Arrays,
    normalised_state,
    random_arrays,
    torchvision_state,
    write_npz,
    write_state,
)

ARRAYS = {16: random_arrays(LAYERS_16), 19: random_arrays(LAYERS_19, 1)}


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(5))


def assert_same(features: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(features) == len(wanted) == 4
    for got, reference in zip(features, wanted, strict=True):
        scale = float(reference.abs().max())
        assert scale > 0
        torch.testing.assert_close(got, reference, rtol=0, atol=2e-5 * scale)


def sequential(positions: dict[tuple[int, int], int], first: nn.Module | None) -> nn.Sequential:
    """An encoder layer by layer, as the public definitions write it; reflection padding."""
    padded = {"padding": 1, "padding_mode": "reflect"} if first is None else {}
    layers: list[nn.Module] = [] if first is None else [first]
    before = CHANNELS[0]
    for block, index in positions:
        if index == 1 and block > 1:
            layers.append(nn.MaxPool2d(2))
        if first is not None:
            layers.append(nn.ReflectionPad2d(1))
        assert len(layers) == positions[block, index]
        layers += [nn.Conv2d(before, CHANNELS[block], 3, **padded), nn.ReLU()]
        before = CHANNELS[block]
    return nn.Sequential(*layers)


def outputs(
    encoder: nn.Sequential, positions: dict[tuple[int, int], int], x: Tensor
) -> list[Tensor]:
    """What follows the ReLU of the first convolution of each block."""
    wanted = {position + 1 for (_, index), position in positions.items() if index == 1}
    found = []
    for i, layer in enumerate(encoder):
        x = layer(x)
        if i in wanted:
            found.append(x)
    return found


@pytest.mark.parametrize("depth", [16, 19])
def test_torchvision_weights_compute_what_torchvision_computes(
    depth: int, pictures: Tensor, tmp_path: Path
) -> None:
    positions = {16: POSITIONS_16, 19: dict(sorted(POSITIONS_19.items()))}[depth]
    state = torchvision_state(ARRAYS[depth], prefix="")
    encoder = sequential(positions, None)
    encoder.load_state_dict(state)
    mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_DEVIATION)
    normalized = (pictures - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)
    with torch.no_grad():
        wanted = outputs(encoder, positions, normalized)
    vgg = VGG16(write_state(tmp_path / "vgg.pth", state))
    assert vgg.kind == f"torchvision VGG{depth}"
    assert_same(vgg(pictures), wanted)


def test_normalised_weights_compute_what_adain_computes(pictures: Tensor, tmp_path: Path) -> None:
    state = normalised_state(ARRAYS[19])
    encoder = sequential(NORMALISED, nn.Conv2d(3, 3, 1))
    encoder.load_state_dict(state)
    with torch.no_grad():
        wanted = outputs(encoder, NORMALISED, pictures)
    vgg = VGG16(write_state(tmp_path / "vgg_normalised.pth", state))
    assert vgg.kind == "normalised VGG19"
    assert_same(vgg(pictures), wanted)


@pytest.mark.parametrize("depth", [16, 19])
def test_every_file_of_one_network_gives_the_same_features(
    depth: int, pictures: Tensor, tmp_path: Path
) -> None:
    arrays = ARRAYS[depth]
    states = [torchvision_state(arrays), torchvision_state(arrays, prefix="")]
    # The whole network: what is not asked for may be there.
    states[0]["classifier.0.weight"] = torch.zeros(2, 2)
    if depth == 19:
        states.append(normalised_state(arrays))
    files = [write_npz(tmp_path / "vgg.npz", arrays)]
    files += [write_state(tmp_path / f"{i}.pth", state) for i, state in enumerate(states)]
    features = [VGG16(file)(pictures) for file in files]
    for first, second in pairwise(features):
        assert_same(second, first)
    assert [f.shape[1:] for f in features[0]] == [
        (64, 32, 24),
        (128, 16, 12),
        (256, 8, 6),
        (512, 4, 3),
    ]


def test_half_precision_files_are_read(pictures: Tensor, tmp_path: Path) -> None:
    state = {key: value.half() for key, value in torchvision_state(ARRAYS[16]).items()}
    features = VGG16(write_state(tmp_path / "half.pth", state))(pictures)
    whole = VGG16(write_state(tmp_path / "whole.pth", torchvision_state(ARRAYS[16])))(pictures)
    assert all(f.dtype == torch.float32 for f in features)
    assert float((features[-1] - whole[-1]).abs().max()) < 0.01 * float(whole[-1].abs().max())


def lacking(arrays: Arrays) -> dict[str, Tensor]:
    state = torchvision_state(arrays)
    del state["features.17.bias"]
    return state


def misshapen(arrays: Arrays) -> dict[str, Tensor]:
    state = torchvision_state(arrays)
    state["features.10.weight"] = state["features.10.weight"][:, :64]
    return state


def with_batch_norm(arrays: Arrays) -> dict[str, Tensor]:
    """As in `vgg16_bn`: every convolution is further down, a normalization follows it."""
    state = {}
    for position, (weight, bias) in zip(
        (0, 3, 7, 10, 14, 17, 20, 24), arrays.values(), strict=True
    ):
        state[f"features.{position}.weight"], state[f"features.{position}.bias"] = weight, bias
        state[f"features.{position + 1}.weight"] = torch.ones(len(bias))
        state[f"features.{position + 1}.bias"] = torch.zeros(len(bias))
    return state


def nothing(arrays: Arrays) -> dict[str, Tensor]:
    return {}


@pytest.mark.parametrize("change", [lacking, misshapen, with_batch_norm, nothing])
def test_other_networks_are_refused(
    change: Callable[[Arrays], dict[str, Tensor]], tmp_path: Path
) -> None:
    refused(write_state(tmp_path / "other.pth", change(ARRAYS[16])))


def refused(path: Path) -> None:
    with pytest.raises(InputError, match=r"torchvision VGG16 or VGG19.*normalised.*npz") as caught:
        VGG16(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing.pth")
    refused(tmp_path)
    for name in ("text.pth", "text.npz"):
        (tmp_path / name).write_text("no weights")
        refused(tmp_path / name)
    torch.save([1, 2, 3], tmp_path / "list.pth")
    refused(tmp_path / "list.pth")
    np.savez(tmp_path / "pictures.npz", b1c1w=np.zeros((64, 3, 3, 3)), x=np.zeros(3))
    refused(tmp_path / "pictures.npz")
    np.savez(tmp_path / "words.npz", w=np.array(["text"]))
    refused(tmp_path / "words.npz")
    whole = write_npz(tmp_path / "whole.npz", ARRAYS[16]).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.npz")
