"""Losses of every level on held-out pairs, by p_error: `make bench-quality ARGS=...`.

For each level `nst-batch evaluate`'s figures on 63 held-out pairs; for the noise's part, low again
as circuits compiled for other error probabilities would paint it.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.measure import FOLDER, provenance, write_result
from jobs.client.evaluation import held_out_pairs, make_samples, measure_samples, summarize
from jobs.client.preparation import prepare
from nst.engines.cache import ModelCache
from nst.model import Model
from nst.network.levels import LEVELS
from nst.training.vgg import VGG16

P_ERRORS = (0.05, 0.02, 0.01, 0.002)


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--content-dir", type=Path, required=True)
    parser.add_argument("--style-dir", type=Path, required=True)
    parser.add_argument("--vgg", type=Path, required=True)
    parser.add_argument("--count", type=int, default=63)
    arguments = parser.parse_args()
    vgg = VGG16(arguments.vgg)
    pairs = held_out_pairs(arguments.content_dir, arguments.style_dir, arguments.count)
    rows: list[dict[str, Any]] = []
    # Previews and simulated noise take no circuits: nothing is built.
    cache = FOLDER / "no-models"
    for name in (n for n, level in LEVELS.items() if level.trained):
        model = Model.load(name, cache)
        ready, failed = prepare(pairs, model, "crop")
        others = [p for p in P_ERRORS if name == "low" and p != model.level.p_error]
        for p_error in (model.level.p_error, *others):
            level = replace(model.level, p_error=p_error)
            noisy = Model(level, model.network, ModelCache(cache))
            samples, _ = make_samples(ready, noisy, 1, None)
            figures = summarize(measure_samples(samples, vgg, lambda done: None))
            rows.append(
                {
                    "quality": name,
                    "p_error": p_error,
                    "pairs": len(samples),
                    "failed": len(failed),
                    "figures": {label: asdict(summary) for label, summary in figures.items()},
                }
            )
            print(rows[-1], flush=True)
    command = "make bench-quality ARGS='--content-dir ... --style-dir ... --vgg ...'"
    print(write_result("quality", {**provenance(command), "rows": rows}))


if __name__ == "__main__":
    main()
