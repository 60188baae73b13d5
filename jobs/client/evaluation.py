"""Measures what a quality level makes of pairs: previewed, simulated with noise, decrypted."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.client.pairs import Pair, Skipped, safe_name
from jobs.client.pictures import Box, Floats, read_picture, write_file
from jobs.client.preparation import PreparedPair
from nst.pictures.size import Size
from nst.pictures.color import colored
from nst.training.dataset import list_pictures, split
from nst.errors import InputError
from nst.network.integers import IntegerNetwork
from nst.training.quality import Comparison, Figures, measure, psnr
from nst.engines.concrete.simulation import rounding_noise, simulate
from nst.stylize import to_image
from nst.training.vgg import MIN_SIDE, VGG16

UNTOUCHED, COLOUR = "untouched", "colours only"
PREVIEW, SIMULATED, DECRYPTED = "preview", "simulated", "decrypted"
LABELS = (UNTOUCHED, COLOUR, PREVIEW, SIMULATED, DECRYPTED)
"""What is measured, in the order in which it is shown; the first two are references."""
AGAINST_PREVIEW = (SIMULATED, DECRYPTED)
"""What has a PSNR to the preview."""

SEED = 7
"""Of the fixed pairs and of the simulated noise."""
GROUPS = 3
"""Pairs beside each other on the sheet."""
GAP = 4
"""Pixels between the pictures of a pair; pairs stand four times as far apart."""
BACKGROUND = (24, 24, 27)


@dataclass(frozen=True)
class Sample:
    """A pair with all results to be measured, cut to the part that its content fills.

    Attributes:
        pair: What it was made from.
        content: `[3, H, W]` in [0, 1].
        results: Pictures of the content's size by label; several if there were several runs.
    """

    pair: PreparedPair
    content: Floats
    results: dict[str, list[Floats]]


@dataclass(frozen=True)
class Measured:
    """One result's figures, and its PSNR to the preview in dB if it has one."""

    figures: Figures
    psnr: float | None


@dataclass(frozen=True)
class Summary:
    """Medians over all measured results of a label."""

    pictures: int
    content: float
    style: float
    grain: float
    psnr_median: float | None
    psnr_min: float | None


Measurements = list[dict[str, list[Measured]]]
"""By pair, then by label, then by run."""


def held_out_pairs(contents: Path, styles: Path, count: int) -> list[Pair]:
    """Fixed pairs of pictures that training never saw, the same whenever they are asked for.

    Contents are drawn at random with a fixed seed, styles are taken in turn. Names begin with a
    number, which makes them distinct.

    Args:
        contents: Folder of photographs that training was given.
        styles: Folder of paintings that training was given.
        count: How many pairs.

    Raises:
        InputError: if a folder holds no pictures.
    """
    _, held_contents = split(list_pictures(contents))
    _, held_styles = split(list_pictures(styles))
    rng = random.Random(SEED)
    chosen = [(rng.choice(held_contents), held_styles[i % len(held_styles)]) for i in range(count)]
    return [
        Pair(safe_name(f"{i:03d}-{content.stem}--{style.stem}"), content, style)
        for i, (content, style) in enumerate(chosen)
    ]


def make_samples(
    pairs: Iterable[PreparedPair],
    network: IntegerNetwork,
    runs: int,
    p_error: float,
    decrypted: Path | None,
) -> tuple[list[Sample], list[Skipped]]:
    """All results of the pairs, and what is missing of them.

    Args:
        pairs: Ready to encrypt.
        network: The level's network.
        runs: How often each pair is simulated with noise.
        p_error: Error probability of one PBS in the simulation.
        decrypted: Folder that a fetch wrote, with a PNG file a pair.
    """
    noise = rounding_noise(p_error, np.random.default_rng(SEED))
    samples, missing = [], []
    for pair in pairs:
        if min(pair.box.right - pair.box.left, pair.box.bottom - pair.box.top) < MIN_SIDE:
            reason = f"too narrow to measure, less than {MIN_SIDE} pixels: use --fit crop"
            missing.append(Skipped(pair.name, reason))
            continue
        results = {
            UNTOUCHED: [pair.content.rgb],
            COLOUR: [colored(pair.content.white, pair.style.statistics)],
            PREVIEW: [pair.preview(network)],
        }
        gains = (pair.content_gain, pair.style_gain)
        if runs:
            results[SIMULATED] = [
                simulate(network, pair.content, pair.style, gains, noise) for _ in range(runs)
            ]
        cut = {label: [_cut(p, pair.box) for p in pictures] for label, pictures in results.items()}
        if decrypted is not None:
            try:
                cut[DECRYPTED] = [_read_result(decrypted / f"{pair.name}.png", pair.box)]
            except InputError as error:
                missing.append(Skipped(pair.name, str(error)))
        samples.append(Sample(pair, _cut(pair.content.rgb, pair.box), cut))
    return samples, missing


