"""Shows results side by side: one HTML file without external resources, and a contact sheet."""

from __future__ import annotations

import base64
import hashlib
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jobs.client.pictures import Floats, explaining, png_bytes, write_image, writing
from nst.pictures.picture import to_image
from nst.pictures.sheet import Shown, contact_sheet, fitted
from nst.pictures.size import Size

GALLERY, SHEET = "gallery.html", "contact-sheet.png"
TEMPLATES = Path(__file__).parent / "templates"

SMALL = 64
"""Up to this side a picture is enlarged with hard pixels: smoothed it would look out of focus."""
CELL = Size.square(192)
"""A picture's place on the contact sheet."""
COLUMNS = 3
"""Triples of content, style and result beside each other on the contact sheet."""
MOST_ON_SHEET = 150
"""Triples on the contact sheet: more make a picture that no program shows."""
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
        facts: What it took.
    """

    name: str
    status: Literal["succeeded", "failed", "waiting"]
    content: Floats | None
    style: Floats | None
    result: Floats | None
    note: str = ""
    facts: tuple[str, ...] = ()

    @staticmethod
    def skipped(name: str, reason: str) -> Entry:
        """A pair of which there is nothing to show."""
        return Entry(name, "failed", None, None, None, reason)

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


def write_gallery(entries: Iterable[Entry], summary: Summary, out: Path) -> Path:
    """Write a self-contained HTML file, and a contact sheet of the first entries beside it.

    Args:
        entries: Taken one after the other: all their pictures may not fit into memory.
        summary: What stands above them.
        out: Folder of both files; what is there is replaced.

    Returns:
        The HTML file.

    Raises:
        InputError: if a file cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style, script = ((TEMPLATES / f"gallery.{kind}").read_text() for kind in ("css", "js"))
    page, article = (environment.get_template(f"{n}.html.j2") for n in ("gallery", "pair"))
    counts, groups, path = Counter[str](), list[list[Shown]](), out / GALLERY
    # The page begins with counts that are known at its end. Until then, the file has no name: a
    # process that is killed leaves none.
    with explaining(path), tempfile.TemporaryFile(dir=out) as articles:
        for number, entry in enumerate(entries, 1):
            counts[entry.status] += 1
            tiles = [(role, _tile(picture)) for role, picture in entry.pictures()]
            articles.write(_encoded(article.render(number=number, entry=entry, tiles=tiles)))
            if number <= MOST_ON_SHEET:
                groups.append([_shown(p, entry.status) for _, p in entry.pictures()])
        place = secrets.token_hex(16)
        html = page.render(
            summary=summary,
            policy=_policy(style, script),
            style=style,
            script=script,
            counts=counts,
            articles=place,
        )
        head, _, foot = html.partition(place)
        articles.seek(0)
        with writing(path) as file:
            file.write(_encoded(head))
            shutil.copyfileobj(articles, file)
            file.write(_encoded(foot))
    write_image(contact_sheet(groups, CELL, COLUMNS), out / SHEET)
    return path


def _encoded(html: str) -> bytes:
    # File names that are not UTF-8 reach Python as surrogates, which cannot be encoded.
    return html.encode(errors="replace")


def _shown(picture: Floats | None, status: str) -> Shown:
    return VACANT[status] if picture is None else fitted(to_image(picture), CELL)


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
    uri = "data:image/png;base64," + base64.b64encode(png_bytes(to_image(picture))).decode()
    return _Tile(uri, width, height, max(height, width) <= SMALL)
