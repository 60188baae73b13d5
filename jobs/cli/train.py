"""`nst-batch train`: train the network of a quality level."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from jobs.cli.examples import examples
from jobs.client.wording import many
from nst.errors import InputError

EXIT_FAILED = 1
WATCH_EVERY = 0.5
"""Seconds between two looks at the metrics."""
_folder = click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True)
_file = click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True)
_weight = click.FloatRange(min=0)


@click.command(
    epilog=examples(
        "train --content-dir coco --style-dir wikiart --vgg vgg16.pth \\\n"
        + "      --quality low --workers 2 --out runs/low",
        "train --content-dir coco --style-dir wikiart --vgg vgg16.pth \\\n"
        + "      --out runs/low --resume",
    )
)
@click.option("--content-dir", type=_folder, required=True, help="Photographs, at any depth.")
@click.option("--style-dir", type=_folder, required=True, help="Paintings, at any depth.")
@click.option("--vgg", type=_file, required=True, help="VGG weights that losses are measured in.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    required=True,
    help="The run's folder: checkpoints, metrics, samples.",
)
@click.option("--quality", "-q", default="low", show_default=True, help="Decides the size.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
@click.option("--init", type=_file, help="Start from a run's .pt or from shipped .safetensors.")
@click.option(
    "--architecture",
    default="{}",
    help="Sizes that differ from those of --init, or of the default network, as JSON.",
)
@click.option("--max-iter", type=click.IntRange(min=1), default=20_000, show_default=True)
@click.option(
    "--style-steps",
    type=click.IntRange(min=0),
    show_default="2500, none with --init",
    help="Steps in which the style branch alone learns what a style is.",
)
@click.option(
    "--warm-up",
    type=click.IntRange(min=0),
    show_default="a tenth of --max-iter, none with --init",
    help="Steps before quantization.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=2),
    default=8,
    show_default=True,
    help="Pairs a worker and step.",
)
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True)
@click.option(
    "--lr-decay",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Learning rate at the end, as a share of --lr; a cosine leads there.",
)
@click.option("--content-weight", type=_weight, default=1.0, show_default=True)
@click.option("--style-weight", type=_weight, default=7.0, show_default=True)
@click.option(
    "--ssc-weight",
    type=_weight,
    default=0.35,
    show_default=True,
    help="Style signal contrastive loss.",
)
@click.option(
    "--grain-weight",
    type=_weight,
    default=0.5,
    show_default=True,
    help="Hatching and checkerboards.",
)
@click.option(
    "--grain-allowed",
    type=_weight,
    default=0.6,
    show_default=True,
    help="Grain up to which nothing is lost, in terms of the inputs' grain.",
)
@click.option(
    "--overflow-weight",
    type=_weight,
    default=2.0,
    show_default=True,
    help="Accumulators that leave their 10 bits.",
)
@click.option(
    "--idle-weight",
    type=_weight,
    default=0.1,
    show_default=True,
    help="Channels that do not use their levels.",
)
@click.option(
    "--consistency-weight",
    type=_weight,
    default=20.0,
    show_default=True,
    help="Difference of two noisy passes; not 0 costs a second pass.",
)
@click.option(
    "--lattice-weight",
    type=_weight,
    default=3.0,
    show_default=True,
    help="Patterns that repeat from cell to cell.",
)
@click.option(
    "--octaves",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="How far the client will bring the contrast of a result's finest octaves to its style's.",
)
@click.option(
    "--p-error",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    show_default="that of the circuits",
    help="Decides the noise trained with.",
)
@click.option(
    "--scales", default="1.0,1.5", show_default=True, help="Enlargements that VGG sees, in turn."
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--gpu/--cpu", default=False, show_default=True, help="A GPU for each worker.")
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Train on a running Ray cluster, `auto` on one of its nodes; all must see the folders.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="PyTorch's, of each worker.",
)
@click.option(
    "--save-every",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds between two checkpoints.",
)
@click.option(
    "--cache",
    type=click.IntRange(min=0),
    show_default="2 GB on a CPU, 0 on a GPU",
    help="Crops of contents and of styles that a worker keeps with their VGG features.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Of VGG.",
)
def train(
    content_dir: Path,
    style_dir: Path,
    vgg: Path,
    out: Path,
    quality: str,
    resume: bool,
    init: Path | None,
    architecture: str,
    max_iter: int,
    style_steps: int | None,
    warm_up: int | None,
    p_error: float | None,
    scales: str,
    workers: int,
    gpu: bool,
    cluster: str | None,
    threads: int,
    save_every: float,
    cache: int | None,
    precision: str,
    **options: Any,
) -> None:
    """Train the network of a quality level on folders of photographs and paintings.

    Files that cannot be read are passed over. A worker that dies is replaced, and a run that was
    stopped goes on with --resume; both continue from the last checkpoint in --out.
    """
    from nst.network.levels import find_level

    level, enlarged = find_level(quality), _scales(scales)
    sizes = {**level.sizes, **_sizes(architecture)}

    # Heavy imports, after everything that can be found wrong without them.
    from cluster.local import local_ray, running_ray
    from cluster.train import TrainingError, Workers
    from cluster.train import train as train_on_ray
    from nst.training.loop import Options, Run

    if warm_up is None:
        warm_up = 0 if init else max_iter // 10
    if style_steps is not None:
        options["style_steps"] = style_steps
    elif init:
        options["style_steps"] = 0
    if p_error is not None:
        options["p_error"] = p_error
    run = Run(
        Options(
            size=level.side,
            max_iter=max_iter,
            warm_up=warm_up,
            scales=enlarged,
            **options,
        ),
        content_dir=content_dir,
        style_dir=style_dir,
        vgg=vgg,
        out=out,
        init=init,
        sizes=sizes,
        resume=resume,
        save_every=save_every,
        cache=cache,
        precision=precision,
    )
    run.check()
    if gpu and cluster is None:
        _require_gpus(workers)
    try:
        ray = local_ray(workers * threads) if cluster is None else running_ray(cluster)
        with ray, _progress(out / "metrics.jsonl", max_iter):
            steps = train_on_ray(run, Workers(workers, gpu, threads))
    except TrainingError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(EXIT_FAILED) from error
    click.echo(f"{steps} steps; {out / 'best.pt'} has the lowest score of held-out pictures")


def _require_gpus(workers: int) -> None:
    """Raise InputError if this machine has too few GPUs: Ray would wait for more, for ever."""
    import torch

    there = torch.cuda.device_count()
    if there < workers:
        raise InputError(
            f"--gpu wants a GPU for each of {many(workers, 'worker')}, and PyTorch finds {there} "
            "here: leave --gpu out, lower --workers, or name a --cluster"
        )


def _sizes(architecture: str) -> dict[str, Any]:
    try:
        sizes = json.loads(architecture)
    except ValueError as error:
        raise InputError(f"--architecture {architecture!r} is no JSON ({error})") from error
    if not isinstance(sizes, dict):
        raise InputError(f"--architecture {architecture!r} is no JSON object")
    return sizes


def _scales(text: str) -> tuple[float, ...]:
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--scales {text!r} is no list of numbers such as 1.0,1.5") from error
    if not all(0.5 <= scale <= 4 for scale in scales):
        raise InputError(f"--scales {text!r} must be between 0.5 and 4")
    return scales


@contextmanager
def _progress(metrics: Path, max_iter: int) -> Iterator[None]:
    """Print what a run writes into its metrics, wherever its workers are."""
    follower, stop = _Follower(metrics), threading.Event()

    def show() -> None:
        for record in follower.new():
            _print(record, max_iter)

    def watch() -> None:
        while not stop.wait(WATCH_EVERY):
            show()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        show()


class _Follower:
    """Reads the lines that are added to a file, which a restarted run replaces by a shorter one."""

    def __init__(self, path: Path) -> None:
        self.path, self._inode, self._position = path, 0, 0
        if path.exists():
            self._inode, self._position = path.stat().st_ino, path.stat().st_size

    def new(self) -> list[dict[str, Any]]:
        """Records since the last call, of this start of the run."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            replaced = inode != self._inode
            self._inode, self._position = inode, 0 if replaced else self._position
            file.seek(self._position)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._position += len(whole) + len(newline)
        records = [json.loads(line) for line in whole.splitlines()]
        if replaced:
            starts = [i for i, record in enumerate(records) if "options" in record]
            return records[starts[-1] :] if starts else []
        return records


def _print(record: dict[str, Any], max_iter: int) -> None:
    def figures(of: dict[str, float], *names: str) -> str:
        return ", ".join(f"{name} {of[name]:.3f}" for name in names)

    for reason in record.get("skipped_now", []):
        click.echo(f"skipped: {reason}", err=True)
    at = f"step {record['step']} of {max_iter}"
    if "options" in record:
        click.echo(f"{at}: starting, {many(record['workers'], 'worker')}")
    if "style_told" in record:
        click.echo(f"{at}: the style code tells {record['style_told']:.0%} of a new style")
    if "calibration" in record:
        click.echo(f"{at}: quantized from here on")
    if "held_out" in record:
        held_out = figures(record["held_out"], "content", "style", "grain")
        click.echo(f"{at}: saved, held out: {held_out}, score {record['score']:.3f}")
    elif "train" in record:
        train = figures(record["train"], "total", "content", "style", "ssc", "overflow")
        click.echo(f"{at}, {record['seconds'] / 60:.1f} min: {train}")
