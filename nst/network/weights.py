"""Trained weights on disk: one safetensors file with a JSON card beside it.

The file holds integers (int8 weights, int32 biases) and the client's float32 last layer, and the
architecture in its metadata, so that loading needs no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nst.errors import CircuitError
from nst.network.architecture import UPSAMPLE, Architecture
from nst.network.integers import IntegerNetwork, IntegerStage, Ints

FORMAT = 1


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
        "format": str(FORMAT),
        "architecture": json.dumps(network.architecture.to_dict()),
        "octaves": str(network.octaves),
        "lattice": str(network.lattice),
    }
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path, metadata)
    path.chmod(0o644)  # safetensors makes files that only their owner can read
    card = {**card, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


def load_weights(path: Path) -> IntegerNetwork:
    """Read weights written by `save_weights`.

    Raises:
        CircuitError: if the file is missing, damaged, of another format or architecture, or not
            the one that the card beside it describes. Without a card it is taken as it is.
    """
    _check_card(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CircuitError(f"weights {path} cannot be read ({error}); reinstall them") from error
    if metadata.get("format") != str(FORMAT):
        raise CircuitError(
            f"weights {path} have format {metadata.get('format')}, this version reads {FORMAT}; "
            "export them again"
        )
    try:
        architecture = Architecture.from_dict(json.loads(metadata["architecture"]))
        stages = {}
        for stage in architecture.stages():
            kernel = stage.kind.kernel

            def integers(name: str, *shape: int, prefix: str = stage.name) -> Ints:
                return _tensor(arrays, f"{prefix}.{name}", shape).astype(np.int64)

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
            _tensor(arrays, "head.weight", (head, architecture.up, 3, 3)),
            _tensor(arrays, "head.bias", (head,)),
            _tensor(arrays, "skip", (3, 3)),
            float(metadata.get("octaves", 0)),
            float(metadata.get("lattice", 0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CircuitError(f"weights {path} do not fit the network ({error})") from error


def _check_card(path: Path) -> None:
    """Raises CircuitError if there is a card beside the weights that is not theirs."""
    card = path.with_suffix(".json")
    if not (path.is_file() and card.is_file()):
        return
    try:
        recorded = json.loads(card.read_text())["sha256"]
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CircuitError(
            f"card {card} of weights {path} cannot be read ({error!r}); reinstall both"
        ) from error
    if recorded != actual:
        raise CircuitError(
            f"weights {path} are not those of their card {card} (SHA-256 {actual[:12]}..., the "
            f"card has {str(recorded)[:12]}...); reinstall both or export them again"
        )


def _tensor(arrays: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The array of that name; raises KeyError or ValueError if it is missing or misshapen."""
    if arrays[name].shape != shape:
        raise ValueError(f"{name} has shape {arrays[name].shape}, not {shape}")
    return arrays[name]
