"""Shows results side by side: HTML files without external resources, and a contact sheet.

One file holds as many pairs as a browser opens at once; more have more pages.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, BinaryIO, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jobs.client.pictures import (
    PROGRAM,
    Floats,
    explaining,
    is_own,
    png_bytes,
    write_marked,
    writing,
)
from nst.pictures.picture import to_image
from nst.pictures.sheet import Shown, contact_sheet, fitted
from nst.pictures.size import Size
from nst.plain import MOST_LINE, plain

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
PAGE_PAIRS, PAGE_BYTES = 500, 32 << 20
"""On a page of the gallery, at most: browsers take long for more."""
CHUNK = 1 << 20
VACANT = {"succeeded": (39, 39, 42), "waiting": (39, 39, 42), "failed": (76, 29, 29)}
"""Colour of the place of a picture that is not there, by the entry's status."""


@dataclass(frozen=True)
class Entry:
    """One pair with what there is of it; pictures are `[3, H, W]` in [0, 1].

    Attributes:
        name: Any text: what could steer or hide in it is not shown.
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


@dataclass
class _Page:
    """A page of the gallery.

    Attributes:
        number: From 1.
        first: Number of its first pair, from 1.
        counts: Its pairs by status.
        size: Bytes of them.
    """

    number: int
    first: int
    counts: Counter[str] = field(default_factory=Counter)
    size: int = 0

    @property
    def name(self) -> str:
        """Of its file."""
        return GALLERY if self.number == 1 else f"{Path(GALLERY).stem}-{self.number}.html"

    @property
    def last(self) -> int:
        """Number of its last pair."""
        return self.first + self.counts.total() - 1

    def has_room(self, size: int) -> bool:
        """Whether another pair of so many bytes fits; one does on any page."""
        count = self.counts.total()
        return not count or (count < PAGE_PAIRS and self.size + size <= PAGE_BYTES)


def further_pages(out: Path) -> Iterator[tuple[int, Path]]:
    """The files of a folder that are called as pages after the first, with their numbers."""
    for path in sorted(out.glob(f"{Path(GALLERY).stem}-*.html")):
        if found := re.fullmatch(r"[^-]+-([1-9]\d*)", path.stem):
            yield int(found[1]), path


def write_gallery(entries: Iterable[Entry], summary: Summary, out: Path) -> Path:
    """Write self-contained HTML files, and a contact sheet of the first entries beside them.

    Args:
        entries: Taken one after the other: all their pictures may not fit into memory.
        summary: What stands above them.
        out: Folder of the files; what is there is replaced, and pages of an earlier gallery go.

    Returns:
        The HTML file, of several the first.

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
    groups, path, names = list[list[Shown]](), out / GALLERY, set[str]()
    pages = [_Page(1, 1)]
    # A page begins with counts that are known at its end. Until then, the file has no name: a
    # process that is killed leaves none.
    with explaining(path), tempfile.TemporaryFile(dir=out) as articles:
        for number, entry in enumerate(entries, 1):
            names.add(entry.name)
            tiles = [(role, _tile(picture)) for role, picture in entry.pictures()]
            said = replace(entry, name=plain(entry.name), note=plain(entry.note, MOST_LINE))
            html = _encoded(article.render(number=number, entry=said, tiles=tiles))
            if not pages[-1].has_room(len(html)):
                pages.append(_Page(len(pages) + 1, number))
            pages[-1].counts[entry.status] += 1
            pages[-1].size += articles.write(html)
            if number <= MOST_ON_SHEET:
                groups.append([_shown(p, entry.status) for _, p in entry.pictures()])
        facts = [(label, plain(value)) for label, value in summary.facts]
        total = pages[-1].last
        if total > MOST_ON_SHEET:
            facts.append(("contact sheet", f"the first {MOST_ON_SHEET} of {total:,} pairs"))
        place = secrets.token_hex(16)
        articles.seek(0)
        for each in pages:
            text = page.render(
                program=PROGRAM,
                summary=replace(summary, facts=tuple(facts)),
                policy=_policy(style, script),
                style=style,
                script=script,
                page=each,
                pages=pages,
                articles=place,
            )
            head, _, foot = text.partition(place)
            with writing(out / each.name) as file:
                file.write(_encoded(head))
                _copy(articles, file, each.size)
                file.write(_encoded(foot))
        for number, left in further_pages(out):
            if number > len(pages) and is_own(left):
                left.unlink()
    write_marked(contact_sheet(groups, CELL, COLUMNS), out / sheet_name(names))
    return path


def _copy(source: IO[bytes], target: BinaryIO, size: int) -> None:
    """So many bytes from where a file stands."""
    while size:
        size -= target.write(source.read(min(size, CHUNK)))


def sheet_name(names: Iterable[str]) -> str:
    """The contact sheet's file beside results of these names: it gives way to them."""
    taken = {f"{name}.png".casefold() for name in names}
    stem, number, name = Path(SHEET).stem, 1, SHEET
    while name in taken:
        number += 1
        name = f"{stem}-{number}.png"
    return name


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
