"""From pairs of files to pairs that are ready to encrypt: read, brought to size, proved safe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs.client.pairs import Pair, Skipped
from jobs.client.pictures import Box, Fit, Floats, read_picture
from nst.engines.base import PreparedContent, PreparedStyle
from nst.errors import InputError
from nst.model import Model
from nst.pictures.picture import Picture


@dataclass(frozen=True)
class PreparedPair:
    """A pair whose pictures are in memory; pairs that share a file share the `Picture`.

    Attributes:
        name: As the user knows it.
        content: Ready to encrypt, with the features that the encrypted network will give.
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
        return model.finish(content, style, self.content.features)


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
    pairs: Iterable[Pair], model: Model, fit: Fit
) -> tuple[list[PreparedPair], list[Skipped]]:
    """All pairs that can be used, and the others with their reasons; see `prepared_pairs`."""
    ready: list[PreparedPair] = []
    skipped: list[Skipped] = []
    for item in prepared_pairs(pairs, model, fit):
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            ready.append(item)
    return ready, skipped


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put a file's name before what an engine says of its picture."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
