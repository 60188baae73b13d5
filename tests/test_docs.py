"""What the documentation names exists: commands, options, files."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from jobs.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("clusters.md", "durability.md", "performance.md", "security.md")


def text_of(page: str) -> str:
    # Continued lines of a command are one.
    return (ROOT / "docs" / page).read_text().replace("\\\n", " ")


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page: str) -> None:
    # In code only, and up to the end of the code or of the line.
    calls = re.findall(r"(?:`|^)nst-batch ([^`\n#]+)", text_of(page), flags=re.MULTILINE)
    assert calls
    for call in calls:
        command: click.Command = main
        words = call.split()
        while isinstance(command, click.Group):
            assert words[0] in command.commands, call
            command = command.commands[words.pop(0)]
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, call


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = text_of(page)
    links = [x for x in re.findall(r"\]\(([^)#]+)\)", text) if not x.startswith("http")]
    named = re.findall(r"`((?:cluster|tests|nst|jobs)/[\w./-]+)`", text)
    assert links
    for link in links:
        assert (ROOT / "docs" / link).resolve().exists(), link
    for name in named:
        assert (ROOT / name).exists() or re.match(r"jobs/ID/", name), name
