"""Pairs to measure on: pictures that training never saw, the same ones of the same folders."""

from __future__ import annotations

import random
from pathlib import Path

from jobs.client.pairs import Pair, safe_name
from nst.errors import InputError
from nst.training.dataset import list_half, list_pictures, split
from nst.training.halves import Half

SEED = 7
"""Of the contents."""
SPREAD_CONTENTS = 2
"""Contents that meet every style, to see how much their results differ."""


def held_out_pairs(contents: Path, styles: Path, count: int) -> list[Pair]:
    """Fixed pairs of pictures that training never saw, the same whenever they are asked for.

    Contents are drawn at random with a fixed seed, styles are taken in turn. Names begin with a
    number, which makes them distinct.

    Args:
        contents: Folder of photographs that training was given.
        styles: Folder of paintings that training was given.
        count: How many pairs.

    Raises:
        InputError: if a folder holds no pictures.
    """
    _, held_out = split(list_pictures(styles))
    return _pairs(contents, held_out, count)


def strong_pairs(contents: Path, strong: Path, half: Half, count: int) -> list[Pair]:
    """The same contents with the strong styles of one half, each equally often or once more.

    Args:
        contents: Folder of photographs that training was given.
        strong: Folder of styles that training was not given.
        half: Which of them; see `nst.training.halves`.
        count: How many pairs.

    Raises:
        InputError: if a folder holds no pictures.
    """
    return _pairs(contents, list_half(strong, half), count)


def spread_pairs(contents: Path, strong: Path, half: Half) -> list[Pair]:
    """The first held-out contents with every strong style of one half; see `strong_pairs`."""
    _, held_out = split(list_pictures(contents))
    # As far apart as the folder allows: pictures of one subject often stand together.
    step = max(1, len(held_out) // SPREAD_CONTENTS)
    chosen = held_out[::step][:SPREAD_CONTENTS]
    styles = list_half(strong, half)
    return _named([(content, style) for content in chosen for style in styles])


def refuse_trained(strong: Path, trained: Path) -> None:
    """Raise InputError if strong styles are in a folder that is trained on."""
    if strong.resolve().is_relative_to(trained.resolve()):
        raise InputError(
            f"{strong} is in {trained}, which is trained on: strong styles need another folder"
        )


def _pairs(contents: Path, styles: list[Path], count: int) -> list[Pair]:
    _, held_out = split(list_pictures(contents))
    rng = random.Random(SEED)
    return _named([(rng.choice(held_out), styles[i % len(styles)]) for i in range(count)])


def _named(chosen: list[tuple[Path, Path]]) -> list[Pair]:
    return [
        Pair(safe_name(f"{i:03d}-{content.stem}--{style.stem}"), content, style)
        for i, (content, style) in enumerate(chosen)
    ]
