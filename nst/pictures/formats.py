"""What a picture file is: the formats that are read, and names for those that are not."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, TiffImagePlugin

from nst.errors import InputError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
    *(".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
)
"""Suffixes of the files that are taken for pictures, whatever their case."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""The decoders in use, whatever the suffix says; others would only widen the attack surface."""

_OTHER_SUFFIXES = (
    ".heic .heif .hif .avif .jxl .jp2 .j2k .jpx .jxr .mpo .apng .svg .psd .psb .xcf .tga .exr .hdr "
    ".dng .cr2 .cr3 .crw .nef .nrw .arw .raf .orf .rw2 .pef .srw .3fr .iiq .x3f"
)
"""Suffixes of pictures that are not read."""
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    b"crx ": "a raw photograph",
}
"""Pictures in the container of MP4, by what follows `ftyp`."""
_NOT_READ = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"II\xbc\x01": "JPEG XR",
    b"8BPS": "a Photoshop file",
    b"gimp xcf": "a GIMP file",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"FUJIFILM": "a raw photograph",
    b"IIU\0": "a raw photograph",
    b"IIRO": "a raw photograph",
    b"%PDF": "PDF",
}
_NO_PICTURES = {
    b"<svg": "is SVG, not a picture of pixels: export it as PNG",
    b"<!doctype html": "is a web page, not a picture: download the picture again",
    b"<html": "is a web page, not a picture: download the picture again",
    b"version https://git-lfs": "is a pointer, not a picture: get the file with git lfs pull",
}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_READ = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", *_TIFF)

_BITS, _PHOTOMETRIC, _PLANAR, _SAMPLES = 258, 262, 284, 339
"""Tags of TIFF; of `_SAMPLES` 1 is unsigned, 2 signed, 3 floats."""
_DEPTH = "save it with 8 or 16 bits per channel"


def why_not_read(path: Path) -> str:
    """What a file is that no decoder takes, with the remedy; empty if it cannot be told."""
    head = _head(path)
    for magic, reason in _NO_PICTURES.items():
        if head.lower().startswith(magic):
            return reason
    name = _brand(head) or next((n for magic, n in _NOT_READ.items() if head.startswith(magic)), "")
    if name:
        return _export(name)
    return _why_not_tiff(path) if head.startswith(_TIFF) else ""


def why_left_out(path: Path) -> str:
    """Why a picture with none of `SUFFIXES` is not taken, with the remedy; empty if it is none."""
    head, suffix = _head(path), path.suffix.lower()
    known = suffix in _OTHER_SUFFIXES.split()
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    # Raw photographs begin like TIFF.
    if (webp or head.startswith(_READ)) and not (known and head.startswith(_TIFF)):
        return f"is a picture without its suffix: give it one of {', '.join(SUFFIXES)}"
    brand = _brand(head)
    if brand in ("HEIC", "AVIF"):
        return _export(brand)
    return _export(suffix[1:].upper()) if known else ""


def _export(kind: str) -> str:
    return f"is {kind}, which is not read: export it as JPEG or PNG"


def white_of(picture: Image.Image) -> tuple[int, bool]:
    """Of a TIFF that is opened and not loaded: the largest value, and whether zero is white.

    Of other pictures 65535 and false.

    Raises:
        InputError: for one that Pillow would decode wrongly, and without an error.
    """
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return 65535, False
    bits, inverted = _bits(picture.tag_v2), picture.tag_v2.get(_PHOTOMETRIC) == 0
    if bits > 8 and picture.tag_v2.get(_PLANAR) == 2:
        raise InputError(f"is TIFF of {bits} bits in planes: save it interleaved, or with 8 bits")
    if picture.mode == "I":  # signed, or wider than what it is taken for
        raise InputError(f"is TIFF with signed or 32-bit integers: {_DEPTH}, unsigned")
    if picture.mode == "F" and inverted:
        raise InputError(f"is TIFF with floats where zero is white: {_DEPTH}")
    # With up to 8 bits, Pillow inverts by itself.
    return 2**bits - 1, inverted and bits > 8


def _bits(tags: TiffImagePlugin.ImageFileDirectory_v2) -> int:
    bits = tags.get(_BITS, 1)
    return int(max(bits)) if isinstance(bits, tuple) else int(bits)


def _why_not_tiff(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(
                head + (file.read(8) if 43 in head[2:4] else b"")
            )
            file.seek(tags.next)
            tags.load(file)
        bits, samples = _bits(tags), tags.get(_SAMPLES, 1)
    except Exception:  # a damaged one raises nearly anything
        return ""
    floats = 3 in (samples if isinstance(samples, tuple) else (samples,))
    kind = f"{bits}-bit floats" if floats else f"{bits} bits per channel in an unusual layout"
    return f"is TIFF with {kind}, which is not read: {_DEPTH}"


def _brand(head: bytes) -> str:
    return _BRANDS.get(head[8:12], "a video") if head[4:8] == b"ftyp" else ""


def _head(path: Path) -> bytes:
    """The first bytes of a file; none if it cannot be read, or is no file."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(32)
    except OSError:
        return b""
