"""Commands for those who train: measure a level's pictures, and export weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.cli.examples import examples
from jobs.cli.options import on_command_line, takes
from jobs.cli.screen import Screen, complain, exit_if
from jobs.options import EvaluateOptions, ExportOptions
from nst.errors import CircuitError, InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from jobs.client.evaluation import Summary
    from jobs.client.pairs import Found, Pair
    from nst.model import Model
    from nst.training.quality import Figures

SHEET, HELD_OUT = "evaluation.png", "pairs.csv"
FIGURES = ("content", "style", "grain", "blockiness")


@click.command(
    epilog=examples(
        "evaluate ./pairs --vgg vgg16.pth --results ./stylized --out ./report",
        "evaluate --content-dir coco --style-dir wikiart --vgg vgg16.pth --json report.json",
        "evaluate --content-dir coco --strong-dir strong --vgg vgg16.pth --out ./report",
    )
)
@click.argument("pairs", type=click.Path(path_type=Path), required=False)
@takes(EvaluateOptions)
def evaluate(pairs: Path | None, options: EvaluateOptions) -> None:
    """Measure a quality level on PAIRS, or on held-out pictures of the training.

    Content, style (relative errors of VGG features), grain and blockiness of the preview, of
    simulated and of decrypted results, with their PSNR to the preview. Held-out pairs are always
    the same ones; --out DIR gets them as pairs.csv, which submit takes. With --strong-dir their
    styles are those of one half of a folder that nothing was trained on, and the spread is
    measured: how much results of one content differ with the style, over how much the styles do.
    """
    from rich.progress import Progress

    from jobs.client import evaluation
    from jobs.client.fetch import make_folder
    from jobs.client.pictures import write_file
    from jobs.client.preparation import prepared_pairs
    from nst.training.vgg import VGG16

    _require_one_source(pairs, options)
    model, vgg, out = _load(options), VGG16(options.vgg), options.out
    if options.results is not None and not options.results.is_dir():
        raise InputError(f"{options.results} is no folder: name the one that fetch wrote")
    if out is not None:
        make_folder(out)
    found, failed = _find(pairs, options)
    if out is not None:
        _refuse_overwriting(out, None if pairs is not None else _csv_of(found))
    errors = Screen(errors=True).console
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        items = progress.track(
            prepared_pairs(found, model, options.fit), total=len(found), description="previews"
        )
        samples, missing = evaluation.make_samples(items, model, options.runs, options.results)
        task = progress.add_task("measuring", total=len(samples))
        measurements = evaluation.measure_samples(
            samples, vgg, lambda done: progress.advance(task, done)
        )
        grid = [] if pairs is not None else _find_grid(options)
        items = progress.track(
            prepared_pairs(grid, model, options.fit), total=len(grid), description="spread"
        )
        spreads = evaluation.measure_spread(evaluation.make_samples(items, model, 0, None)[0], vgg)
    failed += missing
    for item in failed:
        complain(f"failed {item.name}: {item.reason}")
    if not samples:
        raise InputError(f"none of the {len(failed)} pairs could be measured; see above")
    screen = Screen(errors=options.record == "-")
    _print(
        screen.console,
        f"{model.level.name}, {model.size} pixels",
        evaluation.summarize(measurements),
        spreads,
        evaluation.count_lowered(samples),
        len(samples),
    )
    if options.record is not None:
        report = {
            "engine": model.engine.name,
            "quality": model.level.name,
            "size": model.level.side,
            "width": model.size.width,
            "height": model.size.height,
            "p_error": model.level.p_error,
            "vgg": vgg.kind,
            "half": options.half if pairs is None and options.strong_dir else None,
            **evaluation.to_record(samples, measurements, spreads),
            "failed": [item.__dict__ for item in failed],
        }
        _write_json(report, options.record)
    if out is not None:
        evaluation.write_sheet(samples, out / SHEET, options.magnify)
        if pairs is None:
            write_file(_csv_of(found), out / HELD_OUT)
        screen.say(f"contact sheet: {out / SHEET}")
    exit_if(bool(failed))


def _require_one_source(pairs: Path | None, options: EvaluateOptions) -> None:
    """Raise click.UsageError unless there are either pairs or folders of contents and of styles."""
    styles = options.style_dir if options.strong_dir is None else options.strong_dir
    both = options.content_dir is not None and styles is not None
    # A file may name the folders for train.
    named = on_command_line("content_dir", "style_dir", "strong_dir")
    if named if pairs is not None else not both:
        raise click.UsageError(
            "give either PAIRS, or --content-dir and --style-dir, or --content-dir and --strong-dir"
        )
    if on_command_line("half") and (pairs is not None or options.strong_dir is None):
        raise click.UsageError("--half needs --strong-dir")
    if on_command_line("grid") and pairs is None:
        raise click.UsageError("--grid needs PAIRS; held-out pairs are fixed")


def _find(pairs: Path | None, options: EvaluateOptions) -> Found:
    from jobs.client.held_out import held_out_pairs, refuse_trained, strong_pairs
    from jobs.client.pairs import find_pairs

    if pairs is not None:
        return find_pairs(pairs, options.grid)
    contents, styles, strong = options.content_dir, options.style_dir, options.strong_dir
    assert contents is not None
    if strong is None:
        assert styles is not None
        return held_out_pairs(contents, styles, options.count), []
    for trained in (folder for folder in (contents, styles) if folder is not None):
        refuse_trained(strong, trained)
    return strong_pairs(contents, strong, options.half, options.count), []


def _find_grid(options: EvaluateOptions) -> list[Pair]:
    """What the spread is measured on: nothing without strong styles."""
    from jobs.client.held_out import spread_pairs

    if options.content_dir is None or options.strong_dir is None:
        return []
    return spread_pairs(options.content_dir, options.strong_dir, options.half)


@click.command(
    epilog=examples(
        "export runs/low/checkpoint.ckpt --quality low --out weights/low.safetensors \\\n"
        + '      --data "COCO-2014 and WikiArt, every 16th picture held out"',
        "export weights/high.safetensors --quality ultra --out weights/ultra.safetensors",
        "export runs/ckks/checkpoint.ckpt --quality low --out weights/ckks.safetensors \\\n"
        + '      --content-dir coco --style-dir wikiart --data "COCO-2014 and WikiArt"',
    )
)
@click.argument(
    "checkpoints",
    type=click.Path(path_type=Path),
    nargs=-1,
    required=True,
    metavar="CHECKPOINT...",
)
@takes(ExportOptions)
def export(checkpoints: tuple[Path, ...], options: ExportOptions) -> None:
    """Write the last CHECKPOINT's network as weights with a card.

    CHECKPOINTs are the training runs in order, or one .safetensors, of another level as well:
    weights do not depend on the size of pictures. What the engine computes is published first:
    weights whose circuits are over the budget, whose accumulators are too wide, or that do not fit
    the parameters are refused.
    """
    from rich.console import Console

    from jobs.client.home import Home
    from nst.network.levels import find_level
    from nst.training.export import HeldOut
    from nst.training.export import export as export_weights

    contents, styles = options.content_dir, options.style_dir
    if (contents is None) != (styles is None):
        raise click.UsageError("give both --content-dir and --style-dir, or neither")
    held_out = HeldOut(contents, styles) if contents and styles else None
    with Console(stderr=True).status("publishing"):
        card = export_weights(
            list(checkpoints),
            find_level(options.quality),
            options.out,
            options.data,
            Home.default().models,
            options.budget_pbs,
            options.strength,
            options.octaves,
            options.lattice,
            held_out,
        )
    click.echo(f"{options.out}: {card['steps']} steps, {_summary(card)}")


def _summary(card: dict[str, Any]) -> str:
    """What a card says of costs, or of the largest values."""
    if (values := card.get("headroom")) is not None:
        return (
            f"largest |z| {values['largest_z']:g}, largest result {values['largest_result']:.2g} "
            f"and largest mean {values['largest_mean']:.2g} of the headroom, {values['refused']} "
            f"of {values['pairs']} held-out pairs beyond it"
        )
    costs = card["circuits"]
    return (
        f"{costs['pbs_per_pair']:,} PBS per pair "
        f"({costs['pbs_per_pixel']:.2f} per pixel), {costs['mops_per_pbs']:.1f} million "
        f"operations per PBS, p_error {costs['p_error']:g}"
    )


def _load(options: EvaluateOptions) -> Model:
    """The level's model, or that of the weights named instead; raises if these do not fit."""
    from jobs.client.home import Home
    from nst.engines import get_engine
    from nst.engines.cache import ModelCache
    from nst.model import Model
    from nst.network.architecture import grids
    from nst.network.integers import IntegerNetwork
    from nst.network.levels import find_level, get_level
    from nst.network.weight_files import engine_of

    # A file of weights says itself whose they are.
    find = get_level if options.weights is None else find_level
    level = find(options.quality, options.engine)
    weights = options.weights or level.weights
    engine = get_engine(engine_of(weights))
    network = engine.load_network(weights)
    if isinstance(network, IntegerNetwork):
        try:
            grids(network.architecture.stages(), level.side)
        except ValueError as error:
            raise CircuitError(
                f"weights {weights} do not fit {options.quality}: {error}"
            ) from error
    if options.p_error is not None:
        level = replace(level, p_error=options.p_error)
    return Model(level, network, ModelCache(Home.default().models), options.size, engine)


