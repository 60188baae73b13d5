"""The one gate between what others wrote and a terminal, a log, a page or a file name."""

from __future__ import annotations

import unicodedata

MOST, MOST_LINE = 500, 4000
"""Characters of a text that are shown, and of a whole line with paths and advice in it."""
_SPACED, _REPLACED, _DROPPED = {"Cc", "Zl", "Zp"}, {"Cs", "Cn", "Co"}, {"Cf"}
"""Categories: controls and line ends; what is no character; direction and zero width."""
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and marks that show nothing."""
MARKS = 3
"""Combining marks on a letter: more climb over the lines above."""


def visible(text: str) -> str:
    """A text without what shows nothing or changes the direction of what is shown."""
    shown, marks = [], 0
    for char in text:
        kind = unicodedata.category(char)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if kind not in _DROPPED and char not in _BLANK and marks <= MARKS:
            shown.append(char)
    return "".join(shown)


def plain(text: object, most: int = MOST) -> str:
    """A text in one line in which nothing steers a terminal, changes direction or is invisible.

    Controls become spaces, so that words stay apart.

    Args:
        text: Anything, as `str` shows it.
        most: Characters after which it is cut off with an ellipsis.
    """
    # What is dropped counts, so that no text takes long.
    whole = str(text)
    line = "".join(map(_shown, visible(whole[: 4 * most])))
    return line if max(len(line), len(whole) // 4) <= most else line[: most - 1] + "…"


def plain_lines(text: object) -> str:
    """The same of a text of several lines, which stay; tabs become spaces."""
    return "\n".join(plain(line, MOST_LINE) for line in str(text).split("\n"))


def _shown(char: str) -> str:
    kind = unicodedata.category(char)
    return " " if kind in _SPACED else "\ufffd" if kind in _REPLACED else char
