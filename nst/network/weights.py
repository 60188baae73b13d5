"""Trained weights on disk: one safetensors file with a JSON card beside it.

The file holds integers (int8 weights, int32 biases) and the client's float32 last layer, and the
architecture in its metadata, so that loading needs no PyTorch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nst.errors import CircuitError
from nst.network.architecture import UPSAMPLE, Architecture
from nst.network.integers import IntegerNetwork, IntegerStage, Ints
from nst.network.weight_files import read_weights, tensor, write_weights

ENGINE, FORMAT = "concrete", 1


def save_weights(network: IntegerNetwork, path: Path, card: dict[str, Any]) -> None:
    """Write `path` (`.safetensors`) and its card, `path` with `.json`.

    Args:
        network: What was trained.
        path: Destination; replaced if it exists.
        card: How it was trained; the file's SHA-256 is added to it.
    """
    arrays: dict[str, NDArray[Any]] = {
        "head.weight": network.head_weight,
        "head.bias": network.head_bias,
        "skip": network.skip,
    }
    for name, stage in network.stages.items():
        arrays[f"{name}.weight"] = stage.weight.astype(np.int8)
        arrays[f"{name}.bias"] = stage.bias.astype(np.int32)
        if stage.modulation is not None:
            arrays[f"{name}.modulation"] = stage.modulation.astype(np.int8)
    metadata = {
        "architecture": json.dumps(network.architecture.to_dict()),
        "octaves": str(network.octaves),
        "lattice": str(network.lattice),
    }
    write_weights(path, ENGINE, FORMAT, arrays, metadata, card)


def load_weights(path: Path) -> IntegerNetwork:
    """Read weights written by `save_weights`.

    Raises:
        CircuitError: see `nst.network.weight_files.read_weights`; or of another architecture.
    """
    arrays, metadata = read_weights(path, ENGINE, FORMAT)
    try:
        architecture = Architecture.from_dict(json.loads(metadata["architecture"]))
        stages = {}
        for stage in architecture.stages():
            kernel = stage.kind.kernel

            def integers(name: str, *shape: int, prefix: str = stage.name) -> Ints:
                return tensor(arrays, f"{prefix}.{name}", shape).astype(np.int64)

            stages[stage.name] = IntegerStage(
                stage,
                integers("weight", stage.out_channels, stage.in_channels, kernel, kernel),
                integers("bias", stage.out_channels),
                integers("modulation", stage.out_channels, architecture.code)
                if stage.modulated
                else None,
            )
        head = 3 * UPSAMPLE * UPSAMPLE
        return IntegerNetwork(
            architecture,
            stages,
            tensor(arrays, "head.weight", (head, architecture.up, 3, 3)),
            tensor(arrays, "head.bias", (head,)),
            tensor(arrays, "skip", (3, 3)),
            float(metadata.get("octaves", 0)),
            float(metadata.get("lattice", 0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CircuitError(f"weights {path} do not fit the network ({error})") from error
