"""One pair at a time for scripts and notebooks: preview, encrypt, decrypt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst.engines.base import Features, Published
from nst.errors import InputError
from nst.folders import Folders, default_folder
from nst.keyring import AskPassphrase, KeyRing
from nst.model import DEFAULT_ENGINE, Model
from nst.pictures.picture import Picture, central_part, pad_to_grid, to_image
from nst.pictures.size import Size

Source = Image.Image | NDArray[np.uint8]
"""A PIL image, or 8-bit RGB pixels `[H, W, 3]`; of either the central part counts."""


@dataclass(frozen=True)
class EncryptedPair:
    """A pair as a server may have it: packed envelopes of ciphertexts, and whose they are.

    Attributes:
        content: The encrypted content.
        style: The encrypted style.
        key_id: Key set that they are under.
        model_id: Model that takes them.
    """

    content: bytes
    style: bytes
    key_id: str
    model_id: str


class Stylizer:
    """A quality level on this machine: its network, and on demand its circuits and a key set.

    Computing on what `encrypt` returns is a server's work: `Engine.load` gives what does a task of
    a stage, and `jobs.Client` whole pairs.

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
        engine: str = DEFAULT_ENGINE,
    ) -> None:
        """Load a level's weights.

        Args:
            quality: Name of the level.
            folder: Data directory with keys and models; None is that of `nst-batch`.
            ask: Called for the passphrase of a key set that has one.
            size: Width and height of contents and results in pixels; None for a square of the
                level's size.
            engine: Name of the engine.

        Raises:
            InputError: if there is no such level, or the size is too small or too large.
            CircuitError: if its weights are missing or damaged, or there is no such engine.
        """
        self.folders = Folders(folder or default_folder())
        asked = Size(*size) if size else None
        self.model = Model.load(quality, self.folders.models, asked, engine)
        self._ask = ask

    def preview(self, content: Source, style: Source) -> Image.Image:
        """The result to expect, computed in the clear: the same integers, without noise.

        Raises:
            InputError: if a picture cannot be used.
        """
        one, other = self._content(content), self._style(style)
        prepared = self.model.prepare_content(one, self.model.prepare_style(other))
        return self._result(one, other, prepared.features)

    def encrypt(self, content: Source, style: Source) -> EncryptedPair:
        """Encrypt a pair; the first call compiles circuits and makes a key set if need be.

        Raises:
            InputError: if a picture cannot be used, or the passphrase is wrong or missing.
            CircuitError: if circuits or keys cannot be made.
        """
        prepared_style = self.model.prepare_style(self._style(style))
        prepared = self.model.prepare_content(self._content(content), prepared_style)
        cipher = self.model.cipher(self._ring, self.key_id, self._ask)
        inputs = [prepared.input], [prepared_style.input]
        sealed_content, sealed_style = cipher.encrypt_all(inputs)
        return EncryptedPair(
            sealed_content.pack(), sealed_style.pack(), self.key_id, self.model.plan.model_id
        )

    def decrypt(self, result: Sequence[bytes], content: Source, style: Source) -> Image.Image:
        """The result of a pair, from packed envelopes of the last stage's parts, in order.

        Colours come from the pictures themselves: give those that were encrypted.

        Raises:
            CircuitError: if the parts are damaged, too few or too many, or were made under another
                key set or by another model.
            InputError: if a picture cannot be used, or the passphrase is wrong or missing.
        """
        one, other = self._content(content), self._style(style)
        cipher = self.model.cipher(self._ring, self.key_id, self._ask)
        (features, *_) = cipher.decrypt_result(result, "the result")
        return self._result(one, other, features)

    def evaluation_keys(self) -> bytes:
        """What a server needs besides the ciphertexts: it computes with them and cannot decrypt."""
        return self._ring.evaluation_keys(self.key_id)

    @property
    def published(self) -> Published:
        """The plan and the bundles of the model; builds them if need be."""
        return self.model.published

    @cached_property
    def key_id(self) -> str:
        """The key set; makes one if need be."""
        return self.model.key_set(self._ring).key_id

    @property
    def _ring(self) -> KeyRing:
        return KeyRing(self.folders.keys)

    def _content(self, source: Source) -> Picture:
        return Picture(pad_to_grid(central_part(_rgb(source), self.model.size)))

    def _style(self, source: Source) -> Picture:
        return Picture(central_part(_rgb(source), self.model.style_size))

    def _result(self, content: Picture, style: Picture, features: Features) -> Image.Image:
        """Finished, and without what the content was padded by."""
        size, result = self.model.size, self.model.finish(content, style, features)
        return to_image(result[:, : size.height, : size.width])


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
