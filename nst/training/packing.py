"""Packs pictures and VGG weights of a training into one small archive, for a machine with a GPU.

`make pack-data` runs it, `make train-gpu` unpacks the archive there. Pictures keep their order, and
with it which ones are held out, and lose their names.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from pathlib import Path

from PIL import Image

from nst.errors import InputError
from nst.pictures.reading import read_rgb
from nst.training.dataset import list_pictures

MOST_BYTES = 64_000_000
"""Of an archive. What is left of it is for the checkpoints that come back, which are far smaller.
"""
SIDES = (256, 224, 192, 160, 128)
"""Short sides in pixels that are tried, largest first."""
JPEG_QUALITY = 80


def pack(contents: Path, styles: Path, files: list[Path], out: Path, most: int = MOST_BYTES) -> int:
    """Write a tar archive with `content/`, `style/` and single files.

    Args:
        contents: Folder of photographs, at any depth.
        styles: Folder of paintings, likewise.
        files: VGG weights, and weights to start from; they stand beside the folders.
        out: The archive; replaced if it exists.
        most: Bytes that it may have.

    Returns:
        The short side of its pictures in pixels: the largest of `SIDES` that fits.

    Raises:
        InputError: if there are no pictures, or they do not fit at any size.
    """
    folders = {"content": list_pictures(contents), "style": list_pictures(styles)}
    for side in SIDES:
        packed = _packed(folders, files, side, most)
        if packed is not None:
            out.write_bytes(packed)
            return side
    raise InputError(
        f"the pictures of {contents} and {styles} do not fit into {most:,} bytes: give fewer"
    )


def _packed(
    folders: dict[str, list[Path]], files: list[Path], side: int, most: int
) -> bytes | None:
    """The archive's bytes, or None as soon as they are too many."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in files:
            archive.add(path, path.name)
        for name, paths in folders.items():
            for index, path in enumerate(paths):
                _add(archive, f"{name}/{index:06d}.jpg", _reduced(path, side))
                if stream.tell() > most:
                    return None
    data = stream.getvalue()
    return data if len(data) <= most else None


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _reduced(path: Path, side: int) -> bytes:
    """A JPEG file of the picture, its short side reduced to this if it is longer.

    Of a file that cannot be read nothing: training passes over it, and the others stay where
    they are in the order.
    """
    try:
        rgb = read_rgb(path, side)
    except InputError:
        return b""
    scale = side / min(rgb.size)
    if scale < 1:
        size = (round(scale * rgb.width), round(scale * rgb.height))
        rgb = rgb.resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    rgb.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def main() -> None:
    """Pack what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--content-dir", type=Path, required=True)
    parser.add_argument("--style-dir", type=Path, required=True)
    parser.add_argument("--vgg", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="weights or a checkpoint to start from")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    files = [path for path in (given.vgg, given.init) if path is not None]
    try:
        side = pack(given.content_dir, given.style_dir, files, given.out)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"{given.out}: {given.out.stat().st_size:,} bytes, pictures of {side} pixels")


if __name__ == "__main__":
    main()
