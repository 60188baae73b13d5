"""Commands for those who train: measure a level's pictures, and export weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.cli.examples import examples
from jobs.cli.options import options_from
from jobs.options import PreviewOptions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from jobs.client.evaluation import Summary
    from jobs.client.pairs import Pair, Skipped
    from jobs.client.pictures import Fit
    from nst.model import Model
    from nst.pictures.size import Size

SHEET, HELD_OUT = "evaluation.png", "pairs.csv"
_PATH = click.Path(path_type=Path)


@click.command(
    epilog=examples(
        "evaluate ./pairs --vgg vgg16.pth --results ./stylized --out ./report",
        "evaluate --content-dir coco --style-dir wikiart --vgg vgg16.pth --json report.json",
    )
)
@click.argument("pairs", type=_PATH, required=False)
@click.option("--content-dir", type=_PATH, help="Instead of PAIRS: photographs of the training.")
@click.option("--style-dir", type=_PATH, help="With --content-dir: paintings of the training.")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=63,
    show_default=True,
    help="How many fixed pairs of held-out pictures of these folders.",
)
@click.option("--vgg", "vgg_file", type=_PATH, required=True, help="VGG16 or VGG19 weights.")
@click.option("--quality", "-q", default="low", show_default=True, help="Quality level.")
@click.option("--weights", type=_PATH, help="Weights to measure instead of the level's own.")
@options_from(PreviewOptions, "grid", "size", "fit")
@click.option(
    "--simulate",
    "runs",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="RUNS",
    help="How often each pair is computed with the circuits' noise.",
)
@click.option(
    "--p-error",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Error probability of one PBS in the simulation.  [default: the level's]",
)
@click.option("--results", type=_PATH, help="Folder written by fetch: measure its pictures too.")
@click.option("--json", "record", help="Write all figures to this file; - is standard output.")
@click.option("--out", type=_PATH, help="Folder for the contact sheet.")
@click.option(
    "--magnify",
    type=click.IntRange(1, 8),
    default=2,
    show_default=True,
    help="Pixels of the sheet that a pixel takes each way.",
)
def evaluate(
    pairs: Path | None,
    content_dir: Path | None,
    style_dir: Path | None,
    count: int,
    vgg_file: Path,
    quality: str,
    weights: Path | None,
    grid: bool,
    size: Size | None,
    fit: Fit,
    runs: int,
    p_error: float | None,
    results: Path | None,
    record: str | None,
    out: Path | None,
    magnify: int,
) -> None:
    """Measure a quality level on PAIRS, or on held-out pictures of the training.

    Content, style (relative errors of VGG features) and grain of the preview, of simulated and of
    decrypted results, with their PSNR to the preview. Held-out pairs are always the same ones;
    --out DIR gets them as pairs.csv, which submit takes.
    """
    from rich.console import Console
    from rich.progress import Progress

    from jobs.client import evaluation
    from jobs.client.fetch import make_folder
    from jobs.client.pairs import find_pairs
    from jobs.client.preparation import prepared_pairs
    from nst.errors import InputError
    from nst.training.vgg import VGG16

    held_out = content_dir is not None and style_dir is not None
    if held_out == (pairs is not None) or (content_dir is None) != (style_dir is None):
        raise click.UsageError("give either PAIRS, or --content-dir and --style-dir")
    if grid and pairs is None:
        raise click.UsageError("--grid needs PAIRS; held-out pairs are fixed")
    model = _load(quality, weights, size, p_error)
    vgg = VGG16(vgg_file)
    if results is not None and not results.is_dir():
        raise InputError(f"{results} is no folder: name the one that fetch wrote")
    if out is not None:
        make_folder(out)
    found: list[Pair] = []
    failed: list[Skipped] = []
    if pairs is not None:
        found, failed = find_pairs(pairs, grid)
    elif content_dir is not None and style_dir is not None:
        found = evaluation.held_out_pairs(content_dir, style_dir, count)
    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        items = progress.track(
            prepared_pairs(found, model, fit), total=len(found), description="previews"
        )
        samples, missing = evaluation.make_samples(items, model, runs, results)
        task = progress.add_task("measuring", total=len(samples))
        measurements = evaluation.measure_samples(
            samples, vgg, lambda done: progress.advance(task, done)
        )
    failed += missing
    for item in failed:
        click.echo(f"failed {item.name}: {item.reason}", err=True)
    if not samples:
        raise InputError(f"none of the {len(failed)} pairs could be measured; see above")
    console = errors if record == "-" else Console()
    _print(
        console,
        f"{model.level.name}, {model.size} pixels, medians",
        evaluation.summarize(measurements),
        evaluation.count_lowered(samples),
        len(samples),
    )
    if record is not None:
        report = {
            "quality": model.level.name,
            "size": model.level.side,
            "width": model.size.width,
            "height": model.size.height,
            "p_error": model.level.p_error,
            "vgg": vgg.kind,
            **evaluation.to_record(samples, measurements),
            "failed": [item.__dict__ for item in failed],
        }
        _write_json(report, record)
    if out is not None:
        evaluation.write_sheet(samples, out / SHEET, magnify)
        if pairs is None:
            _write_csv(found, out / HELD_OUT)
        console.print(f"contact sheet: {out / SHEET}", highlight=False, soft_wrap=True)
    if failed:
        raise SystemExit(1)


@click.command(
    epilog=examples(
        "export runs/low/checkpoint.pt --quality low --out weights/low.safetensors \\\n"
        + '      --data "COCO-2014 and WikiArt, every 16th picture held out"',
        "export weights/high.safetensors --quality ultra --out weights/ultra.safetensors",
    )
)
@click.argument("checkpoints", type=_PATH, nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option("--quality", "-q", required=True, help="Level that these weights are for.")
@click.option("--out", type=_PATH, required=True, help="Destination .safetensors.")
@click.option(
    "--data",
    help="Description of the training pictures.  [default: that of the weights' card]",
)
@click.option(
    "--budget-pbs",
    type=click.FloatRange(min=0, min_open=True),
    default=22.0,
    show_default=True,
    help="Most PBS a pixel of output, style branch included.",
)
@click.option(
    "--strength",
    type=click.FloatRange(0, 2, min_open=True),
    default=1.0,
    show_default=True,
    help="Less than 1 gives back content for style, see evaluate; it costs nothing.",
)
@click.option(
    "--octaves",
    type=click.FloatRange(0, 1),
    show_default="that of the weights or of the run",
    help="How far the client brings the contrast of a result's finest octaves to its style's.",
)
@click.option(
    "--lattice",
    type=click.FloatRange(0, 1),
    show_default="that of the weights, 0 of a run",
    help="How much the client takes out of what repeats from cell to cell of a result.",
)
def export(
    checkpoints: tuple[Path, ...],
    quality: str,
    out: Path,
    data: str | None,
    budget_pbs: float,
    strength: float,
    octaves: float | None,
    lattice: float | None,
) -> None:
    """Write the last CHECKPOINT's network as weights with a card.

    CHECKPOINTs are the training runs in order, or one .safetensors, of another level as well:
    weights do not depend on the size of pictures. The circuits are compiled first:
    weights whose circuits are over the budget, or whose accumulators are too wide, are refused.
    """
    from rich.console import Console

    from jobs.client.home import Home
    from nst.network.levels import find_level
    from nst.training.export import export as export_weights

    with Console(stderr=True).status("compiling circuits"):
        card = export_weights(
            list(checkpoints),
            find_level(quality),
            out,
            data,
            Home.default().models,
            budget_pbs,
            strength,
            octaves,
            lattice,
        )
    costs = card["circuits"]
    click.echo(
        f"{out}: {card['steps']} steps, {costs['pbs_per_pair']:,} PBS a pair "
        f"({costs['pbs_per_pixel']:.2f} a pixel), {costs['mops_per_pbs']:.1f} million operations "
        f"a PBS, p_error {costs['p_error']:g}"
    )


def _load(quality: str, weights: Path | None, size: Size | None, p_error: float | None) -> Model:
    """The level's model, or one of the weights named instead; raises if these do not fit."""
    from dataclasses import replace

    from jobs.client.home import Home
    from nst.engines.cache import ModelCache
    from nst.errors import CircuitError
    from nst.model import Model
    from nst.network.architecture import grids
    from nst.network.levels import find_level, get_level
    from nst.network.weights import load_weights

    level = get_level(quality) if weights is None else find_level(quality)
    level = replace(level, p_error=p_error or level.p_error)
    network = load_weights(weights or level.weights)
    try:
        grids(network.architecture.stages(), level.side)
    except ValueError as error:
        raise CircuitError(
            f"weights {weights or level.weights} do not fit {quality}: {error}"
        ) from error
    return Model(level, network, ModelCache(Home.default().models), size)


