"""Circuit plans that were never compiled, for tests of what only reads them."""

from __future__ import annotations

from itertools import product
from typing import Any

from jobs.storage.records import PairRecord
from nst.engines.concrete.graph import StagePlan
from nst.engines.concrete.plan import CircuitPlan
from nst.network.architecture import Architecture, grids


def made_up_plan(size: int = 64, body: int = 2, **sizes: Any) -> CircuitPlan:
    """The stages of a small network: per output element a PBS, 1,000 operations and a byte."""
    small = {"latent": 4, "up": 1, "style_stem": 2, "style_deep": 0, "code": 5, **sizes}
    stages = Architecture(body=body, **small).stages()
    shapes = grids(stages, size)
    plans = []
    for stage in stages:
        rows = shapes[stage.name].rows
        pbs_per_row = stage.out_channels * shapes[stage.name].width
        plans.append(
            StagePlan(
                name=stage.name,
                branch=stage.branch,
                sources=stage.sources,
                reads=stage.kind.reads,
                stride=stage.stride,
                modulated=stage.modulated,
                rows=rows,
                pbs=rows * pbs_per_row,
                operations=1000.0 * rows * pbs_per_row,
                output_bytes=pbs_per_row,
            )
        )
    return CircuitPlan("0" * 16, "0", size, size, size, 0.02, 1, 1, 1, 2048, 3, tuple(plans))


def grid_of_pairs(contents: int, styles: int) -> list[PairRecord]:
    """Every content with every style."""
    return [
        PairRecord(pair_id=f"p{c}{s}", content=f"c{c}", style=f"s{s}", result=f"p{c}{s}")
        for c, s in product(range(contents), range(styles))
    ]
