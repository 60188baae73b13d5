"""The gallery shows every entry, in one file that fetches nothing and trusts no name."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.client.gallery import CELL, GAP, VACANT, Entry, write_contact_sheet, write_gallery
from jobs.client.pictures import Floats
from nst.errors import InputError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
HOSTILE = '<script>alert("x")</script>&"\''


def flat(color: tuple[int, int, int], size: int = 16) -> Floats:
    channels = np.array(color, dtype=np.float32).reshape(3, 1, 1) / 255
    return np.broadcast_to(channels, (3, size, size)).copy()


def done(name: str = "a", size: int = 16) -> Entry:
    return Entry(name, "done", flat(RED, size), flat(GREEN, size), flat(BLUE, size), "1.2 s")


def failed(name: str = "b") -> Entry:
    return Entry(name, "failed", flat(RED), None, None, "style is truncated")


class Page(HTMLParser):
    """What a browser would make of the page: its tags with attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def page(entries: list[Entry], folder: Path, title: str = "Demo") -> Page:
    path = folder / "gallery.html"
    write_gallery(entries, title, path)
    return Page(path.read_text(encoding="utf-8"))


def test_triples_are_embedded_in_order(tmp_path: Path) -> None:
    images = page([done()], tmp_path).images()
    colors = []
    for image in images:
        head, _, data = str(image["src"]).partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
            assert picture.size == (16, 16)
            colors.append(picture.getpixel((8, 8)))
    assert colors == [RED, GREEN, BLUE]


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    found = page([done(), failed()], tmp_path)
    for tag, attributes in found.tags:
        assert tag not in ("script", "link", "iframe")
        assert all(str(attributes.get(key, "data:")).startswith("data:") for key in ("src", "href"))
    assert not re.search(r"url\(|@import|https?:", found.text)
    policies = [a["content"] for t, a in found.tags if t == "meta" and "http-equiv" in a]
    assert any("default-src 'none'" in str(policy) for policy in policies)


def test_names_titles_and_details_are_text_not_markup(tmp_path: Path) -> None:
    entry = Entry(HOSTILE, "failed", flat(RED), None, None, "because " + HOSTILE)
    found = page([entry], tmp_path, title=HOSTILE)
    assert "script" not in {tag for tag, _ in found.tags}
    assert found.text.count(HOSTILE) == 4  # title, heading, name, detail
    assert found.images()[0]["alt"] == f"content of {HOSTILE}"


def test_failures_show_their_reason_and_the_pictures_there_are(tmp_path: Path) -> None:
    found = page([failed()], tmp_path)
    assert "style is truncated" in found.text
    assert len(found.images()) == 1


def test_the_summary_counts_by_status(tmp_path: Path) -> None:
    running = Entry("c", "running", None, None, None, "")
    assert (
        "2 done, 1 failed, 1 running"
        in page([done("x"), done("y"), failed(), running], tmp_path).text
    )


@pytest.mark.parametrize(("size", "shown"), [(16, 64), (64, 256), (128, 384), (300, 300)])
def test_small_pictures_are_enlarged_with_hard_pixels(
    tmp_path: Path, size: int, shown: int
) -> None:
    image = page([done(size=size)], tmp_path).images()[0]
    assert (image["width"], image["height"]) == (str(shown), str(shown))
    assert (image.get("class") == "enlarged") == (shown > size)


def test_the_page_follows_the_colour_scheme(tmp_path: Path) -> None:
    text = page([], tmp_path).text
    assert "prefers-color-scheme: dark" in text and "image-rendering: pixelated" in text


def test_names_that_cannot_be_encoded_do_not_stop_the_page(tmp_path: Path) -> None:
    assert "caf? Ω" in page([done("caf\udce9 Ω")], tmp_path).text


def test_contact_sheet_has_its_pictures_in_rows(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    write_contact_sheet([done(str(i)) for i in range(3)] + [failed()], path)
    first, step = 3 * GAP + CELL // 2, CELL + GAP
    with Image.open(path) as sheet:
        triple = [sheet.getpixel((first + i * step, first)) for i in range(3)]
        second_row = first + CELL + 3 * GAP
        below = [sheet.getpixel((first + i * step, second_row)) for i in range(3)]
        corner = sheet.getpixel((0, 0))
    assert triple == [RED, GREEN, BLUE]
    assert below == [RED, VACANT["failed"], VACANT["failed"]]
    assert isinstance(corner, tuple) and max(corner) < 40


@pytest.mark.parametrize("shape", [(3, 500, 500), (3, 1, 64), (3, 300, 2), (3, 16, 16)])
def test_contact_sheet_fits_any_picture_into_its_cell(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    ones = np.ones(shape, dtype=np.float32)
    entry = Entry("a", "done", ones, None, None, "")
    write_contact_sheet([entry], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        lit = np.argwhere(np.asarray(sheet).min(2) == 255)
    assert len(lit)
    assert lit.min() >= 3 * GAP and lit.max() < 3 * GAP + CELL
    assert np.ptp(lit, axis=0).max() + 1 == CELL


def test_unwritable_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone/g\.html"):
        write_gallery([done()], "Demo", tmp_path / "gone" / "g.html")
    with pytest.raises(InputError, match=r"gone/s\.png"):
        write_contact_sheet([done()], tmp_path / "gone" / "s.png")
