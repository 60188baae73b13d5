"""The gallery shows every entry, in one file that fetches nothing and trusts no name."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import weakref
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.client import gallery
from jobs.client.gallery import CELL, MOST_ON_SHEET, SHEET, VACANT, Entry, Summary, write_gallery
from jobs.client.pictures import Floats
from nst.errors import InputError
from nst.pictures.sheet import GAP, Shown, contact_sheet
from nst.pictures.size import Size

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
HOSTILE = '<script>alert("x")</script>&"\''


def flat(color: tuple[int, int, int], size: int = 16) -> Floats:
    channels = np.array(color, dtype=np.float32).reshape(3, 1, 1) / 255
    return np.broadcast_to(channels, (3, size, size)).copy()


def done(name: str = "a", size: int = 16) -> Entry:
    pictures = (flat(RED, size), flat(GREEN, size), flat(BLUE, size))
    return Entry(name, "succeeded", *pictures, facts=("12 s", "4,512 PBS"))


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
        return [a for tag, a in self.tags if tag == "img" and "src" in a]


def page(entries: list[Entry], folder: Path, title: str = "Demo") -> Page:
    path = write_gallery(entries, Summary(title, (("job", "0f3c9a"),)), folder)
    return Page(path.read_text(encoding="utf-8"))


def sheet(entries: Iterable[Entry], folder: Path) -> NDArray[np.uint8]:
    write_gallery(entries, Summary("Demo"), folder)
    with Image.open(folder / SHEET) as image:
        return np.asarray(image)


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
        assert tag not in ("link", "iframe", "a", "form", "base")
        assert all(str(attributes.get(key, "data:")).startswith("data:") for key in ("src", "href"))
        assert not any(key == "style" or key.startswith("on") for key in attributes)
    assert not re.search(r"url\(|@import|https?:|fetch\(|import\(", found.text)


def test_only_the_pages_own_script_and_style_are_allowed(tmp_path: Path) -> None:
    found = page([done()], tmp_path)
    (policy,) = [str(a["content"]) for t, a in found.tags if t == "meta" and "http-equiv" in a]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    html = (tmp_path / "gallery.html").read_text()
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_names_titles_and_details_are_text_not_markup(tmp_path: Path) -> None:
    entry = Entry(HOSTILE, "failed", flat(RED), None, None, "because " + HOSTILE)
    found = page([entry], tmp_path, title=HOSTILE)
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert found.text.count(HOSTILE) == 4  # title, heading, name, reason
    assert found.images()[0]["alt"] == f"content of {HOSTILE}"


def test_failures_show_their_reason_and_the_pictures_there_are(tmp_path: Path) -> None:
    found = page([failed()], tmp_path)
    assert "style is truncated" in found.text
    assert len(found.images()) == 1


def test_every_status_can_be_picked_if_there_is_one(tmp_path: Path) -> None:
    waiting = Entry("c", "waiting", None, None, None, "queued")
    found = page([done("x"), done("y"), waiting], tmp_path)
    choices = {str(a["value"]): a for tag, a in found.tags if tag == "input"}
    assert list(choices) == ["all", "succeeded", "failed", "waiting"]
    assert [name for name, a in choices.items() if "disabled" in a] == ["failed"]
    assert [name for name, a in choices.items() if "checked" in a] == ["all"]
    counts = " ".join(found.text.split())
    assert "all 3 succeeded 2 failed 0 waiting 1" in counts
    assert [a["class"] for tag, a in found.tags if tag == "article"] == [
        "succeeded", "succeeded", "waiting",
    ]  # fmt: skip


def test_what_a_job_and_a_pair_took_is_shown(tmp_path: Path) -> None:
    words = page([done()], tmp_path).text.split("\n")
    assert {"job0f3c9a", "12 s", "4,512 PBS"} <= {word.strip() for word in words}


@pytest.mark.parametrize(("size", "small"), [(16, True), (64, True), (65, False), (300, False)])
def test_small_pictures_are_enlarged_with_hard_pixels(
    tmp_path: Path, size: int, small: bool
) -> None:
    image = page([done(size=size)], tmp_path).images()[0]
    assert (image["width"], image["height"]) == (str(size), str(size))
    assert (image.get("class") == "pixels") == small


def test_names_that_cannot_be_encoded_do_not_stop_the_page(tmp_path: Path) -> None:
    assert "caf\ufffd Ω" in page([done("caf\udce9 Ω")], tmp_path).text


def test_contact_sheet_has_its_pictures_in_rows(tmp_path: Path) -> None:
    pixels = sheet([done(str(i)) for i in range(3)] + [failed()], tmp_path)
    first, step = 3 * GAP + CELL.width // 2, CELL.width + GAP
    second_row = first + CELL.height + 3 * GAP
    triple, below = (
        [tuple(pixels[y, first + i * step]) for i in range(3)] for y in (first, second_row)
    )
    assert triple == [RED, GREEN, BLUE]
    assert below == [RED, VACANT["failed"], VACANT["failed"]]
    assert pixels[0, 0].max() < 40


@pytest.mark.parametrize("shape", [(3, 500, 500), (3, 1, 64), (3, 300, 2), (3, 16, 16)])
def test_contact_sheet_fits_any_picture_into_its_cell(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    ones = np.ones(shape, dtype=np.float32)
    pixels = sheet([Entry("a", "succeeded", ones, None, None)], tmp_path)
    lit = np.argwhere(pixels.min(2) == 255)
    assert len(lit)
    assert lit.min() >= 3 * GAP and lit.max() < 3 * GAP + CELL.width
    assert np.ptp(lit, axis=0).max() + 1 == CELL.width


def test_entries_are_written_as_they_come(tmp_path: Path) -> None:
    """Of ten thousand pairs no more than one is in memory, beside the sheet's small pictures."""
    alive: list[weakref.ref[Floats]] = []
    count = MOST_ON_SHEET + 30

    def entries() -> Iterator[Entry]:
        for i in range(count):
            assert sum(each() is not None for each in alive) <= 1
            result = flat(BLUE)
            alive.append(weakref.ref(result))
            yield Entry(str(i), "succeeded", None, None, result)
            del result

    pixels = sheet(entries(), tmp_path)
    assert len(pixels) == 3 * GAP + MOST_ON_SHEET // 3 * (CELL.height + 3 * GAP)
    found = Page((tmp_path / "gallery.html").read_text())
    assert len(found.images()) == count and f"succeeded {count}" in " ".join(found.text.split())


