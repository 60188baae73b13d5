"""From pairs of files to pairs that are ready to encrypt: read, brought to size, proved safe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from jobs.client.pairs import Pair, Skipped
from jobs.client.pictures import Box, Fit, Floats, read_picture
from nst.engines.base import PreparedContent, PreparedInput, PreparedStyle
from nst.errors import InputError
from nst.model import Model
from nst.pictures.picture import Picture, PicturesOnDisk
from nst.pictures.reading import require_readable

NO_FEATURES = np.empty((0, 0, 0), np.float32)
"""Of a pair whose pictures are on disk: features of all pairs would not fit into memory."""


@dataclass(frozen=True)
class PreparedPair:
    """A pair whose pictures can be encrypted; pairs that share a file share the `Picture`.

    Attributes:
        name: As the user knows it.
        content: Ready to encrypt, with the features that the encrypted network will give, unless
            its pictures are on disk.
        style: Ready to encrypt.
        box: The part of the content, and of the result, that holds the picture.
    """

    name: str
    content: PreparedContent
    style: PreparedStyle
    box: Box

    def preview(self, model: Model) -> Floats:
        """The result to expect, `[3, H, W]` in [0, 1], of the content's size."""
        content, style = self.content.input.picture, self.style.input.picture
        features = self.content.features
        if not features.size:
            features = model.prepare_content(content, model.prepare_style(style)).features
        return model.finish(content, style, features)


class _Reader:
    """Reads every file once, and keeps it for as long as pairs to come need it."""

    def __init__(self, pairs: list[Pair], model: Model, fit: Fit) -> None:
        self.model, self.fit = model, fit
        self._left = Counter(path for pair in pairs for path in {pair.content, pair.style})
        self._contents: dict[Path, tuple[Picture, Box]] = {}
        self._styles: dict[Path, PreparedStyle] = {}

    def prepare(self, pair: Pair) -> PreparedPair:
        try:
            content, box = self._content(pair.content)
            style = self._style(pair.style)
            with _named(pair.content):
                prepared = self.model.prepare_content(content, style)
            return PreparedPair(pair.name, prepared, style, box)
        finally:
            for path in {pair.content, pair.style}:
                self._left[path] -= 1
                if not self._left[path]:
                    self._contents.pop(path, None)
                    self._styles.pop(path, None)

    def _content(self, path: Path) -> tuple[Picture, Box]:
        if path not in self._contents:
            rgb, box = read_picture(path, self.model.size, self.fit)
            self._contents[path] = Picture(rgb), box
        return self._contents[path]

    def _style(self, path: Path) -> PreparedStyle:
        if path not in self._styles:
            # A style is texture: its central square is as good as any, and letterbox bars are not.
            rgb, _ = read_picture(path, self.model.style_size, "crop")
            with _named(path):
                self._styles[path] = self.model.prepare_style(Picture(rgb))
        return self._styles[path]


def prepared_pairs(
    pairs: Iterable[Pair], model: Model, fit: Fit
) -> Iterator[PreparedPair | Skipped]:
    """Read and prepare pairs one after the other; one that cannot be used gives its reason.

    Args:
        pairs: What the user asked for.
        model: Which network, and the size of contents and results.
        fit: How contents of other proportions are brought to that size.
    """
    wanted = list(pairs)
    reader = _Reader(wanted, model, fit)
    for pair in wanted:
        try:
            yield reader.prepare(pair)
        except InputError as error:
            yield Skipped(pair.name, str(error))


def prepare(
    pairs: Iterable[Pair],
    model: Model,
    fit: Fit,
    kept: PicturesOnDisk | None = None,
) -> tuple[list[PreparedPair], list[Skipped]]:
    """All pairs that can be used, and the others with their reasons; see `prepared_pairs`.

    Args:
        pairs: What the user asked for.
        model: Which network, and the size of contents and results.
        fit: How contents of other proportions are brought to that size.
        kept: Where pictures go, so that any number of pairs fits into memory; None keeps them.

    Raises:
        InputError: if pictures cannot be kept.
    """
    ready: list[PreparedPair] = []
    skipped: list[Skipped] = []
    moved: WeakKeyDictionary[Picture, Picture] = WeakKeyDictionary()

    def on_disk(prepared: PreparedInput) -> PreparedInput:
        assert kept is not None
        picture = prepared.picture
        if picture not in moved:
            moved[picture] = kept.keep(picture)
        return replace(prepared, picture=moved[picture])

    for item in prepared_pairs(pairs, model, fit):
        if isinstance(item, Skipped):
            skipped.append(item)
        elif kept is None:
            ready.append(item)
        else:
            try:
                content = PreparedContent(on_disk(item.content.input), NO_FEATURES)
                style = replace(item.style, input=on_disk(item.style.input))
            except OSError as error:
                raise InputError(
                    f"no room for the prepared pictures ({error.strerror}); submit fewer pairs at "
                    "a time, or make room"
                ) from error
            ready.append(PreparedPair(item.name, content, style, item.box))
    return ready, skipped


def readable(pairs: Iterable[Pair]) -> tuple[list[Pair], list[Skipped]]:
    """All pairs whose files begin as pictures do, and the others with their reasons.

    For a plan: no pixel is decoded, so that a file which is damaged further on is not found.
    """
    found: list[Pair] = []
    skipped: list[Skipped] = []
    reasons: dict[Path, str] = {}

    def reason_of(path: Path) -> str:
        if path not in reasons:
            try:
                require_readable(path)
                reasons[path] = ""
            except InputError as error:
                reasons[path] = str(error)
        return reasons[path]

    for pair in pairs:
        reason = reason_of(pair.content) or reason_of(pair.style)
        if reason:
            skipped.append(Skipped(pair.name, reason))
        else:
            found.append(pair)
    return found, skipped


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put a file's name before what an engine says of its picture."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
