"""The networks that can be trained, by the engine that computes them."""

from __future__ import annotations

from nst.training.leveled import LeveledStyleTransfer
from nst.training.network import StyleTransfer
from nst.training.trainable import Trainable

TRAINABLE: dict[str, type[Trainable]] = {
    kind.engine: kind for kind in (StyleTransfer, LeveledStyleTransfer)
}
