"""From features to a picture: the client's last linear layer and what it does to plain pixels."""

from __future__ import annotations

from typing import Protocol

from nst.pictures.color import Floats, colored
from nst.pictures.lattice import without_lattice
from nst.pictures.octaves import match_octaves
from nst.pictures.picture import Picture


class Network(Protocol):
    """What the client needs of an engine's network to make a picture of its features.

    Attributes:
        octaves: How far the result's octaves are brought to the style's.
        lattice: How much of what repeats from cell to cell is taken out.
    """

    @property
    def octaves(self) -> float: ...

    @property
    def lattice(self) -> float: ...

    def finish(self, white: Floats, features: Floats) -> Floats:
        """The last linear layer: a standardized result `[3, H, W]` in whitened space."""
        ...


def finish(network: Network, content: Picture, style: Picture, features: Floats) -> Floats:
    """Decrypted (or clear) features of the last stage to an RGB result `[3, H, W]` in [0, 1]."""
    white = network.finish(content.white, features)
    if network.lattice:
        white = without_lattice(white, network.lattice)
    if network.octaves:
        white = match_octaves(white, style.white, network.octaves)
    return colored(white, style.statistics)
