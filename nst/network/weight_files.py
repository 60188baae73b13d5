"""Files of trained weights: arrays, the engine that computes them, and a card beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from nst.errors import CircuitError

Arrays = Mapping[str, NDArray[Any]]


def write_weights(
    path: Path,
    engine: str,
    format: int,
    arrays: Arrays,
    metadata: dict[str, str],
    card: dict[str, Any],
) -> None:
    """Write `path` (`.safetensors`) and its card, `path` with `.json`.

    Args:
        path: Destination; replaced if it exists.
        engine: What computes such a network.
        format: Version of its names and shapes.
        arrays: Weights.
        metadata: What else the network is made of.
        card: How it was trained; the file's SHA-256 is added to it.
    """
    about = {"engine": engine, "format": str(format), **metadata}
    # Not `save_file`: of a full disk it raises an error of its own.
    path.write_bytes(save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, about))
    card = {**card, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


def read_weights(path: Path, engine: str, format: int) -> tuple[Arrays, dict[str, str]]:
    """Arrays and metadata that `write_weights` wrote.

    Raises:
        CircuitError: if the file is missing, damaged, of another engine or format, or not the one
            that the card beside it describes. Without a card it is taken as it is.
    """
    _check_card(path)
    with _opened(path) as file:
        metadata = file.metadata() or {}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if (made_for := _engine(metadata)) != engine:
        raise CircuitError(
            f"weights {path} are of engine {made_for}, not {engine}; name that engine, or other "
            "weights"
        )
    if metadata.get("format") != str(format):
        raise CircuitError(
            f"weights {path} have format {metadata.get('format')}, this version reads {format}; "
            "export them again"
        )
    return arrays, metadata


def engine_of(path: Path) -> str:
    """Name of the engine whose weights a file holds; raises CircuitError if it cannot be read."""
    with _opened(path) as file:
        return _engine(file.metadata() or {})


def _engine(metadata: Mapping[str, str]) -> str:
    # Files of the first engine are older than the second.
    return metadata.get("engine", "concrete")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CircuitError(f"weights {path} cannot be read ({error}); reinstall them") from error


def tensor(arrays: Arrays, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The array of that name; raises KeyError or ValueError if it is missing or misshapen."""
    if arrays[name].shape != shape:
        raise ValueError(f"{name} has shape {arrays[name].shape}, not {shape}")
    return arrays[name]


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
