"""Pictures from anywhere become squares of numbers, or one line that says why not."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin
from PIL.ExifTags import IFD, Base, Interop

from jobs.client.pictures import Box, Fit, Floats, cut_out, read_picture, write_png
from nst.errors import InputError
from nst.pictures.picture import to_array
from nst.pictures.profiles import adobe_rgb
from nst.pictures.reading import require_readable
from nst.pictures.size import Size
from nst.training.dataset import center_square

WHOLE = Box(0, 0, 8, 8)


def noise(width: int, height: int) -> Image.Image:
    """A random picture; smooth ones would hide a wrong place or orientation."""
    rng = np.random.default_rng(7)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(picture: Image.Image, path: Path, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def plain(picture: Image.Image) -> Floats:
    return to_array(picture.convert("RGB"))


def read(path: Path, side: int, fit: Fit = "crop") -> tuple[Floats, Box]:
    return read_picture(path, Size.square(side), fit)


def error_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path, 8)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(str(path)) in message
    return message


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


@pytest.mark.parametrize("shape", [(90, 60), (41, 80), (20, 20)])
def test_crop_is_what_the_network_was_trained_on(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = save(noise(*shape), tmp_path / "a.jpg")
    square, box = read(path, 32)
    assert square.dtype == np.float32 and square.shape == (3, 32, 32)
    np.testing.assert_array_equal(square, center_square(path, 32))
    assert box == Box(0, 0, 32, 32)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((40, 20), Box(0, 8, 32, 24)),
        ((20, 40), Box(8, 0, 24, 32)),
        ((5, 5), Box(0, 0, 32, 32)),
        ((1, 5000), Box(15, 0, 16, 32)),
        ((5000, 1), Box(0, 15, 32, 16)),
    ],
)
def test_letterbox_holds_the_whole_picture(
    tmp_path: Path, shape: tuple[int, int], box: Box
) -> None:
    picture = noise(*shape)
    square, found = read(save(picture, tmp_path / "a.png"), 32, "letterbox")
    assert found == box
    assert square.shape == (3, 32, 32)
    size = (box.right - box.left, box.bottom - box.top)
    inside = square[:, box.top : box.bottom, box.left : box.right]
    np.testing.assert_array_equal(inside, plain(picture.resize(size, Image.Resampling.BICUBIC)))


def test_letterbox_repeats_the_edges(tmp_path: Path) -> None:
    square, box = read(save(noise(40, 20), tmp_path / "a.png"), 32, "letterbox")
    for row in range(box.top):
        np.testing.assert_array_equal(square[:, row], square[:, box.top])
    for row in range(box.bottom, 32):
        np.testing.assert_array_equal(square[:, row], square[:, box.bottom - 1])


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1)])
def test_elongated_pictures_work(tmp_path: Path, shape: tuple[int, int], fit: Fit) -> None:
    square, _ = read(save(noise(*shape), tmp_path / "a.png"), 16, fit)
    assert square.shape == (3, 16, 16)
    assert square.min() >= 0 and square.max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int, suffix: str) -> None:
    picture = noise(8, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(picture, tmp_path / f"a.{suffix}", exif=exif, **options)
    upright = {
        1: picture,
        2: ImageOps.mirror(picture),
        3: picture.rotate(180),
        6: picture.rotate(270),
        8: picture.rotate(90),
    }[orientation]
    np.testing.assert_array_equal(read(path, 8)[0], plain(upright))


def test_exif_orientation_swaps_the_sides_of_a_photograph(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(noise(40, 20), tmp_path / "a.jpg", exif=exif)
    assert read(path, 32, "letterbox")[1] == Box(8, 0, 24, 32)


def transparent(mode: str) -> Image.Image:
    """Black; its left half is transparent, its right half opaque."""
    alpha = Image.new("L", (8, 8), 255)
    alpha.paste(0, (0, 0, 4, 8))
    picture = Image.new("RGBA", (8, 8), "black")
    picture.putalpha(alpha)
    return picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "name"), [("RGBA", "a.png"), ("LA", "a.png"), ("RGBA", "a.gif"), ("RGBA", "a.tif")]
)
def test_alpha_is_flattened_on_white(tmp_path: Path, mode: str, name: str) -> None:
    square, _ = read(save(transparent(mode), tmp_path / name), 8)
    assert (square[:, :, :4] == 1).all()
    assert (square[:, :, 4:] == 0).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_flattened_on_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("L", (8, 8), 0)
    picture.paste(100, (0, 0, 4, 8))
    key: int | tuple[int, int, int] = (100, 100, 100) if mode == "RGB" else 100
    if mode == "P":
        picture.putpalette([level for level in range(256) for _ in range(3)])
    else:
        picture = picture.convert(mode)
    path = save(picture, tmp_path / "a.png", transparency=key)
    square, _ = read(path, 8)
    assert (square[:, :, :4] == 1).all()
    assert (square[:, :, 4:] == 0).all()


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "a.png"),
        ("1", "a.png"),
        ("P", "a.png"),
        ("P", "a.gif"),
        ("CMYK", "a.tif"),
        ("RGB", "a.bmp"),
        ("RGB", "a.PNG"),
    ],
)
def test_modes_become_rgb(tmp_path: Path, mode: str, name: str) -> None:
    picture = noise(8, 8).convert(mode)
    square, _ = read(save(picture, tmp_path / name), 8)
    np.testing.assert_array_equal(square, plain(picture))


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), "red").convert("CMYK")
    square, _ = read(save(red, tmp_path / "a.jpg"), 8)
    np.testing.assert_allclose(square.mean((1, 2)), [1, 0, 0], atol=0.05)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    square, _ = read(save(Image.fromarray(ramp), tmp_path / name), 8)
    np.testing.assert_allclose(square[0], ramp / 65535, atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(square[0], square[2])


@pytest.mark.parametrize("white", [1, 255])
def test_floats_may_end_at_1_or_255(tmp_path: Path, white: int) -> None:
    ramp = np.linspace(0, white, 64, dtype=np.float32).reshape(8, 8)
    square, _ = read(save(Image.fromarray(ramp), tmp_path / "a.tif"), 8)
    np.testing.assert_allclose(square[1], ramp / white, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_of_an_animation_the_first_frame_counts(tmp_path: Path, name: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    path = save(first, tmp_path / name, save_all=True, append_images=[second])
    square, _ = read(path, 8)
    np.testing.assert_allclose(square.mean((1, 2)), [1, 0, 0], atol=0.02)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "gif"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = save(noise(64, 64), tmp_path / f"a.{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    error_of(path)


@pytest.mark.parametrize(
    ("side", "limit_of_pillow"),
    [
        (16_100, Image.MAX_IMAGE_PIXELS),  # Pillow would only warn
        (60_000, Image.MAX_IMAGE_PIXELS),
        (16_100, None),  # as libraries set it
    ],
)
def test_bombs_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, limit_of_pillow: int | None
) -> None:
    def decode(_: PngImagePlugin.PngImageFile) -> None:
        pytest.fail("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decode)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit_of_pillow)
    path = tmp_path / "a.png"
    path.write_bytes(png_header(side, side))
    assert "too many pixels to be opened safely, more than 256 million" in error_of(path)


def test_photographs_of_the_largest_cameras_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def stop(picture: Image.Image) -> None:
        sizes.append(picture.size)
        raise OSError("enough")

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", stop)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", stop)
    (tmp_path / "a.png").write_bytes(png_header(11_648, 8_736))
    # A header that claims 200 million pixels: they would take seconds to encode.
    jpeg = bytearray(save(noise(8, 8), tmp_path / "a.jpg").read_bytes())
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 12_240, 16_320)
    (tmp_path / "a.jpg").write_bytes(jpeg)
    assert "enough" in error_of(tmp_path / "a.png") and "enough" in error_of(tmp_path / "a.jpg")
    assert sizes == [(11_648, 8_736), (8_160, 6_120)]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_of_wide_spaces_are_brought_to_srgb(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGB", (8, 8), (200, 100, 50))
    picture = picture.quantize(2) if mode == "P" else picture.convert(mode)
    path = save(picture, tmp_path / "a.png", icc_profile=adobe_rgb())
    np.testing.assert_allclose(read(path, 8)[0][:, 0, 0] * 255, [227, 100, 42], atol=1.5)


def test_cameras_that_name_adobe_rgb_in_exif_only_are_believed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif)[Base.ColorSpace] = 0xFFFF
    exif.get_ifd(IFD.Exif)[IFD.Interop] = {Interop.InteropIndex: "R03"}
    path = save(Image.new("RGB", (8, 8), (200, 100, 50)), tmp_path / "a.jpg", exif=exif, quality=98)
    np.testing.assert_allclose(read(path, 8)[0][:, 0, 0] * 255, [227, 100, 42], atol=4)


@pytest.mark.parametrize(
    ("mode", "profile"),
    [("RGB", b"broken"), ("RGB", adobe_rgb()[:200]), ("CMYK", adobe_rgb()), ("L", adobe_rgb())],
)
def test_profiles_that_do_not_fit_are_passed_over(
    tmp_path: Path, mode: str, profile: bytes
) -> None:
    picture = noise(8, 8).convert(mode)
    path = save(picture, tmp_path / "a.tif", icc_profile=profile)
    np.testing.assert_array_equal(read(path, 8)[0], plain(picture))


def test_damaged_exif_data_do_not_refuse_a_picture(tmp_path: Path) -> None:
    path = save(noise(8, 8), tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\7" * 40)
    np.testing.assert_array_equal(read(path, 8)[0], plain(noise(8, 8)))


def tiff(path: Path, mode: tuple[int, int, int, int], data: bytes, planar: int = 1) -> Path:
    """A TIFF of 8 x 8 pixels, uncompressed, as Pillow does not write it.

    Args:
        path: Where to.
        mode: Channels, bits of each, PhotometricInterpretation, SampleFormat.
        data: All pixels.
        planar: 2 for one plane after the other.
    """
    channels, bits, photometric, samples = mode
    strips = channels if planar == 2 else 1
    shorts = struct.pack(f"<{2 * channels}H", *[bits] * channels, *[samples] * channels)
    begin = 8 + 2 + 12 * 11 + 4
    first, length = begin + len(shorts) + 8 * strips, len(data) // strips
    at = begin + len(shorts)
    longs = struct.pack(f"<{strips}I", *(first + length * i for i in range(strips)))
    longs += struct.pack(f"<{strips}I", *[length] * strips)
    one = channels == 1
    entries = [
        (256, 4, 1, 8),
        (257, 4, 1, 8),
        (258, 3, channels, bits if one else begin),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, strips, first if strips == 1 else at),
        (277, 3, 1, channels),
        (278, 4, 1, 8),
        (279, 4, strips, length if strips == 1 else at + 4 * strips),
        (284, 3, 1, planar),
        (339, 3, channels, samples if one else begin + 2 * channels),
    ]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    path.write_bytes(head + directory + bytes(4) + shorts + longs + data)
    return path


def test_white_as_zero_is_no_negative(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype("<u2").reshape(8, 8)
    path = tiff(tmp_path / "a.tif", (1, 16, 0, 1), (65535 - ramp).tobytes())
    np.testing.assert_allclose(read(path, 8)[0][0], ramp / 65535, atol=0.5 / 255 + 1e-6)


def test_twelve_bits_are_scaled(tmp_path: Path) -> None:
    pair = 0xFFF << 12 | 0x800
    path = tiff(tmp_path / "a.tif", (1, 12, 1, 1), pair.to_bytes(3, "big") * 32)
    np.testing.assert_allclose(read(path, 8)[0][0, 0, :2], [1, 0.5], atol=0.005)


@pytest.mark.parametrize(
    ("mode", "planar", "what"),
    [
        ((3, 16, 2, 1), 2, "16 bits in planes"),
        ((1, 16, 1, 2), 1, "signed"),
        ((1, 32, 1, 1), 1, "32-bit integers"),
        ((1, 32, 0, 3), 1, "zero is white"),
        ((3, 32, 2, 3), 1, "32-bit floats"),
        ((3, 32, 2, 1), 1, "32 bits per channel"),
    ],
)
def test_tiff_that_would_be_read_wrong_is_refused(
    tmp_path: Path, mode: tuple[int, int, int, int], planar: int, what: str
) -> None:
    path = tiff(tmp_path / "a.tif", mode, bytes(64 * mode[0] * mode[1] // 8), planar)
    assert what in error_of(path)


def test_planes_of_eight_bits_are_read(tmp_path: Path) -> None:
    pixels = np.asarray(noise(8, 8))
    path = tiff(tmp_path / "a.tif", (3, 8, 2, 1), pixels.transpose(2, 0, 1).tobytes(), planar=2)
    np.testing.assert_array_equal(read(path, 8)[0], plain(noise(8, 8)))


def test_lab_is_read(tmp_path: Path) -> None:
    white = Image.new("LAB", (8, 8), (255, 128, 128))
    np.testing.assert_allclose(read(save(white, tmp_path / "a.tif"), 8)[0], 1, atol=0.02)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypavif", "AVIF"),
        (b"\0\0\0\x18ftypqt  ", "a video"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"8BPS", "Photoshop"),
        (b"%PDF-1.7", "PDF"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_what_a_file_is_is_said(tmp_path: Path, head: bytes, what: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(head + bytes(200))
    assert what in error_of(path) and "damaged" not in error_of(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", png_header(0, 9)],
)
def test_what_is_not_a_picture_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert "not a picture" in error_of(path)


def test_a_header_tells_what_is_no_picture_and_not_where_one_ends(tmp_path: Path) -> None:
    path = save(noise(64, 64), tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:-200])
    require_readable(path)
    error_of(path)
    for name, data in (("text", b"text"), ("bomb", png_header(60_000, 60_000)), ("empty", b"")):
        bad = tmp_path / f"{name}.png"
        bad.write_bytes(data)
        with pytest.raises(InputError) as caught:
            require_readable(bad)
        assert str(caught.value) == error_of(bad)
    for missing in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(InputError, match=r"does not exist|not a file"):
            require_readable(missing)


def test_missing_files_folders_and_pipes_are_told_apart(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "does not exist" in error_of(tmp_path / "gone.png")
    assert "not a file" in error_of(tmp_path)
    assert "not a file" in error_of(tmp_path / "pipe.png")


def test_names_with_line_breaks_stay_on_one_line(tmp_path: Path) -> None:
    error_of(tmp_path / "two\nlines.png")


def test_closed_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = save(noise(8, 8), tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", refuse)
    assert "permissions" in error_of(path)


def test_the_box_gives_back_the_aspect_ratio(tmp_path: Path) -> None:
    picture = noise(32, 16)
    square, box = read(save(picture, tmp_path / "a.png"), 32, "letterbox")
    write_png(cut_out(square, box), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as written:
        assert written.mode == "RGB" and written.size == (32, 16)
        np.testing.assert_array_equal(plain(written), plain(picture))


def test_written_pixels_are_clipped_and_rounded(tmp_path: Path) -> None:
    levels = np.array([-3, 0.6 / 255, 1.4 / 255, 2], dtype=np.float32)
    picture = np.broadcast_to(levels, (3, 1, 4)).copy()
    write_png(cut_out(picture, Box(0, 0, 4, 1)), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as written:
        assert np.asarray(written)[0, :, 0].tolist() == [0, 1, 1, 255]


def test_nothing_is_replaced_without_force(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("precious")
    picture = plain(noise(8, 8))
    with pytest.raises(InputError, match=r"--force .* --out"):
        write_png(picture, path)
    assert path.read_text() == "precious"
    write_png(picture, path, force=True)
    np.testing.assert_array_equal(read(path, 8)[0], picture)
    assert list(tmp_path.iterdir()) == [path]


def test_results_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_png(plain(noise(8, 8)), tmp_path / "a.png")
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError, match=r"a\.png.*No space left"):
        write_png(plain(noise(8, 8)), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["gone", "file"])
def test_unusable_folders_are_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=rf"{folder}/a\.png.*--out"):
        write_png(plain(noise(8, 8)), tmp_path / folder / "a.png")
