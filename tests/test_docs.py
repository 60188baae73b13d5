"""What the documentation says holds: commands, options, files, links, examples, messages."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import nst.errors
from jobs.cli.main import main
from nst.folders import HOME_VARIABLE, PASSPHRASE_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "README.md")),
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "cli.md"),
]
SHOWN = [page for page in PAGES if re.search(r"\]\((?!http)[^)#]", page.read_text())]
PLACEHOLDERS = {"...": [], "DIR": [], "LEVEL": ["low"]}
"""What stands in commands for arguments that a reader knows, and the words to parse instead."""


def commands(text: str) -> set[str]:
    """Every command in code: lines of blocks, and spans with `nst-batch` or a command's option."""
    text = text.replace("\\\n", " ")  # continued lines of a command are one
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = {line for block in blocks for line in block.splitlines()}
    found |= set(re.findall(r"`([^`\n]+)`", prose))
    names = "|".join(main.commands)
    # Prose names options without their values.
    bare = {line for line in found if re.match(rf"(nst-batch )?({names}) --[\w-]+$", line)}
    whole = {line for line in found - bare if re.match(r"nst-batch (?!COMMAND)", line)}
    return {x.removeprefix("nst-batch ") for x in {*whole, *(f"{line} --help" for line in bare)}}


def parse(call: str) -> None:
    """Raise click.UsageError unless a command line could run, given the files that it names."""
    words = [x for w in shlex.split(call, comments=True) for x in PLACEHOLDERS.get(w, [w])]
    words = [word.strip("[]") for word in words]  # what may be left out
    ends = [place for place, word in enumerate(words) if word in (">", "&", "|")]
    words = words[: min(ends, default=len(words))]
    command: click.Command = main
    context = click.Context(main, info_name="nst-batch")
    while isinstance(command, click.Group):
        if not words:
            return
        found = command.get_command(context, words[0])
        if found is None:
            raise click.UsageError(f"no command {words[0]}")
        command, words = found, words[1:]
    if "--help" in words:
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        if unknown := set(words) - known:
            raise click.UsageError(f"no such option: {unknown}")
        return
    context = click.Context(command, info_name=command.name)
    values, left, _ = command.make_parser(context).parse_args(words)
    if left:
        raise click.UsageError(f"too many arguments: {left}")
    for parameter in command.params:
        value = values.get(parameter.name or "")
        given = isinstance(value, str) or (isinstance(value, tuple) and bool(value))
        if given and not isinstance(parameter.type, click.Path):
            parameter.type_cast_value(context, value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_documentation_parses(page: Path) -> None:
    for call in sorted(commands(page.read_text())):
        try:
            parse(call)
        except click.ClickException as error:
            pytest.fail(f"{page.name}: nst-batch {call}: {error.format_message()}")


def test_most_pages_have_commands_to_check_and_wrong_ones_are_noticed() -> None:
    assert sum(bool(commands(page.read_text())) for page in PAGES) >= len(PAGES) - 3
    for wrong in ("submitt x", "submit --now x", "submit --fit round x", "fetch --ou --help"):
        with pytest.raises(click.UsageError):
            parse(wrong)


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [x for x in re.findall(r"\]\(([^)#]+)", text) if not x.startswith("http")]
    named = re.findall(r"`((?:cluster|tests|nst|jobs)/[\w./-]+)`", text)
    assert links
    for link in links:
        assert (page.parent / link).resolve().exists(), link
    for name in named:
        assert (ROOT / name).exists() or re.match(r"(jobs|nst/engines)/[A-Z]+/", name), name


def test_the_map_of_the_house_names_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    folders = [path.parent.relative_to(ROOT) for path in ROOT.glob("[a-z]*/__init__.py")]
    folders += [path.parent.relative_to(ROOT) for path in ROOT.glob("jobs/*/__init__.py")]
    assert len(folders) > 6
    for folder in folders:
        assert f"`{folder}/`" in text or any(f.parent == folder for f in folders), folder
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", text):
        assert re.search(rf"^{target}:.*##", targets, flags=re.MULTILINE), target


def test_examples_in_python_do_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with_examples = [page for page in PAGES if ">>>" in page.read_text()]
    assert with_examples
    for page in with_examples:
        failed, tried = doctest.testfile(str(page), module_relative=False)
        assert tried and not failed, page.name
    sources = [path for folder in ("nst", "jobs") for path in (ROOT / folder).rglob("*.py")]
    shown = [path for path in sources if ">>>" in path.read_text()]
    assert shown
    for path in shown:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        failed, tried = doctest.testmod(importlib.import_module(name))
        assert tried and not failed, name


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert build.returncode == 0, build.stderr
    command_line = (tmp_path / "cli.html").read_text()
    # Groups and what is below them, with options, whatever mkdocs makes of them.
    for part in ("nst-batch keys create", "--notify-url", "--cores-per-node"):
        assert part in command_line, part
    python = (tmp_path / "api.html").read_text()
    assert "find_pairs" in python and "CircuitError" in python
    # The picture of the concepts, a file from outside of docs/, and the home page.
    assert (tmp_path / "data-way.svg").is_file()
    assert (tmp_path / "repository" / "benchmarks" / "bytes.json").is_file()
    assert "on encrypted pictures" in (tmp_path / "index.html").read_text()
    # Readers ask no other server for anything.
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+)"[^>]*(?:rel="stylesheet")?', command_line)
    assert not [url for url in loaded if "fonts" in url or url.endswith((".js", ".css"))]


# Troubleshooting by message

ERRORS = {name for name in vars(nst.errors) if name.endswith("Error")} | {"TrainingError"}
KNOWN_NAMES = {"HOME_VARIABLE": HOME_VARIABLE, "PASSPHRASE_VARIABLE": PASSPHRASE_VARIABLE}
FEWEST = 10
"""Characters of its own that a message needs to be recognized by."""


def shape(node: ast.expr) -> str:
    """A message as the page shows it, with `…` for what the program fills in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(shape(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return KNOWN_NAMES.get(ast.unparse(node.value), "…")
    if isinstance(node, ast.BinOp):
        return shape(node.left) + shape(node.right)
    return "…"


def shows(entry: str, message: str) -> bool:
    """Whether all that an entry quotes stands in a message, in the same order."""
    position = 0
    for part in entry.split("…"):
        position = message.find(part, position)
        if position < 0:
            return False
        position += len(part)
    return True


def test_every_message_is_explained_and_no_other() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    entries = re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)
    assert all(len(entry.replace("…", "")) >= FEWEST for entry in entries)
    texts, messages = set(), set()
    for path in (p for folder in ("nst", "jobs", "cluster") for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                texts.add(shape(node))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS and node.args:
                messages.add(shape(node.args[0]))
    named = {m for m in messages if len(m.replace("…", "")) >= FEWEST}
    assert len(named) > 100
    missing = {m for m in named if not any(shows(entry, m) for entry in entries)}
    assert not missing, "explain them in docs/troubleshooting.md"
    assert not {e for e in entries if not any(shows(e, text) for text in texts)}, (
        "nothing says this"
    )