def measure_samples(
    samples: Sequence[Sample], vgg: VGG16, progress: Callable[[int], None]
) -> Measurements:
    """Figures of every result; `progress` is told how many more pairs are measured."""
    comparisons = [
        Comparison(s.content, s.pair.style.rgb, [p for ps in s.results.values() for p in ps])
        for s in samples
    ]
    out: Measurements = []
    for sample, figures in zip(samples, measure(vgg, comparisons, progress), strict=True):
        (preview,), rest = sample.results[PREVIEW], iter(figures)
        out.append(
            {
                label: [
                    Measured(next(rest), psnr(p, preview) if label in AGAINST_PREVIEW else None)
                    for p in pictures
                ]
                for label, pictures in sample.results.items()
            }
        )
    return out


def summarize(measurements: Measurements) -> dict[str, Summary]:
    """Medians by label, over all pairs and runs."""
    out = {}
    for label in LABELS:
        found = [m for pair in measurements for m in pair.get(label, [])]
        if not found:
            continue
        ratios = [m.psnr for m in found if m.psnr is not None]
        out[label] = Summary(
            pictures=len(found),
            content=float(np.median([m.figures.content for m in found])),
            style=float(np.median([m.figures.style for m in found])),
            grain=float(np.median([m.figures.grain for m in found])),
            psnr_median=float(np.median(ratios)) if ratios else None,
            psnr_min=min(ratios) if ratios else None,
        )
    return out


def count_lowered(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """By side: how many pairs have it encrypted at less than full contrast, and the least."""
    gains = {
        "content": [s.pair.content_gain for s in samples],
        "style": [s.pair.style_gain for s in samples],
    }
    return {
        side: {"lowered": sum(g < 1 for g in of_side), "lowest": min(of_side)}
        for side, of_side in gains.items()
    }


def to_record(samples: Sequence[Sample], measurements: Measurements) -> dict[str, Any]:
    """Medians and single pairs as JSON can hold them; a PSNR of equal pictures is null."""
    return {
        "medians": {k: _finite(asdict(v)) for k, v in summarize(measurements).items()},
        "contrast": count_lowered(samples),
        "pairs": [
            {
                "name": sample.pair.name,
                "content_gain": sample.pair.content_gain,
                "style_gain": sample.pair.style_gain,
                "results": {
                    label: [_finite({**asdict(m.figures), "psnr": m.psnr}) for m in runs]
                    for label, runs in measured.items()
                },
            }
            for sample, measured in zip(samples, measurements, strict=True)
        ],
    }


def write_sheet(samples: Sequence[Sample], path: Path, magnify: int) -> None:
    """Write a PNG: content, style, preview and, where there are any, simulated and decrypted.

    Args:
        samples: What to show; of several simulated runs the first.
        path: Destination; replaced if it exists.
        magnify: How many pixels of the sheet, hard-edged, a pixel takes each way.

    Raises:
        InputError: if it cannot be written.
    """
    labels = [
        name for name in (PREVIEW, *AGAINST_PREVIEW) if any(name in s.results for s in samples)
    ]
    pair = samples[0].pair
    high, wide = (magnify * side for side in pair.content.rgb.shape[1:])
    style_high, style_wide = (magnify * side for side in pair.style.rgb.shape[1:])
    columns = min(GROUPS, len(samples))
    step_x = (1 + len(labels)) * (wide + GAP) + style_wide + GAP + 3 * GAP
    step_y = max(high, style_high) + GAP
    rows = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * step_x, rows * step_y + GAP), BACKGROUND)
    for index, sample in enumerate(samples):
        left, top = index % columns * step_x + 2 * GAP, index // columns * step_y + GAP
        shown: list[tuple[Floats | None, int]] = [
            (sample.content, wide),
            (sample.pair.style.rgb, style_wide),
        ]
        shown += [(sample.results.get(name, [None])[0], wide) for name in labels]
        for picture, step in shown:
            if picture is not None:
                _, height, width = picture.shape
                image = to_image(picture).resize(
                    (width * magnify, height * magnify), Image.Resampling.NEAREST
                )
                sheet.paste(image, (left, top))
            left += step + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_file(buffer.getvalue(), path)


def _cut(picture: Floats, box: Box) -> Floats:
    return np.ascontiguousarray(picture[:, box.top : box.bottom, box.left : box.right])


def _read_result(path: Path, box: Box) -> Floats:
    """A decrypted picture as fetch wrote it, `[3, H, W]`; raises InputError if it is another."""
    width, height = box.right - box.left, box.bottom - box.top
    # Brought to the size that it has, the picture keeps its pixels.
    picture, inner = read_picture(path, Size(width, height), "crop")
    with Image.open(path) as header:
        size = header.size
    if size != (width, height):
        raise InputError(
            f"{path} has {size[0]} x {size[1]} pixels, not {width} x {height}: "
            "it was made at another --quality, --size or --fit"
        )
    return _cut(picture, inner)


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """A record without the keys that do not apply, and with null for what JSON cannot hold."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
        if value is not None
    }
