"""Shows results side by side: one HTML file without external resources, or one PNG."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from jobs.client.pictures import Floats, encode_png, write_file
from nst.stylize import to_image

TEMPLATES = Path(__file__).parent / "templates"

SMALL = 64
"""Up to this side a picture is enlarged with hard pixels: smoothed it would look out of focus."""
CELL = 192
"""Side of a picture's place on the contact sheet."""
COLUMNS = 3
"""Triples of content, style and result beside each other on the contact sheet."""
GAP = 8
"""Between the pictures of a triple; triples stand three times as far apart."""
BACKGROUND = (24, 24, 27)
VACANT = {"succeeded": (39, 39, 42), "waiting": (39, 39, 42), "failed": (76, 29, 29)}
"""Colour of the place of a picture that is not there, by the entry's status."""


@dataclass(frozen=True)
class Entry:
    """One pair with what there is of it; pictures are `[3, H, W]` in [0, 1].

    Attributes:
        name: Any text: it is shown as it is, whatever it holds.
        status: What the gallery can be filtered by.
        content: None if it could not be read; likewise the style.
        result: None if there is none, or not yet.
        note: The reason of a failure, or what the pair waits for.
        facts: What it took: time, PBS.
    """

    name: str
    status: Literal["succeeded", "failed", "waiting"]
    content: Floats | None
    style: Floats | None
    result: Floats | None
    note: str = ""
    facts: tuple[str, ...] = ()

    def pictures(self) -> list[tuple[str, Floats | None]]:
        """Roles and pictures in the order in which they are shown."""
        return [("content", self.content), ("style", self.style), ("result", self.result)]


@dataclass(frozen=True)
class Summary:
    """What stands above the pairs: a title, and facts with their labels."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Tile:
    uri: str
    width: int
    height: int
    is_small: bool


def write_gallery(entries: list[Entry], summary: Summary, path: Path) -> None:
    """Writes one self-contained HTML file; raises InputError if it cannot be written."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((TEMPLATES / f"gallery.{kind}").read_text() for kind in ("css", "js"))
    html = environment.get_template("gallery.html.j2").render(
        summary=summary,
        policy=_policy(style, script),
        style=style,
        script=script,
        counts=Counter(entry.status for entry in entries),
        rows=[
            (entry, [(role, _tile(picture)) for role, picture in entry.pictures()])
            for entry in entries
        ],
    )
    # File names that are not UTF-8 reach Python as surrogates, which cannot be encoded.
    write_file(html.encode(errors="replace"), path)


def write_contact_sheet(entries: list[Entry], path: Path) -> None:
    """Writes a PNG with a few triples in each row; raises InputError if it cannot be written."""
    columns = max(1, min(COLUMNS, len(entries)))
    rows = -(-len(entries) // columns)
    step_x, step_y = 3 * CELL + 5 * GAP, CELL + 3 * GAP
    sheet = Image.new("RGB", (columns * step_x + 3 * GAP, rows * step_y + 3 * GAP), BACKGROUND)
    for index, entry in enumerate(entries):
        top = 3 * GAP + index // columns * step_y
        for place, (_, picture) in enumerate(entry.pictures()):
            left = 3 * GAP + index % columns * step_x + place * (CELL + GAP)
            if picture is None:
                box = (left, top, left + CELL, top + CELL)
                sheet.paste(VACANT[entry.status], box)
            else:
                image = _fit_cell(picture)
                corner = (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2)
                sheet.paste(image, corner)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_file(buffer.getvalue(), path)


def _policy(style: str, script: str) -> str:
    """Nothing is fetched from anywhere, and no other script runs, wherever it came from."""
    sources = {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": _digest(style),
        "script-src": _digest(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{what} {source}" for what, source in sources.items())


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _tile(picture: Floats | None) -> _Tile | None:
    if picture is None:
        return None
    _, height, width = picture.shape
    uri = "data:image/png;base64," + base64.b64encode(encode_png(picture)).decode()
    return _Tile(uri, width, height, max(height, width) <= SMALL)


def _fit_cell(picture: Floats) -> Image.Image:
    """Enlarged a whole number of times with hard pixels, or reduced, to fit a cell."""
    image = to_image(picture)
    longest = max(image.size)
    if longest > CELL:
        image.thumbnail((CELL, CELL), Image.Resampling.BICUBIC)
        return image
    factor = CELL // longest
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)
