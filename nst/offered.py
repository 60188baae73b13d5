"""A model whose weights only its owner has, as a customer uses it: keys, encryption, decryption."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from nst.engines import get_engine
from nst.engines.base import (
    Features,
    PreparedContent,
    PreparedInput,
    PreparedStyle,
    Published,
)
from nst.engines.cache import ModelCache
from nst.errors import CircuitError
from nst.model import Model
from nst.network.architecture import CONTENT, STYLE
from nst.network.last_layer import LastLayer
from nst.network.levels import QualityLevel
from nst.pictures.color import Floats
from nst.pictures.picture import Picture
from nst.pictures.size import Size


class OfferedModel(Model):
    """A model known by its plan, its client bundle and its last linear layer.

    Nothing of its results is known before they are decrypted: `PreparedContent.features` and
    `PreparedStyle.code` have size 0.
    """

    def __init__(
        self,
        offer_id: str,
        quality: str,
        published: Published,
        last: LastLayer,
        size: Size,
        contrast: float,
    ) -> None:
        """Put together what its owner publishes.

        Args:
            offer_id: Of the offer.
            quality: Name of its level.
            published: Plan and client bundle, on this machine; there is no server bundle.
            last: The last linear layer.
            size: Of contents and results in pixels, not padded.
            contrast: Of every encrypted picture: what keeps accumulators safe that cannot be seen
                here (see `nst.engines.concrete.preparation`).

        Raises:
            CircuitError: if the model does not compute that size.
        """
        engine, plan = get_engine(published.plan.engine), published.plan
        level = QualityLevel(quality, plan.style_size.width, published.folder)
        super().__init__(level, last, ModelCache(published.folder.parent), size, engine)
        self.published = Published(published.folder, plan.at(size.padded))
        self.offer_id, self.contrast = offer_id, contrast

    @property
    def style_size(self) -> Size:
        """See `Model`."""
        return self.plan.style_size

    @property
    def model_id(self) -> str:
        """See `Model`."""
        return self.plan.model_id

    def as_submitted(self, model_id: str) -> Model:
        """See `Model`: it is never another."""
        if model_id != self.model_id:
            raise CircuitError(f"model {model_id} is not the offered one, {self.model_id}")
        return self

    def prepare_style(self, style: Picture) -> PreparedStyle:
        """See `Model`; the style's code is not known."""
        return PreparedStyle(PreparedInput(style, STYLE, self.contrast), np.empty(0, np.float32))

    def prepare_content(self, content: Picture, style: PreparedStyle) -> PreparedContent:
        """See `Model`; the features are not known."""
        prepared = PreparedInput(content, CONTENT, self.contrast)
        return PreparedContent(prepared, np.empty((0, 0, 0), np.float32))

    def finish(self, content: Picture, style: Picture, features: Features) -> Floats:
        """See `Model`; raises CircuitError if the last layer is not that of these features."""
        try:
            return super().finish(content, style, features)
        except ValueError as error:
            raise CircuitError(
                f"the last layer of model {self.model_id} does not fit its results; ask its owner"
            ) from error

    def simulate(self, content: PreparedContent, style: PreparedStyle, rng: Generator) -> Floats:
        """See `Model`; raises CircuitError: only the owner has the network."""
        raise CircuitError(f"only the owner of model {self.model_id} can compute it in the clear")
