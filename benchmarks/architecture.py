"""Short runs of several architectures under one budget: `make bench-architecture ARGS=...`.

Every variant is trained afresh at low for the same few steps on the same pictures; the table in
`benchmarks/architecture.md` tells what came out. Losses of short runs rank architectures, they do
not predict what long training reaches.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import provenance, write_result
from nst.network.architecture import Architecture
from nst.training.checkpoint import Checkpoint, RunFolder
from nst.network.levels import LEVELS
from nst.engines.concrete.plan import count_pbs
from nst.training.loop import Options, Run, Trainer, Worker

FIRST: dict[str, Any] = {
    "body": 4,
    "coarse": 0,
    "coarse_body": 0,
    "dense": 2,
    "reads_pixels": False,
    "code": 64,
    "code_layers": 1,
    "leaky": False,
}
LAYERED: dict[str, Any] = {**FIRST, "code": 128, "code_layers": 2}
ALL: dict[str, Any] = {**LAYERED, "dense": 9, "reads_pixels": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "first": FIRST,
    "layered code": LAYERED,
    "dense, pixels": ALL,
    "coarse": {**LAYERED, "coarse": 64, "coarse_body": 3, "body": 2},
    "coarse, dense, pixels": {**ALL, "coarse": 64, "coarse_body": 3, "body": 2},
    "more coarse": {**ALL, "coarse": 96, "coarse_body": 4, "body": 1, "latent": 28},
    "wide": {**ALL, "latent": 52, "body": 2},
    "narrow up": {**ALL, "latent": 34, "up": 8},
    "no coarse, leaky": {"coarse": 0, "coarse_body": 0, "body": 4},
    "default": {},
}
"""Sizes that differ from `Architecture()`."""


def main() -> None:
    """Train all variants, or those that are named, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--content-dir", type=Path, required=True)
    parser.add_argument("--style-dir", type=Path, required=True)
    parser.add_argument("--vgg", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()
    options = Options(
        size=LEVELS["low"].size,
        max_iter=arguments.steps,
        warm_up=arguments.steps // 5,
        lr=1.5e-3,
        lr_decay=0.03,
        style_weight=6.0,
        consistency_weight=40.0,
        scales=(1.0,),
    )
    torch.set_num_threads(1)
    rows = []
    for name in arguments.variants:
        architecture = Architecture(**VARIANTS[name])
        with tempfile.TemporaryDirectory() as folder:
            run = Run(
                options,
                arguments.content_dir,
                arguments.style_dir,
                arguments.vgg,
                Path(folder) / "run",
                sizes=VARIANTS[name],
                save_every=math.inf,
            )
            Trainer(run, Worker()).train()
            reached = Checkpoint.read(RunFolder(run.out).last)
        rows.append(
            {
                "variant": name,
                "sizes": VARIANTS[name],
                "pbs": count_pbs(architecture, options.size),
                "minutes": reached.seconds / 60,
                **reached.validation,
            }
        )
        print(rows[-1], flush=True)
    command = "make bench-architecture ARGS='--content-dir ... --style-dir ... --vgg ...'"
    print(write_result("architecture", {**provenance(command), "rows": rows}))


if __name__ == "__main__":
    main()
