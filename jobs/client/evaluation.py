"""Measures what a quality level makes of pairs: previewed, simulated with noise, decrypted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from jobs.client.pairs import Skipped
from jobs.client.pictures import Box, Floats, cut_out, write_marked
from jobs.client.preparation import PreparedPair
from nst.errors import InputError
from nst.model import Model
from nst.pictures.color import colored
from nst.pictures.picture import to_array, to_image
from nst.pictures.reading import read_rgb
from nst.pictures.sheet import BACKGROUND, Shown, contact_sheet
from nst.pictures.size import Size
from nst.training.quality import Comparison, Figures, eight_bits, measure, psnr
from nst.training.spread import spread, texture
from nst.training.vgg import MIN_SIDE, VGG16

UNTOUCHED, COLOUR = "untouched", "colours only"
PREVIEW, SIMULATED, DECRYPTED = "preview", "simulated", "decrypted"
LABELS = (UNTOUCHED, COLOUR, PREVIEW, SIMULATED, DECRYPTED)
"""What is measured, in the order in which it is shown; the first two are references."""
AGAINST_PREVIEW = (SIMULATED, DECRYPTED)
"""What has a PSNR to the preview."""

SPREAD_OVER = (COLOUR, PREVIEW)
"""What is measured with one content and many styles."""

SEED = 7
"""Of the simulated noise."""
WORST = 90
"""Percentile that stands for the worst tenth: a tenth of all results are above it, linearly
interpolated."""
GROUPS = 3
"""Pairs beside each other on the sheet."""


@dataclass(frozen=True)
class Sample:
    """A pair with all results to be measured, cut to the part that its content fills.

    Attributes:
        pair: What it was made from.
        content: `[3, H, W]` in [0, 1].
        style: `[3, S, S]` in [0, 1].
        results: Pictures of the content's size by label; several if there were several runs.
    """

    pair: PreparedPair
    content: Floats
    style: Floats
    results: dict[str, list[Floats]]


@dataclass(frozen=True)
class Measured:
    """One result's figures, and its PSNR to the preview in dB if it has one."""

    figures: Figures
    psnr: float | None


@dataclass(frozen=True)
class Summary:
    """All measured results of a label.

    Attributes:
        pictures: How many.
        median: Of each figure by itself.
        worst: The 90th percentile of each figure by itself: a tenth of the results are worse.
        psnr_median: In dB to the preview, of those that have one.
        psnr_min: The lowest.
    """

    pictures: int
    median: Figures
    worst: Figures
    psnr_median: float | None
    psnr_min: float | None


Measurements = list[dict[str, list[Measured]]]
"""By pair, then by label, then by run."""


def make_samples(
    items: Iterable[PreparedPair | Skipped], model: Model, runs: int, decrypted: Path | None
) -> tuple[list[Sample], list[Skipped]]:
    """All results of the pairs, and what is missing of them.

    Args:
        items: Pairs that are ready to encrypt, and what had to be left out.
        model: What they were prepared for; its level says how often noise changes a value.
        runs: How often each pair is simulated with the noise of ciphertexts.
        decrypted: Folder that a fetch wrote, with a PNG file per pair.
    """
    rng = np.random.default_rng(SEED)
    samples, missing = [], []
    for pair in items:
        if isinstance(pair, Skipped):
            missing.append(pair)
            continue
        if min(pair.box.size.width, pair.box.size.height) < MIN_SIDE:
            reason = f"too narrow to measure, less than {MIN_SIDE} pixels: use --fit crop"
            missing.append(Skipped(pair.name, reason))
            continue
        content, style = pair.content.input.picture, pair.style.input.picture
        results = {
            UNTOUCHED: [content.rgb],
            COLOUR: [colored(content.white, style.statistics)],
            PREVIEW: [pair.preview(model)],
        }
        if runs:
            results[SIMULATED] = [
                model.simulate(pair.content, pair.style, rng) for _ in range(runs)
            ]
        cut = {label: [_cut(p, pair.box) for p in pictures] for label, pictures in results.items()}
        if decrypted is not None:
            try:
                cut[DECRYPTED] = [_read_result(decrypted / f"{pair.name}.png", pair.box.size)]
            except InputError as error:
                missing.append(Skipped(pair.name, str(error)))
        samples.append(Sample(pair, _cut(content.rgb, pair.box), style.rgb, cut))
    return samples, missing


