"""Archives of training data: small enough, in the same order, with the same pictures held out."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nst.errors import InputError
from nst.pictures.reading import read_rgb
from nst.training.dataset import list_pictures
from nst.training.packing import pack
from tests.user_pairs import picture


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for i in range(20):
        # In an order that neither numbers nor suffixes have.
        picture(tmp_path / "content" / f"{37 * i % 20}.{'png' if i % 2 else 'bmp'}", i, 300, 280)
        picture(tmp_path / "style" / "deep" / f"{i}.png", 100 + i, 120, 90)
    (tmp_path / "content" / "11.png").write_bytes(b"damaged")
    return tmp_path / "content", tmp_path / "style"


def test_pictures_keep_their_order(folders: tuple[Path, Path], tmp_path: Path) -> None:
    vgg = tmp_path / "vgg.npz"
    vgg.write_bytes(b"weights")
    assert pack(*folders, [vgg], tmp_path / "data.tar") == 256
    with tarfile.open(tmp_path / "data.tar") as archive:
        archive.extractall(tmp_path / "there", filter="data")
    assert (tmp_path / "there" / "vgg.npz").read_bytes() == b"weights"
    for folder in folders:
        before, after = list_pictures(folder), list_pictures(tmp_path / "there" / folder.name)
        # So that the same ones are held out.
        for own, packed in zip(before, after, strict=True):
            if own == folders[0] / "11.png":
                assert packed.read_bytes() == b""
                continue
            with Image.open(packed) as small:
                assert min(small.size) == min(256, *read_rgb(own).size)
                colours = np.asarray(read_rgb(own).resize(small.size), np.int16)
                assert np.abs(colours - np.asarray(small, np.int16)).mean() < 12


def test_they_are_reduced_until_they_fit(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "data.tar"
    pack(*folders, [], out)
    most = out.stat().st_size - 1
    assert pack(*folders, [], out, most) < 256 and out.stat().st_size <= most
    with pytest.raises(InputError, match="do not fit"):
        pack(*folders, [], out, 1000)
