"""Short runs of several architectures under one budget: `make bench-architecture ARGS=...`.

Every variant is trained afresh at low for the same few steps on the same pictures;
`benchmarks/architecture.md` tells what came out of these and of earlier ones. Losses of short runs
rank architectures, they do not predict what long training reaches.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import provenance, write_result
from nst.engines.concrete.plan import count_pbs
from nst.network.architecture import Architecture
from nst.network.levels import LEVELS
from nst.training.checkpoint import Checkpoint, RunFolder
from nst.training.loop import Run, Trainer, Worker
from nst.training.options import TrainOptions

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "wide": {"latent": 52, "body": 2},
    "deep": {"latent": 28, "body": 4},
    "narrow up": {"latent": 34, "up": 8},
    "small style": {"style_stem": 16, "style_body": 32, "style_deep": 0, "style_rows": 48},
    "short code": {"code": 64},
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
    level = LEVELS["low"]
    options = TrainOptions(
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
                level=level,
                options=options,
                content_dir=arguments.content_dir,
                style_dir=arguments.style_dir,
                vgg=arguments.vgg,
                out=Path(folder) / "run",
                sizes=VARIANTS[name],
                save_every=math.inf,
            )
            Trainer(run, Worker()).train()
            reached = Checkpoint.read(RunFolder(run.out).last)
        rows.append(
            {
                "variant": name,
                "sizes": VARIANTS[name],
                "pbs": count_pbs(architecture, level.side),
                "minutes": reached.seconds / 60,
                **reached.validation,
            }
        )
        print(rows[-1], flush=True)
    command = "make bench-architecture ARGS='--content-dir ... --style-dir ... --vgg ...'"
    print(write_result("architecture", {**provenance(command), "rows": rows}))


if __name__ == "__main__":
    main()
