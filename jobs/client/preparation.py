"""From pairs of files to pairs that are ready to encrypt: read, brought to size, proved safe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jobs.client.pairs import Pair, Skipped
from jobs.client.pictures import Box, Fit, read_picture
from nst.pictures.size import Size
from nst.errors import InputError
from nst.network.integers import IntegerNetwork
from nst.stylize import Picture, StylePlan, finish, plan_content, plan_style

Floats = NDArray[np.float32]
Plan = TypeVar("Plan")


@dataclass(frozen=True)
class PreparedPair:
    """A pair whose pictures are in memory.

    Attributes:
        name: As the user knows it.
        content: Prepared content; the same object for every pair that shares the file.
        style: Prepared style; likewise.
        box: The part of the canvas that the content fills.
        content_gain: Contrast at which the content is encrypted.
        style_gain: Contrast at which the style is encrypted.
        features: What the encrypted network will give, `[C, H, W]` int8.
    """

    name: str
    content: Picture
    style: Picture
    box: Box
    content_gain: float
    style_gain: float
    features: NDArray[np.int8]

    def preview(self, network: IntegerNetwork) -> Floats:
        """The result to expect, `[3, H, W]` in [0, 1]."""
        return finish(network, self.content, self.style, self.features.astype(np.int64))


class _Reader:
    """Reads and plans every file once."""

    def __init__(self, network: IntegerNetwork, size: int, fit: Fit, canvas: Size) -> None:
        self.network, self.size, self.fit, self.canvas = network, size, fit, canvas
        self._contents: dict[Path, tuple[Picture, Box]] = {}
        self._styles: dict[Path, tuple[Picture, StylePlan]] = {}

    def content(self, path: Path) -> tuple[Picture, Box]:
        if path not in self._contents:
            rgb, box = read_picture(path, self.canvas, self.fit)
            self._contents[path] = (Picture(rgb), box)
        return self._contents[path]

    def style(self, path: Path) -> tuple[Picture, StylePlan]:
        if path not in self._styles:
            # A style is texture: its central square is as good as any, and letterbox bars are not.
            rgb, _ = read_picture(path, self.size, "crop")
            picture = Picture(rgb)
            self._styles[path] = (picture, _named(path, plan_style, self.network, picture))
        return self._styles[path]


def prepare(
    pairs: Iterable[Pair],
    network: IntegerNetwork,
    size: int,
    fit: Fit,
    canvas: Size | None = None,
) -> tuple[list[PreparedPair], list[Skipped]]:
    """Read and plan pairs; those that cannot be used are returned with their reason.

    Args:
        pairs: What the user asked for.
        network: The level's network.
        size: Side of the style in pixels.
        fit: How contents are brought to their canvas.
        canvas: Size of contents and results; None for a square like the style's.
    """
    reader = _Reader(network, size, fit, canvas or Size.of(size))
    ready, skipped = [], []
    for pair in pairs:
        try:
            content, box = reader.content(pair.content)
            style, plan = reader.style(pair.style)
            chosen = _named(pair.content, plan_content, network, content, plan.code)
        except InputError as error:
            skipped.append(Skipped(pair.name, str(error)))
            continue
        features = chosen.features.astype(np.int8)
        ready.append(PreparedPair(pair.name, content, style, box, chosen.gain, plan.gain, features))
    return ready, skipped


def _named(path: Path, plan: Callable[..., Plan], *arguments: Any) -> Plan:
    """Call a planner and put the file's name before what it has to say."""
    try:
        return plan(*arguments)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