def _print(
    console: Console,
    title: str,
    summaries: dict[str, Summary],
    spreads: dict[str, float],
    contrast: dict[str, dict[str, float]],
    pairs: int,
) -> None:
    table = _table(f"{title}, medians", ("pictures", *FIGURES, "PSNR to preview", "lowest"))
    worst = _table("worst tenth begins at", FIGURES)
    for label, row in summaries.items():
        ratios = [row.psnr_median, row.psnr_min]
        shown = ("" if ratio is None else f"{ratio:.1f} dB" for ratio in ratios)
        table.add_row(label, str(row.pictures), *_shown(row.median), *shown)
        worst.add_row(label, *_shown(row.worst))
    console.print(table)
    console.print(worst)
    if spreads:
        shown = (f"{label} {value:.2f}" for label, value in spreads.items())
        console.print(f"spread: {', '.join(shown)}", highlight=False, soft_wrap=True)
    parts = [
        f"{side} of {counted['lowered']} of {pairs} pairs (lowest {counted['lowest']:g})"
        for side, counted in contrast.items()
    ]
    console.print(f"contrast lowered: {', '.join(parts)}", highlight=False, soft_wrap=True)


def _table(title: str, headings: Iterable[str]) -> Table:
    from rich.table import Table

    table: Table = Table("picture", title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _shown(figures: Figures) -> list[str]:
    """As many digits of each of `FIGURES` as mean something."""
    losses = (f"{value:.3f}" for value in (figures.content, figures.style))
    return [*losses, *(f"{value:.2f}" for value in (figures.grain, figures.blockiness))]


def _write_json(report: dict[str, Any], target: str) -> None:
    from jobs.client.pictures import write_file

    text = json.dumps(report, indent=2) + "\n"
    if target == "-":
        click.echo(text, nl=False)
    else:
        write_file(text.encode(), Path(target))


def _refuse_overwriting(out: Path, pairs: bytes | None) -> None:
    """Before any work: raise InputError if a file of the user's would be replaced."""
    from jobs.client.pictures import is_own

    listed = out / HELD_OUT
    others = [] if is_own(out / SHEET) else [out / SHEET]
    if pairs is not None and listed.exists() and not _holds(listed, pairs):
        others.append(listed)
    if others:
        raise InputError(f"{others[0]} is not of this command: move it, or use another --out")


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def _csv_of(pairs: list[Pair]) -> bytes:
    """Pairs in the form that submit takes, so that their results have the same names."""
    import csv
    import io

    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["content", "style", "name"])
    for pair in pairs:
        writer.writerow([pair.content.resolve(), pair.style.resolve(), pair.name])
    return lines.getvalue().encode(errors="surrogateescape")
