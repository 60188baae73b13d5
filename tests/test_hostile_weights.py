"""Weights from others are data: whatever a file holds, none of it runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nst.errors import InputError
from nst.training.checkpoint import Checkpoint, initial_network
from nst.training.state_dict import read_state_dict
from nst.training.vgg import VGG16

STATE = OrderedDict(
    {
        "a": torch.arange(24.0).reshape(2, 3, 4),
        "b": torch.arange(12).reshape(3, 4).T,
        "c": torch.arange(10, dtype=torch.float16)[3:5],
        "scalar": torch.tensor(7.0, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
    }
)


@pytest.fixture(autouse=True)
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch does not see these files."""
    for name in ("load", "jit.load"):
        monkeypatch.setattr(f"torch.{name}", lambda *_, **__: pytest.fail("PyTorch loads a file"))


class Malicious:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.mknod, (str(self.made),)  # type: ignore[return-value]


def script(path: Path) -> None:
    """TorchScript: a program."""
    torch.jit.script(nn.Linear(1, 1)).save(str(path))


def pickled(path: Path) -> None:
    """A pickle and nothing around it."""
    path.write_bytes(pickle.dumps(Malicious(path.parent / "made")))


def zipped(path: Path) -> None:
    """The same in target of a state dict."""
    torch.save({"a": Malicious(path.parent / "made")}, path)


def legacy(path: Path) -> None:
    """As PyTorch before 1.6 wrote it."""
    torch.save(Malicious(path.parent / "made"), path, _use_new_zipfile_serialization=False)


def with_a_number(path: Path) -> None:
    """Not only tensors."""
    torch.save({"a": torch.zeros(1), "epoch": 3}, path)


def with_a_global(path: Path) -> None:
    """A function of PyTorch's, never called."""
    torch.save({"a": torch.zeros(1), "b": torch.hub.load}, path)


def too_short(path: Path) -> None:
    """A view of more numbers than are there."""
    whole = io.BytesIO()
    torch.save({"a": torch.zeros(4)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            blob = source.read(name)
            target.writestr(name, blob.replace(b"K\x04\x85", b"K\x7f\x85"))


FILES = [script, pickled, zipped, legacy, with_a_number, with_a_global, too_short]


@pytest.mark.parametrize("make", FILES)
def test_what_is_more_than_tensors_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    make(path)
    with pytest.raises(ValueError):
        read_state_dict(path)
    for read in (VGG16, Checkpoint.read, lambda p: initial_network(p, {}, 32)):
        with pytest.raises(InputError, match=r"weights\.pth") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("new", [True, False])
def test_tensors_are_read_as_they_were_written(new: bool, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    found = read_state_dict(tmp_path / "a.pth")
    assert list(found) == list(STATE)
    for name, tensor in STATE.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())
        assert found[name].dtype == tensor.numpy().dtype


def test_state_dicts_of_modules_are_read(tmp_path: Path) -> None:
    """They carry attributes beside their tensors."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.save(module.state_dict(), tmp_path / "a.pth")
    assert set(read_state_dict(tmp_path / "a.pth")) == set(module.state_dict())


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.125, betas=(0.5, 0.25))
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    whole = Checkpoint(
        module.state_dict(), optimizer.state_dict(), 3, 1.5, {"lr": 0.1, "warm_up": None},
        {"latent": 8}, {"grain": 0.5},
    )  # fmt: skip
    whole.write(tmp_path / "a.ckpt")
    read = Checkpoint.read(tmp_path / "a.ckpt")
    plain = ("step", "seconds", "options", "architecture", "validation")
    assert all(getattr(read, name) == getattr(whole, name) for name in plain)
    again = torch.optim.Adam(module.parameters())
    again.load_state_dict(read.optimizer)
    assert again.param_groups[0]["lr"] == 0.125
    assert tuple(again.param_groups[0]["betas"]) == (0.5, 0.25)
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            assert isinstance(value, Tensor)
            torch.testing.assert_close(again.state_dict()["state"][index][name], value)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(read.network[name], value)
