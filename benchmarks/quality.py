"""Quality of both engines' levels on held-out pairs: `make bench-quality ARGS=...`.

For each engine and level `nst-batch evaluate`'s figures on held-out photographs, with the deciding
half of a folder of strong styles and with held-out paintings; for the noise's part, low of engine
concrete again as circuits compiled for other error probabilities would paint it.

A row is recorded as soon as it is measured and replaces the one of the same engine, level and
pairs: `--engine`, `--quality` and `--styles` renew a part. Each row has its date and commit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import FOLDER, provenance, read_result, write_result
from jobs.client.evaluation import (
    COLOUR,
    PREVIEW,
    SIMULATED,
    UNTOUCHED,
    make_samples,
    measure_samples,
    measure_spread,
    summarize,
)
from jobs.client.held_out import held_out_pairs, spread_pairs, strong_pairs
from jobs.client.pairs import Pair
from jobs.client.preparation import prepare
from nst.engines.cache import ModelCache
from nst.model import Model
from nst.network.levels import DEFAULT_ENGINE, LEVELS, ONE_FOR_ALL, levels_of
from nst.training.halves import DECIDING
from nst.training.vgg import VGG16

RECORD = "quality"
COMMAND = "make bench-quality ARGS='--content-dir ... --style-dir ... --strong-dir ... --vgg ...'"
ENGINES = (*ONE_FOR_ALL, DEFAULT_ENGINE)
STRONG, PAINTINGS = f"strong, {DECIDING} half", "held-out paintings"
"""What a row's styles are."""
STYLES = {"strong": STRONG, "paintings": PAINTINGS}
DATA = ("content_dir", "style_dir", "strong_dir", "vgg")
FIGURES = {"content": 3, "style": 3, "grain": 2, "blockiness": 2}
"""What a table shows, with so many digits."""
SHOWN_AS = {
    UNTOUCHED: "untouched content",
    COLOUR: "colour statistics only",
    PREVIEW: "preview",
    SIMULATED: "simulated",
}
SHOWN = tuple(SHOWN_AS)
PAIRS, PAIRS_OF_LARGE = 63, 32
LARGE = 256
"""Pixels from which a level is measured on fewer pairs: a pair takes half a minute of a core."""
P_ERRORS = (0.05, 0.02, 0.01, 0.002)
# Previews and simulated noise take no circuits: nothing is built.
CACHE = FOLDER / "no-models"


@dataclass(frozen=True)
class Task:
    """A row to measure.

    Attributes:
        model: Engine, level and error probability.
        styles: `STRONG` or `PAINTINGS`.
        pairs: What is measured.
        grid: What the spread is measured on, if it is.
    """

    model: Model
    styles: str
    pairs: list[Pair]
    grid: list[Pair]


def main() -> None:
    """Measure, print and record."""
    arguments = _arguments()
    if arguments.tables:
        print(*tables(read_result(RECORD)["rows"]).values(), sep="\n", end="")
        return
    missing = [name for name in DATA if getattr(arguments, name) is None]
    if missing:
        raise SystemExit(f"give --{missing[0].replace('_', '-')}")
    torch.set_num_threads(arguments.threads)
    vgg = VGG16(arguments.vgg)
    # Of the code that runs, whatever is committed meanwhile.
    commit = provenance(COMMAND)["commit"]
    for task in _tasks(arguments):
        row = _measure(task, vgg, commit)
        print(json.dumps(row), flush=True)
        print(write_result(RECORD, _merged(row)))


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """By what styles are, the table of docs/training.md: median, and where the worst tenth begins.

    Rows of other error probabilities than the levels' are left out.
    """
    found = {}
    for styles in STYLES.values():
        lines = ["| | " + " | ".join((*FIGURES, "spread", "PSNR")) + " |", "|---" * 7 + "|"]
        for name in LEVELS:
            of_level = [
                row
                for row in rows
                if (row["quality"], row["styles"]) == (name, styles)
                and row["p_error"] in (None, LEVELS[name].p_error)
            ]
            # References are the same with every engine.
            references = [(of_level[0], label, "") for label in SHOWN[:2]] if of_level else []
            own = [(row, label, f", {row['engine']}") for row in of_level for label in SHOWN[2:]]
            lines += [
                _line(f"{name}{engine}: {SHOWN_AS[label]}", row, label)
                for row, label, engine in references + own
                if label in row["figures"]
            ]
        found[styles] = "\n".join(lines) + "\n"
    return found


