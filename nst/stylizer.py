"""One pair at a time for scripts and notebooks: preview, encrypt, decrypt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst.architecture import CELL, CONTENT, STYLE
from nst.canvas import Canvas
from nst.errors import CircuitError, InputError
from nst.folders import Folders, default_folder
from nst.levels import get_level
from nst.stylize import (
    Picture,
    central_part,
    finish,
    pad_to_grid,
    plan_content,
    plan_style,
    to_image,
)
from nst.weights import load_weights

if TYPE_CHECKING:
    from nst.client import AskPassphrase, Cipher

Source = Image.Image | NDArray[np.uint8]
"""A PIL image, or 8-bit RGB pixels `[H, W, 3]`; of either the central part counts."""


@dataclass(frozen=True)
class EncryptedPair:
    """A pair as a server may have it: packed envelopes of ciphertexts, and whose they are.

    Attributes:
        content: The encrypted content.
        style: The encrypted style.
        key_id: Key set that they are under.
        circuit_id: Circuits that take them.
    """

    content: bytes
    style: bytes
    key_id: str
    circuit_id: str


class Stylizer:
    """A quality level on this machine: its network, and on demand its circuits and a key set.

    Computing on what `encrypt` returns is a server's work: `nst.server.Evaluator` does a row of a
    stage, and `jobs.Client` whole pairs.

    Example:
        >>> from PIL import Image
        >>> import nst
        >>> stylizer = nst.Stylizer("draft")
        >>> content, style = Image.open("cat.jpg"), Image.open("starry-night.jpg")  # doctest: +SKIP
        >>> stylizer.preview(content, style).save("expected.png")  # doctest: +SKIP
        >>> sent = stylizer.encrypt(content, style)  # doctest: +SKIP
        >>> stylizer.decrypt(received, content, style).save("result.png")  # doctest: +SKIP
    """

    def __init__(
        self,
        quality: str = "low",
        folder: Path | None = None,
        ask: AskPassphrase | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Load a level's weights.

        Args:
            quality: Name of the level.
            folder: Data directory with keys and circuits; None is that of `nst-batch`.
            ask: Called for the passphrase of a key set that has one.
            size: Width and height of contents and results in pixels; None for a square of the
                level's size.

        Raises:
            InputError: if there is no such level, or the size is too small or too large.
            CircuitError: if its weights are missing or damaged.
        """
        self.level = get_level(quality)
        self.network = load_weights(self.level.weights)
        self.folders = Folders(folder or default_folder())
        self._ask = ask
        self.canvas = self.level.canvas(Canvas(*size).checked() if size else None)

    def preview(self, content: Source, style: Source) -> Image.Image:
        """The result to expect, computed in the clear: the same integers, without noise.

        Raises:
            InputError: if a picture cannot be used.
        """
        one, other = self._content(content), self._style(style)
        code = plan_style(self.network, other).code
        features = plan_content(self.network, one, code).features
        return self._result(one, other, features)

    def encrypt(self, content: Source, style: Source) -> EncryptedPair:
        """Encrypt a pair; the first call compiles circuits and makes a key set if need be.

        Raises:
            InputError: if a picture cannot be used, or the passphrase is wrong or missing.
            CircuitError: if circuits or keys cannot be made.
        """
        one, other = self._content(content), self._style(style)
        plan = plan_style(self.network, other)
        gain = plan_content(self.network, one, plan.code).gain
        pictures = [
            (one.quantized(CONTENT, gain), CONTENT),
            (other.quantized(STYLE, plan.gain), STYLE),
        ]
        sealed_content, sealed_style = self._cipher.encrypt_all(pictures)
        return EncryptedPair(
            sealed_content.pack(),
            sealed_style.pack(),
            self._cipher.key_id,
            self._cipher.circuit_id,
        )

    def decrypt(self, result: Sequence[bytes], content: Source, style: Source) -> Image.Image:
        """The result of a pair, from packed envelopes of the last stage's rows, top to bottom.

        Colours come from the pictures themselves: give those that were encrypted.

        Raises:
            CircuitError: if the rows are damaged, too few or too many, or were made under another
                key set or by other circuits.
            InputError: if a picture cannot be used, or the passphrase is wrong or missing.
        """
        one, other = self._content(content), self._style(style)
        levels = self._cipher.decrypt_result(result, "the result")
        padded = self.canvas.padded
        rows, cells = padded.height // CELL, padded.width // CELL
        if levels.shape[1:] != (rows, cells):
            raise CircuitError(
                f"the result has {levels.shape[1]} rows of {levels.shape[2]} cells, not {rows} of "
                f"{cells}; give all rows of one result at {self.level.name}"
            )
        return self._result(one, other, levels)

    def evaluation_keys(self) -> bytes:
        """What a server needs besides the ciphertexts: it computes with them and cannot decrypt."""
        from nst.client import KeyRing

        return KeyRing(self.folders.keys).evaluation_keys(self._cipher.key_id)

    @cached_property
    def circuits(self) -> Path:
        """Folder of the compiled circuits; compiles them if need be."""
        # Concrete takes seconds to import: a preview need not wait for it.
        from nst.circuits import build_level

        return build_level(self.level, self.network, self.folders.circuits, self.canvas)[0]

    @cached_property
    def _cipher(self) -> Cipher:
        from nst.circuits import load_plan
        from nst.client import KeyRing

        ring = KeyRing(self.folders.keys)
        card = ring.find(load_plan(self.circuits).circuit_id)
        card = card or ring.create(self.circuits, self.level.name)
        return ring.cipher(card.key_id, self.circuits, self._ask)

    def _content(self, source: Source) -> Picture:
        return Picture(pad_to_grid(central_part(_rgb(source), self.canvas)))

    def _style(self, source: Source) -> Picture:
        return Picture(central_part(_rgb(source), Canvas.of(self.level.size)))

    def _result(self, content: Picture, style: Picture, features: NDArray[np.int64]) -> Image.Image:
        """Finished, and without what the content was padded by."""
        result = finish(self.network, content, style, features)
        return to_image(result[:, : self.canvas.height, : self.canvas.width])


def _rgb(source: Source) -> Image.Image:
    image = source if isinstance(source, Image.Image) else _from_pixels(source)
    return image.convert("RGB")


def _from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    array = np.asarray(pixels)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise InputError(
            f"pixels of shape {array.shape} and type {array.dtype}: give [H, W, 3] of uint8, or a "
            "PIL image"
        )
    return Image.fromarray(array)
