"""What the site has beside the pages in `docs/`: linked files, every command's help, and options.

A page links to `../benchmarks/bytes.json` as a reader of the repository would. In the site that
file lies at `repository/benchmarks/bytes.json`, and README.md is the home page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
HOME, ELSEWHERE = "index.md", "repository"
PAGES = (
    "benchmarks/architecture.md",
    "examples/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "NOTICE.md",
)
"""Markdown outside of docs/ that is shown as a page; other files are copied as they are."""
COMMANDS, WIDTH = "<!-- commands -->", 88
"""What stands in a page for the help of all commands, and its characters per line."""
OPTIONS = re.compile(r"<!-- options: (\w+) -->")
"""What stands in a page for the options that a command has in Python."""
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)(?=[)#])")
WHOLE_LINK = re.compile(r"(?<!!)\[([^]]+)\]\((?!\w+:)([^)\s#]+)\)")


def place_of(path: Path) -> str:
    """Where a file of the repository is in the site's sources."""
    if path == ROOT / "README.md":
        return HOME
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"{ELSEWHERE}/{path.relative_to(ROOT).as_posix()}"


def origin_of(place: str) -> Path:
    """The file of the repository that a source of the site is."""
    if place == HOME:
        return ROOT / "README.md"
    if place.startswith(f"{ELSEWHERE}/"):
        return ROOT / place.removeprefix(f"{ELSEWHERE}/")
    return DOCS / place


def targets(path: Path) -> list[Path]:
    """Files of the repository that a Markdown file links to."""
    found = (Path(os.path.normpath(path.parent / link)) for link in LINK.findall(path.read_text()))
    return [target for target in found if target.is_file() and target.is_relative_to(ROOT)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page, pages from elsewhere, and every other file that a page links to."""
    pages = [ROOT / "README.md", *(ROOT / page for page in PAGES)]
    linked = {target for page in [*DOCS.glob("*.md"), *pages] for target in targets(page)}
    for path in sorted({*pages, *(p for p in linked if p.suffix != ".md")}):
        place = place_of(path)
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links between files of the repository into links within the site; add commands."""
    place = page.file.src_uri
    folder = origin_of(place).parent

    def without_folder(match: re.Match[str]) -> str:
        # A site cannot show a folder; its name is left.
        return match[1] if (folder / match[2]).is_dir() else match[0]

    def moved(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / match[1]))
        if not target.exists() or not target.is_relative_to(ROOT):
            return match[1]
        return Path(os.path.relpath(place_of(target), Path(place).parent)).as_posix()

    if COMMANDS in markdown:
        from jobs.cli.main import main

        markdown = markdown.replace(COMMANDS, "\n".join(help_of(main, "nst-batch")))
    markdown = OPTIONS.sub(lambda match: "\n".join(options_table(match[1])), markdown)
    return LINK.sub(moved, WHOLE_LINK.sub(without_folder, markdown))


def help_of(command: click.Command, name: str, above: click.Context | None = None) -> Iterator[str]:
    """Headings and help of a command and of those below it, as Markdown."""
    context = click.Context(
        command, above, info_name=name, terminal_width=WIDTH, **command.context_settings
    )
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    for below in command.list_commands(context) if isinstance(command, click.Group) else ():
        found = command.get_command(context, below)
        if found is not None and not found.hidden:
            yield from help_of(found, below, context)


def options_table(command: str) -> Iterator[str]:
    """The options of `Client.submit` or `Job.retry` as a Markdown table."""
    from jobs.fields import options_of
    from jobs.options import RetryOptions, SubmitOptions

    yield "| argument | default | |\n|---|---|---|"
    for name, option in options_of(
        {"submit": SubmitOptions, "retry": RetryOptions}[command]
    ).items():
        default = option.about.get("shown") or option.default
        yield f"| `{name}` | {'' if default in (None, '') else default} | {option.about['help']} |"