def measure_samples(
    samples: Sequence[Sample], vgg: VGG16, progress: Callable[[int], None]
) -> Measurements:
    """Figures of every result; `progress` is told how many more pairs are measured."""
    comparisons = [
        Comparison(s.content, s.style, [p for ps in s.results.values() for p in ps])
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
    """What the figures of each label are, over all pairs and runs."""
    out = {}
    for label in LABELS:
        found = [m for pair in measurements for m in pair.get(label, [])]
        if not found:
            continue
        ratios = [m.psnr for m in found if m.psnr is not None]
        out[label] = Summary(
            pictures=len(found),
            median=_quantile([m.figures for m in found], 50),
            worst=_quantile([m.figures for m in found], WORST),
            psnr_median=float(np.median(ratios)) if ratios else None,
            psnr_min=min(ratios) if ratios else None,
        )
    return out


def measure_spread(samples: Sequence[Sample], vgg: VGG16) -> dict[str, float]:
    """By label, how much results of one content differ with the style, mean over the contents.

    Args:
        samples: Contents with several styles each; see `jobs.client.held_out.spread_pairs`.
        vgg: Features to compare in.
    """
    by_content: dict[int, list[Sample]] = {}
    for sample in samples:
        # Pairs that share a file share its picture.
        by_content.setdefault(id(sample.pair.content.input.picture), []).append(sample)
    found: dict[str, list[float]] = {label: [] for label in SPREAD_OVER}
    for group in by_content.values():
        if len(group) < 2:
            continue
        styles = texture(vgg, [s.style for s in group])
        for label, values in found.items():
            results = texture(vgg, [eight_bits(s.results[label][0]) for s in group])
            values.append(spread(results, styles))
    return {label: float(np.mean(values)) for label, values in found.items() if values}


def count_lowered(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """By side: how many pairs have it encrypted at less than full contrast, and the least."""
    gains = {
        "content": [s.pair.content.input.contrast for s in samples],
        "style": [s.pair.style.input.contrast for s in samples],
    }
    return {
        side: {"lowered": sum(g < 1 for g in of_side), "lowest": min(of_side)}
        for side, of_side in gains.items()
    }


def to_record(
    samples: Sequence[Sample], measurements: Measurements, spreads: dict[str, float]
) -> dict[str, Any]:
    """Medians, worst tenths, spreads and single pairs; a PSNR of equal pictures is null."""
    summaries = summarize(measurements)
    return {
        "medians": {k: _flat(v) for k, v in summaries.items()},
        "worst_tenth": {k: asdict(v.worst) for k, v in summaries.items()},
        "spread": spreads,
        "contrast": count_lowered(samples),
        "pairs": [
            {
                "name": sample.pair.name,
                "content_gain": sample.pair.content.input.contrast,
                "style_gain": sample.pair.style.input.contrast,
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
    shapes = [s.content.shape[1:] for s in samples] + [s.style.shape[1:] for s in samples]
    height, width = (magnify * max(sides) for sides in zip(*shapes, strict=True))

    def shown(picture: Floats | None) -> Shown:
        return BACKGROUND if picture is None else to_image(picture)

    groups = [
        [
            *(shown(picture) for picture in (sample.content, sample.style)),
            *(shown(sample.results.get(label, [None])[0]) for label in labels),
        ]
        for sample in samples
    ]
    write_marked(contact_sheet(groups, Size(width, height), GROUPS), path)


def _quantile(figures: list[Figures], percent: float) -> Figures:
    """A percentile of each figure by itself."""
    return Figures(
        *(
            float(np.percentile([getattr(each, field.name) for each in figures], percent))
            for field in fields(Figures)
        )
    )


def _flat(summary: Summary) -> dict[str, Any]:
    """Medians with the number of pictures before them and PSNRs behind, as JSON can hold them."""
    ratios = {"psnr_median": summary.psnr_median, "psnr_min": summary.psnr_min}
    return _finite({"pictures": summary.pictures, **asdict(summary.median), **ratios})


def _cut(picture: Floats, box: Box) -> Floats:
    return np.ascontiguousarray(cut_out(picture, box))


def _read_result(path: Path, size: Size) -> Floats:
    """A decrypted picture as fetch wrote it, `[3, H, W]`; raises InputError if it is another."""
    image = read_rgb(path)
    if image.size != (size.width, size.height):
        raise InputError(
            f"{path} has {Size(*image.size)} pixels, not {size}: "
            "it was made at another --quality, --size or --fit"
        )
    return to_array(image)


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """A record without the keys that do not apply, and with null for what JSON cannot hold."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
        if value is not None
    }