def test_many_pairs_have_many_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "PAGE_PAIRS", 2)
    mine, left = tmp_path / "gallery-mine.html", tmp_path / "gallery-9.html"
    mine.write_text("mine")
    write_gallery([done()], Summary("Demo"), tmp_path)
    shutil.copy(tmp_path / "gallery.html", left)
    names = list("abcde")
    first = write_gallery(
        [done(n) if n != "c" else failed(n) for n in names], Summary("Demo"), tmp_path
    )
    assert first == tmp_path / "gallery.html" and not left.exists() and mine.exists()
    found = [Page((tmp_path / n).read_text()) for n in ("gallery.html", *map(page_file, (2, 3)))]
    words = [" ".join(each.text.split()) for each in found]
    for part, text, choices in zip(
        ("Pairs 1 to 2 of 5", "Pairs 3 to 4 of 5", "Pairs 5 to 5 of 5"),
        words,
        ("all 2", "all 2 succeeded 1 failed 1", "all 1"),
        strict=True,
    ):
        assert part in text and choices in text and "2 1 failed 3" in text
    shown = [re.findall(r"content of (\w)", str(each.images())) for each in found]
    assert shown == [["a", "b"], ["c", "d"], ["e"]]
    links = [[str(a["href"]) for tag, a in each.tags if tag == "a"] for each in found]
    assert links == [["gallery.html", page_file(2), page_file(3)]] * 3
    # Fewer pairs again: pages of theirs go, and only those.
    page([done()], tmp_path)
    assert {p.name for p in tmp_path.glob("*.html")} == {"gallery.html", mine.name}


def page_file(number: int) -> str:
    return f"gallery-{number}.html"


def test_a_page_has_no_more_bytes_than_a_browser_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "PAGE_BYTES", 5000)
    write_gallery((done(str(i)) for i in range(9)), Summary("Demo"), tmp_path)
    pages = [p for p in tmp_path.glob("gallery*.html")]
    articles = [Page(p.read_text()).tags for p in pages]
    assert len(pages) > 2
    assert sum([tag for tag, _ in tags].count("article") for tags in articles) == 9


def test_the_page_says_how_many_pairs_the_contact_sheet_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "MOST_ON_SHEET", 3)
    assert "the first" not in page([done()] * 3, tmp_path).text
    assert "the first 3 of 4 pairs" in page([done()] * 4, tmp_path).text
    with Image.open(tmp_path / SHEET) as image:
        assert image.height < 2 * (CELL.height + 3 * GAP)


def test_a_gallery_that_breaks_off_leaves_the_last_one(tmp_path: Path) -> None:
    before = page([done()], tmp_path).text

    def entries() -> Iterator[Entry]:
        yield done("other")
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        sheet(entries(), tmp_path)
    assert Page((tmp_path / "gallery.html").read_text()).text == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [SHEET, gallery.GALLERY]


def test_unwritable_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone/gallery\.html"):
        write_gallery([done()], Summary("Demo"), tmp_path / "gone")
    (tmp_path / SHEET).mkdir()
    with pytest.raises(InputError, match=r"contact-sheet\.png"):
        write_gallery([done()], Summary("Demo"), tmp_path)


@pytest.mark.parametrize("cell", [Size.square(64), Size.square(2048)])
def test_a_sheet_of_any_number_of_groups_can_be_opened(cell: Size) -> None:
    groups: list[list[Shown]] = [[BLUE, BLUE, BLUE]] * 3000
    size = contact_sheet(groups, cell, 3).size
    assert 16_000 < size[1] <= 32_767 or cell.width > 64
    assert size[0] * size[1] < 179_000_000
