"""Pictures for the pages, of a job that really runs: `make pictures` (5 minutes on 2 cores).

The bundled pairs and a damaged one are submitted at draft; one pair loses its encrypted content in
the store, so that it fails. `status --watch` is taken when half of the pairs are done, the gallery
at the end, with the browser that the tests use.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import pytest
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

import jobs
from jobs.cli.main import main
from jobs.cli.submit import EXAMPLES
from jobs.client.home import Home
from jobs.client.view import Snapshot, table
from jobs.client.watch import describe
from jobs.storage import layout
from jobs.storage.records import read_job, read_marks
from jobs.storage.store import open_store
from tests.browser import browser, set_scheme, set_width

IMAGES = Path(__file__).resolve().parent / "images"
COLUMNS = 96
LOST, DAMAGED, SHOWN = "rocket", "harbour", "cat"
"""Pairs: one that fails on the server, one that is refused here, one that is enlarged."""
LONGEST = 3600.0
"""Seconds for the job."""


def take() -> None:
    """Run the job and write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="whose path errors show; must not be there")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory(prefix="nst-pictures-") as temporary:
        folder = folder or Path(temporary) / "ada"
        folder.mkdir(parents=True)
        try:
            take_help()
            take_gallery(run_job(folder), folder / "profile")
        finally:
            shutil.rmtree(folder)


def run_job(folder: Path) -> Path:
    """A job from pairs to gallery, whose path this returns; writes `watch.svg` on the way."""
    pairs = folder / "pairs"
    shutil.copytree(EXAMPLES, pairs)
    whole = (pairs / "content" / "coffee.jpg").read_bytes()
    (pairs / "content" / f"{DAMAGED}.jpg").write_bytes(whole[: len(whole) // 2])
    shutil.copy(pairs / "style" / "coffee.jpg", pairs / "style" / f"{DAMAGED}.jpg")
    home = Home(folder / ".local" / "share" / "nst-batch")
    job = jobs.Client(str(home.store), cluster="", home=home.root).submit(pairs, "draft")
    store, local = open_store(str(home.store)), home.job(job.id)
    record = read_job(store, job.id)
    lost = next(pair.pair_id for pair in local.pairs if pair.name == LOST)
    # The driver does not read inputs before Ray has started.
    content = next(pair.content for pair in record.pairs if pair.pair_id == lost)
    store.delete(layout.encrypted_input(job.id, content))

    deadline, taken = time.monotonic() + LONGEST, False
    while not job.done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {job.id} is not done after {LONGEST:.0f} s: {job.logs()}")
        state = job.progress()
        if not taken and state.pairs_done >= len(local.pairs) // 2 and state.stages:
            ended = read_marks(store, record).ended
            seen = Snapshot(local, state, ended, describe(state, time.time()))
            take_screen("watch", f"nst-batch status {job.id} --watch", table(seen))
            taken = True
        time.sleep(0.5)
    assert taken, "the job ended before half of its pairs were done"
    return job.fetch(folder / "stylized").gallery


def take_help() -> None:
    """Write `help.svg`."""
    settings = {**main.context_settings, "terminal_width": COLUMNS}
    context = click.Context(main, info_name="nst-batch", **settings)
    take_screen("help", "nst-batch --help", Text(main.get_help(context)))


def take_screen(name: str, command: str, shown: Any) -> None:
    """Write what a terminal shows after a command as `NAME.svg`."""
    console = Console(
        record=True,
        width=COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(Text.assemble(("$", "bold"), f" {command}"))
    console.print(shown, highlight=False)
    # Rich's own form loads a font from elsewhere.
    form = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    fonts = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
    form = re.sub(r"\n\s*\n", "\n\n", form.replace("Fira Code, monospace", fonts))
    path = IMAGES / f"{name}.svg"
    svg = console.export_svg(title="nst-batch", theme=MONOKAI, code_format=form, unique_id=name)
    path.write_text(re.sub(r"[ \t]+\n", "\n", svg))
    print(path)


def take_gallery(gallery: Path, profile: Path) -> None:
    """Write the pictures of a gallery: light, dark, enlarged, on a phone."""
    try:
        with browser(profile) as page:
            for scheme in ("light", "dark"):
                set_scheme(page, scheme)
                set_width(page, 1280, 820)
                page.get(gallery.as_uri())
                set_width(page, 1280, page.execute_script("return document.body.scrollHeight"))
                _shoot(page, f"gallery-{scheme}")
            set_width(page, 1280, 820)
            page.find_element("css selector", f'.zoom:has(img[alt="result of {SHOWN}"])').click()
            _shoot(page, "gallery-enlarged")
            set_scheme(page, "light")
            set_width(page, 390, 844, mobile=True)
            page.get(gallery.as_uri())
            _shoot(page, "gallery-phone")
    except pytest.skip.Exception as error:
        sys.exit(f"the pictures of the gallery are as they were: {error}")


def _shoot(page: Any, name: str) -> None:
    path = IMAGES / f"{name}.png"
    assert page.save_screenshot(str(path))
    print(path)


if __name__ == "__main__":
    os.environ.pop("NST_BATCH_PASSPHRASE", None)
    take()
