"""The gallery in a real browser: filters, viewer, themes, phones, keyboards, hostile names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from jobs.client.gallery import Entry, Summary, write_gallery
from jobs.client.pictures import Floats
from tests.browser import browser, requests_of, set_scheme, set_width

HOSTILE = (
    "</h2><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    "\"' onclick='x' {{ 7*7 }} \u202egnp.exe"
)
AA = 4.5
"""Contrast that WCAG wants of text."""

ARROWS = {"left": "\ue012", "up": "\ue013", "right": "\ue014", "down": "\ue015"}
ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"


def drawn(seed: int, side: int = 32) -> Floats:
    return np.random.default_rng(seed).random((3, side, side), dtype=np.float32)


def entries() -> list[Entry]:
    return [
        Entry("cat", "succeeded", drawn(1), drawn(2), drawn(3), facts=("1 min 12 s", "4,512 PBS")),
        Entry(HOSTILE, "failed", drawn(4), drawn(5), None, "because of " + HOSTILE),
        Entry("sea", "waiting", drawn(6), drawn(7), None, "queued"),
        Entry("wood", "succeeded", drawn(8, 192), drawn(9, 192), drawn(10, 192)),
        Entry("gone", "failed", None, None, None, "not a picture " + "x" * 300),
    ]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("browser")
    summary = Summary(HOSTILE, (("job", "0f3c9a"), ("state", HOSTILE)))
    gallery = write_gallery(entries(), summary, folder)
    with browser(folder / "profile") as page:
        page.address = gallery.as_uri()
        yield page


@pytest.fixture
def page(session: Any) -> Any:
    set_scheme(session, "light")
    set_width(session, 1280, 900)
    session.get(session.address)
    return session


def press(page: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(page).send_keys(*keys).perform()


def visible(page: Any) -> list[str]:
    articles = page.find_elements("tag name", "article")
    return [a.find_element("tag name", "h2").text for a in articles if a.is_displayed()]


def zoom(page: Any, label: str) -> Any:
    return page.find_element("css selector", f'.zoom:has(img[alt="{label}"])')


def enlarged(page: Any) -> str | None:
    """What the viewer shows, None if it is closed."""
    if not page.find_element("id", "viewer").is_displayed():
        return None
    return str(page.find_element("id", "large").get_attribute("alt"))


def test_it_fetches_nothing_and_runs_nothing_but_its_own(page: Any) -> None:
    requests_of(page)
    page.get(page.address)
    asked = {url for url in requests_of(page) if not url.startswith("data:image/png")}
    assert asked == {page.address}
    assert page.title == HOSTILE
    assert (
        page.find_elements("css selector", "article")[1].find_element("tag name", "h2").text
        == HOSTILE
    )
    # Its own script has run, and the browser has nothing to complain of.
    assert page.find_element("id", "theme").is_displayed()
    assert page.get_log("browser") == []
    # What got in all the same would not run.
    page.execute_script(
        "document.body.append(document.createRange().createContextualFragment("
        "'<script>document.title=\"run\"<\\/script>'"
        "+ '<img src=x onerror=\"document.title=`run`\">'))"
    )
    assert page.title == HOSTILE
    assert all("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def test_pairs_are_filtered_by_status(page: Any) -> None:
    everything = visible(page)
    assert everything == [entry.name for entry in entries()]
    assert page.find_element("css selector", "label[for=show-failed]").text == "failed 2"
    for status, names in (
        ("succeeded", ["cat", "wood"]),
        ("failed", [HOSTILE, "gone"]),
        ("waiting", ["sea"]),
        ("all", everything),
    ):
        page.find_element("css selector", f"label[for=show-{status}]").click()
        assert visible(page) == names


def test_the_viewer_goes_through_what_is_shown(page: Any) -> None:
    page.find_element("css selector", "label[for=show-succeeded]").click()
    assert enlarged(page) is None
    zoom(page, "result of cat").click()
    assert enlarged(page) == "result of cat"
    press(page, ARROWS["right"])
    assert enlarged(page) == "content of wood"
    press(page, ARROWS["left"], ARROWS["up"], ARROWS["up"])
    assert enlarged(page) == "result of cat"
    press(page, ARROWS["down"])
    assert enlarged(page) == "result of wood"
    press(page, ARROWS["right"])
    assert enlarged(page) == "content of cat"
    page.find_element("id", "next").click()
    assert enlarged(page) == "style of cat"
    assert "cat: style (2 of 6)" in page.find_element("id", "caption").text
    press(page, ESCAPE)
    assert enlarged(page) is None
    # The focus is where it was.
    assert page.switch_to.active_element == zoom(page, "style of cat")


def test_small_pictures_have_hard_pixels_of_one_size(page: Any) -> None:
    for label, side, hard in (("result of cat", 32, True), ("result of wood", 192, False)):
        assert (
            zoom(page, label)
            .find_element("tag name", "img")
            .value_of_css_property("image-rendering")
            == "pixelated"
        ) == hard
        zoom(page, label).click()
        large = page.find_element("id", "large")
        shown = large.rect["width"]
        assert shown > 3 * side and large.rect["height"] == shown
        assert (large.value_of_css_property("image-rendering") == "pixelated") == hard
        assert shown % side == 0 or not hard
        press(page, ESCAPE)


def test_everything_can_be_done_by_keyboard(page: Any) -> None:
    press(page, TAB)
    assert page.switch_to.active_element == page.find_element("id", "theme")
    press(page, TAB, ARROWS["right"], ARROWS["right"])
    assert visible(page) == [HOSTILE, "gone"]
    label = page.find_element("css selector", "label[for=show-failed]")
    assert label.value_of_css_property("outline-style") == "solid"
    press(page, TAB, ENTER)
    assert enlarged(page) == f"content of {HOSTILE}"
    press(page, TAB)
    assert page.switch_to.active_element.find_element("xpath", "ancestor::dialog")
    press(page, ESCAPE)
    assert enlarged(page) is None


def test_light_and_dark(page: Any) -> None:
    def background() -> tuple[float, ...]:
        return colour(
            page.find_element("tag name", "body").value_of_css_property("background-color")
        )

    button = page.find_element("id", "theme")
    light = background()
    assert min(light) > 200 and button.get_attribute("aria-pressed") == "false"
    button.click()
    dark = background()
    assert max(dark) < 60 and button.get_attribute("aria-pressed") == "true"
    button.click()
    assert background() == light
    set_scheme(page, "dark")
    page.get(page.address)
    assert background() == dark
    assert page.find_element("id", "theme").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(page: Any, scheme: str) -> None:
    set_scheme(page, scheme)
    found = page.execute_script(
        """
        const behind = (node) => {
          for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
          }
        };
        const own = (node) => [...node.childNodes].some(
          (child) => child.nodeType === 3 && child.textContent.trim());
        return [...document.querySelectorAll("body *")]
          .filter((node) => own(node) && node.getClientRects().length && node.tagName !== "SCRIPT")
          .map((node) => [node.textContent, getComputedStyle(node).color, behind(node)]);
        """
    )
    assert len(found) > 30
    for text, ink, paper in found:
        assert contrast(colour(ink), colour(paper)) >= AA, (text, ink, paper)


def test_pictures_and_controls_have_names(page: Any) -> None:
    for image in page.find_elements("css selector", "article img"):
        assert re.match("(content|style|result) of .+", image.get_attribute("alt"))
    assert zoom(page, "style of cat").accessible_name == "style of cat"
    zoom(page, "style of cat").click()
    for button in page.find_elements("css selector", "dialog button"):
        assert button.accessible_name
    assert "cat: style" in page.find_element("id", "viewer").accessible_name
    press(page, ESCAPE)
    headings = page.find_elements("css selector", "h1, h2, h3, h4")
    levels = [int(heading.tag_name[1]) for heading in headings]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))
    article = page.find_elements("tag name", "article")[0]
    assert article.accessible_name == "cat"


def test_it_fits_a_phone(page: Any) -> None:
    set_width(page, 360, 740, mobile=True)
    page.get(page.address)
    overflow = page.execute_script(
        "return [...document.querySelectorAll('body *')].filter("
        "node => node.getBoundingClientRect().right > 360.5).map(node => node.outerHTML)"
    )
    assert overflow == []
    assert page.execute_script("return document.documentElement.scrollWidth") == 360
    zoom(page, "result of cat").click()
    large = page.find_element("id", "large").rect
    assert 256 < large["width"] <= 360
    assert page.find_element("id", "close").rect["height"] >= 24


def colour(text: str) -> tuple[float, ...]:
    """`rgb(1, 2, 3)` or `rgba(...)` as numbers."""
    return tuple(float(x) for x in re.findall(r"[\d.]+", text)[:3])


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Contrast ratio as WCAG defines it."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(rgb: tuple[float, ...]) -> float:
    linear = [
        x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in (c / 255 for c in rgb)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
