"""From features to a picture: the client's last linear layer and what it does to plain pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nst.network.integers import IntegerNetwork
from nst.pictures.color import colored
from nst.pictures.lattice import without_lattice
from nst.pictures.octaves import match_octaves
from nst.pictures.picture import Picture

Floats = NDArray[np.float32]


def finish(network: IntegerNetwork, content: Picture, style: Picture, features: Floats) -> Floats:
    """Decrypted (or clear) features of the last stage to an RGB result `[3, H, W]` in [0, 1]."""
    white = network.finish(content.white, features)
    if network.lattice:
        white = without_lattice(white, network.lattice)
    if network.octaves:
        white = match_octaves(white, style.white, network.octaves)
    return colored(white, style.statistics)
