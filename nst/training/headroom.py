"""How near the largest values of a leveled network come to what its parameters can hold.

Training bounds values by a penalty: nothing but unseen pictures shows whether they keep to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nst.engines.ckks.integers import integer_layers
from nst.engines.ckks.network import LeveledNetwork
from nst.engines.ckks.packing import content_cells, style_cells, style_side
from nst.engines.ckks.parameters import Parameters
from nst.pictures.picture import Picture
from nst.training.leveled import LeveledStyleTransfer
from nst.training.trainable import Conditions
from nst.training.validation import choose_pairs


def measure_headroom(
    network: LeveledNetwork,
    parameters: Parameters,
    side: int,
    contents: list[Path],
    styles: list[Path],
) -> dict[str, Any]:
    """The largest values that pairs of unseen pictures make, for a card.

    Args:
        network: What is exported.
        parameters: Of its engine.
        side: Of the level, in pixels.
        contents: Held-out photographs.
        styles: Held-out paintings.

    Returns:
        `pairs`; `largest_z`, the largest size of what is squared; `largest_result` and
        `largest_mean`, the largest value of a result and the largest mean of a channel as shares of
        what the parameters hold; `refused`, how many of the pairs a client would refuse.

    Raises:
        InputError: if none of the contents or of the styles can be used.
        CircuitError: if the parameters do not fit the network.
    """
    pairs = choose_pairs(contents, styles, side, style_side(side))
    trained = LeveledStyleTransfer.of(network, parameters).eval()
    trained.quantize(True)
    conditions = Conditions()
    largest, mean, refused = 0.0, 0.0, 0
    for content, style in ((Picture(c).white, Picture(s).white) for c, s in pairs):
        with torch.no_grad():
            code = trained.style_code(torch.from_numpy(style)[None], conditions)
            trained(torch.from_numpy(content)[None], code, conditions)
        cells = style_cells(style)
        integers = integer_layers(network, parameters, cells.shape[-1])
        around = content_cells(content, network.architecture.reach)
        values = integers.values(around, integers.style_code(cells))
        shares = integers.shares(values)
        largest, mean = max(largest, shares[0]), max(mean, shares[1])
        refused += max(shares) >= 1
    return {
        "pairs": len(pairs),
        "largest_z": round(conditions.largest, 3),
        "largest_result": round(largest, 4),
        "largest_mean": round(mean, 4),
        "refused": refused,
    }