def _print(
    console: Console,
    title: str,
    summaries: dict[str, Summary],
    contrast: dict[str, dict[str, float]],
    pairs: int,
) -> None:
    from rich.table import Table

    table: Table = Table(
        "picture",
        title=title,
        title_justify="left",
    )
    for heading in ("pictures", "content", "style", "grain", "PSNR to preview", "lowest"):
        table.add_column(heading, justify="right")
    for label, row in summaries.items():
        ratios = [row.psnr_median, row.psnr_min]
        table.add_row(
            label,
            str(row.pictures),
            *(f"{value:.3f}" for value in (row.content, row.style)),
            f"{row.grain:.2f}",
            *("" if ratio is None else f"{ratio:.1f} dB" for ratio in ratios),
        )
    console.print(table)
    parts = [
        f"{side} of {counted['lowered']} of {pairs} pairs (lowest {counted['lowest']:g})"
        for side, counted in contrast.items()
    ]
    console.print(f"contrast lowered: {', '.join(parts)}", highlight=False, soft_wrap=True)


def _write_json(report: dict[str, Any], target: str) -> None:
    from jobs.client.pictures import write_file

    text = json.dumps(report, indent=2) + "\n"
    if target == "-":
        click.echo(text, nl=False)
    else:
        write_file(text.encode(), Path(target))


def _write_csv(pairs: list[Pair], path: Path) -> None:
    """Pairs in the form that submit takes, so that their results have the same names."""
    import csv
    import io

    from jobs.client.pictures import write_file

    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["content", "style", "name"])
    for pair in pairs:
        writer.writerow([pair.content.resolve(), pair.style.resolve(), pair.name])
    write_file(lines.getvalue().encode(errors="surrogateescape"), path)