def _line(title: str, row: dict[str, Any], label: str) -> str:
    figures, spread = row["figures"][label], row["spread"].get(label)
    # Rows of earlier commits have fewer figures.
    median, worst = figures["median"], figures.get("worst")
    cells = []
    for name, digits in FIGURES.items():
        shown = "" if name not in median else f"{median[name]:.{digits}f}"
        cells.append(shown if worst is None else f"{shown} ({worst[name]:.{digits}f})")
    cells.append("" if spread is None else f"{spread:.2f}")
    ratio = figures["psnr_median"]
    cells.append("" if ratio is None else f"{ratio:.1f} dB")
    return f"| {title} | " + " | ".join(cells) + " |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in DATA:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path)
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--quality", nargs="+", help="levels; all if not given")
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES))
    parser.add_argument("--count", type=int, help=f"pairs; {PAIRS}, {PAIRS_OF_LARGE} of ultra")
    parser.add_argument("--tables", action="store_true", help="print the record as tables")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def _tasks(arguments: argparse.Namespace) -> Iterator[Task]:
    """Strong styles first: they are what weights are judged by."""
    contents, strong = arguments.content_dir, arguments.strong_dir
    for styles in arguments.styles:
        for engine in arguments.engine:
            for level in levels_of(engine):
                if arguments.quality and level.name not in arguments.quality:
                    continue
                # One network for all levels is not meant for the draft, which is a small network.
                if not level.trained or (engine in ONE_FOR_ALL and level.name == "draft"):
                    continue
                count = arguments.count or (PAIRS if level.side < LARGE else PAIRS_OF_LARGE)
                model = Model.load(level.name, CACHE, engine=engine)
                if styles == "strong":
                    pairs = strong_pairs(contents, strong, DECIDING, count)
                    yield Task(model, STRONG, pairs, spread_pairs(contents, strong, DECIDING))
                    continue
                pairs = held_out_pairs(contents, arguments.style_dir, count)
                yield Task(model, PAINTINGS, pairs, [])
                if engine == DEFAULT_ENGINE and level.name == "low":
                    for p_error in P_ERRORS:
                        if p_error != level.p_error:
                            yield Task(_compiled_for(model, p_error), PAINTINGS, pairs, [])


def _compiled_for(model: Model, p_error: float) -> Model:
    level = replace(model.level, p_error=p_error)
    return Model(level, model.network, ModelCache(CACHE), engine=model.engine)


def _measure(task: Task, vgg: VGG16, commit: str) -> dict[str, Any]:
    model, engine = task.model, task.model.engine.name
    ready, failed = prepare(task.pairs, model, "crop")
    # The noise of the leveled engine is far below what a picture of 8 bits shows.
    samples, _ = make_samples(ready, model, int(engine == DEFAULT_ENGINE), None)
    figures = summarize(measure_samples(samples, vgg, lambda done: None))
    grid, _ = make_samples(prepare(task.grid, model, "crop")[0], model, 0, None)
    return {
        "engine": engine,
        "quality": model.level.name,
        "styles": task.styles,
        "p_error": model.level.p_error if engine == DEFAULT_ENGINE else None,
        "pairs": len(samples),
        "failed": len(failed),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "weights": json.loads(model.level.weights.with_suffix(".json").read_text()).get("sha256"),
        "figures": {label: asdict(summary) for label, summary in figures.items()},
        "spread": measure_spread(grid, vgg),
    }


def _merged(row: dict[str, Any]) -> dict[str, Any]:
    """The record with a row in the place of the one that it renews, or at its end."""
    rows = read_result(RECORD).get("rows", [])
    places = [i for i, other in enumerate(rows) if _key(other) == _key(row)]
    if places:
        rows[places[0]] = row
    else:
        rows.append(row)
    return {**provenance(COMMAND), "rows": rows}


def _key(row: dict[str, Any]) -> tuple[object, ...]:
    return tuple(row.get(name) for name in ("engine", "quality", "styles", "p_error"))


if __name__ == "__main__":
    main()
