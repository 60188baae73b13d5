"""Turn a training checkpoint into shipped weights: `python -m nst.export --help`."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import torch

from nst.architecture import Architecture
from nst.network import StyleTransfer
from nst.weights import save_weights


def export(checkpoints: list[Path], out: Path, data: str, commit: str) -> dict[str, Any]:
    """Write the last checkpoint's network as weights with a card; returns the card.

    Args:
        checkpoints: The runs that led to it, in order; their times and steps are summed.
        out: Destination `.safetensors`.
        data: What it was trained on, for the card.
        commit: Commit of the training code.
    """
    states = [torch.load(path, map_location="cpu", weights_only=False) for path in checkpoints]
    last = states[-1]
    architecture = Architecture.from_dict(last["architecture"])
    network = StyleTransfer(architecture)
    network.load_state_dict(last["network"])
    network.quantize(True)
    card = {
        "size": last["options"]["size"],
        "architecture": architecture.to_dict(),
        "steps": sum(s["step"] for s in states),
        "training_minutes": round(sum(s["seconds"] for s in states) / 60, 1),
        "runs": [
            {"size": s["options"]["size"], "steps": s["step"], "options": s["options"]}
            for s in states
        ],
        "validation": last["validation"],
        "data": data,
        "commit": commit,
        "checkpoint_sha256": hashlib.sha256(checkpoints[-1].read_bytes()).hexdigest(),
    }
    save_weights(network.integers(), out, card)
    return card


def main() -> None:
    """Command line of the export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="runs in order, the last counts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", required=True, help="description of the training pictures")
    arguments = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    card = export(arguments.checkpoints, arguments.out, arguments.data, commit)
    print(f"{arguments.out}: step {card['steps']}, {card['validation']}")


if __name__ == "__main__":
    main()
