"""Accumulators that wrap around, by a fixed contrast: `make bench-contrast ARGS=...`.

A service's customer encrypts at one contrast, without the network that would tell which is safe
(see `nst.engines.concrete.preparation`). For held-out photographs and styles: values outside of the
circuits' accumulators, and how far the preview at that contrast is from the usual one.
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import FOLDER, provenance, psnr, write_result
from jobs.client.pictures import read_picture
from nst.engines.base import PreparedInput
from nst.engines.concrete.preparation import quantized
from nst.model import Model
from nst.network.architecture import ACCUMULATOR_MAX, ACCUMULATOR_MIN, CONTENT, STYLE
from nst.network.integers import AccumulatorRange, IntegerNetwork, Ints
from nst.pictures.picture import Picture, to_image
from nst.training.dataset import list_pictures, split

CONTRASTS = (1.0, 0.88, 0.76, 0.7, 0.64, 0.52)


class Outside(AccumulatorRange):
    """Counts the values that no accumulator holds."""

    count = 0

    def include(self, accumulators: Ints) -> None:
        """See `AccumulatorRange`."""
        super().include(accumulators)
        outside = (accumulators < ACCUMULATOR_MIN) | (accumulators > ACCUMULATOR_MAX)
        self.count += int(outside.sum())


def at_contrast(
    model: Model, content: Picture, style: Picture, contrast: float
) -> tuple[int, np.ndarray[Any, Any]]:
    """Values outside, and the preview with 8 bits."""
    network, seen = model.network, Outside()
    assert isinstance(network, IntegerNetwork)
    code = network.style_code(quantized(PreparedInput(style, STYLE, contrast)), seen)
    pixels = quantized(PreparedInput(content, CONTENT, contrast))
    features = network.content_features(pixels, code.astype(np.int64), seen)
    shown = to_image(model.finish(content, style, features.astype(np.float32)))
    return seen.count, np.asarray(shown)


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--content-dir", type=Path, required=True)
    parser.add_argument("--style-dir", type=Path, required=True)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--levels", nargs="+", default=["draft", "low", "mid", "high"])
    arguments = parser.parse_args()
    contents = split(list_pictures(arguments.content_dir))[1]
    styles, rng = list_pictures(arguments.style_dir), random.Random(3)
    pairs = [(rng.choice(contents), rng.choice(styles)) for _ in range(arguments.count)]
    rows = []
    for name in arguments.levels:
        model = Model.load(name, FOLDER / "no-models")
        pictures = [
            (
                Picture(read_picture(content, model.size, "crop")[0]),
                Picture(read_picture(style, model.style_size, "crop")[0]),
            )
            for content, style in pairs
        ]
        usual = []
        for content, style in pictures:
            prepared = model.prepare_style(style)
            features = model.prepare_content(content, prepared).features
            usual.append(np.asarray(to_image(model.finish(content, style, features))))
        for contrast in CONTRASTS:
            found = [at_contrast(model, *pair, contrast) for pair in pictures]
            counts = [count for count, _ in found]
            rows.append(
                {
                    "quality": name,
                    "contrast": contrast,
                    "pairs": len(counts),
                    "pairs_with_wrapped_values": sum(count > 0 for count in counts),
                    "wrapped_values_per_pair": statistics.fmean(counts),
                    "most_wrapped_values": max(counts),
                    "psnr_db_to_usual_preview": statistics.median(
                        psnr(shown, reference)
                        for (_, shown), reference in zip(found, usual, strict=True)
                    ),
                }
            )
            print(rows[-1], flush=True)
    command = "make bench-contrast ARGS='--content-dir ... --style-dir ...'"
    print(write_result("contrast", {**provenance(command), "rows": rows}))


if __name__ == "__main__":
    main()
