"""The one gate between what others wrote and a terminal, a log, a page or a file name."""

from __future__ import annotations

import unicodedata

MOST = 500
"""Characters of a text that are shown."""
_STEERING = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories: controls, formats (direction, zero width), what is no character."""
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and marks that show nothing."""


def plain(text: object, most: int = MOST) -> str:
    """A text in one line in which nothing steers a terminal, changes direction or is invisible.

    Controls become spaces, so that words stay apart; what has no width goes.

    Args:
        text: Anything, as `str` shows it.
        most: Characters after which it is cut off with an ellipsis.
    """
    # A combining mark after another may be one of thousands.
    shown, marks = [], 0
    whole = str(text)
    for char in whole[: 4 * most]:
        kind = unicodedata.category(char)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if kind in ("Cc", "Zl", "Zp"):
            shown.append(" ")
        elif kind not in _STEERING and char not in _UNSEEN and marks <= 3:
            shown.append(char)
    line = "".join(shown)
    return line if len(line) <= most and len(whole) <= 4 * most else line[: most - 1] + "…"
