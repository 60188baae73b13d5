"""What others wrote, read with bounds: JSON, ids."""

from __future__ import annotations

import json
import re

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

JSON_BYTES = 16 << 20
"""A JSON document where nothing smaller is known."""
DEPTH = 32
"""Lists and objects within each other: ours take five."""
ID = r"^[0-9a-z][0-9a-z-]{0,63}$"
"""What an id looks like: ours are hex. None is a path, steers a terminal, or is markup."""


def parse_json(blob: bytes, limit: int = JSON_BYTES) -> Json:
    """A JSON document of which nothing is trusted.

    Args:
        blob: UTF-8.
        limit: Bytes that it may have at most.

    Raises:
        ValueError: if it is none, is larger, deeper than `DEPTH`, or holds a number that is not
            finite.
    """
    if len(blob) > limit:
        raise ValueError(f"{len(blob)} bytes, more than {limit}")
    try:
        document: Json = json.loads(blob, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    _require_shallow(document)
    return document


def is_id(text: object) -> bool:
    """Whether something looks like an id of ours."""
    return isinstance(text, str) and re.fullmatch(ID, text) is not None


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if abs(number) < float("inf") else _refuse(digits[:20])


def _require_shallow(document: Json) -> None:
    level = [document]
    for _ in range(DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, list | dict)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError("nested too deeply")
