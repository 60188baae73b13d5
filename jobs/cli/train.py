"""`nst-batch train`: train the network of a quality level."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from jobs.cli.examples import examples
from jobs.cli.options import takes
from jobs.cli.screen import complain
from jobs.client.wording import many
from jobs.options import TrainCommand
from nst.errors import InputError
from nst.network.levels import find_level
from nst.training.options import RunOptions, TrainOptions, Workers

EXIT_FAILED = 1
WATCH_EVERY = 0.5
"""Seconds between two looks at the metrics."""


@click.command(
    epilog=examples(
        "train --content-dir coco --style-dir wikiart --vgg vgg16.pth \\\n"
        + "      --quality low --workers 2 --out runs/low",
        "train --content-dir coco --style-dir wikiart --vgg vgg16.pth \\\n"
        + "      --out runs/low --resume",
    )
)
@takes(TrainCommand)
def train(options: TrainCommand) -> None:
    """Train the network of a quality level on folders of photographs and paintings.

    Files that cannot be read are passed over. A worker that dies is replaced, and a run that was
    stopped goes on with --resume; both continue from the last checkpoint in --out.
    """
    level, sizes = find_level(options.quality), _sizes(options.architecture)

    # Heavy imports, after everything that can be found wrong without them.
    from cluster.local import local_ray, running_ray
    from cluster.train import TrainingError
    from cluster.train import train as train_on_ray
    from nst.training.loop import Run

    def part(kind: type) -> dict[str, Any]:
        return {each.name: getattr(options, each.name) for each in fields(kind)}

    # Workers may run in another folder.
    given = part(RunOptions).items()
    places: dict[str, Any] = {k: v.resolve() if isinstance(v, Path) else v for k, v in given}
    run = Run(level=level, options=TrainOptions(**part(TrainOptions)), sizes=sizes, **places)
    workers = Workers(**part(Workers))
    run.check()
    if options.cluster is None:
        if options.gpu:
            _require_gpus(options.workers)
        ray = local_ray(options.workers * options.threads)
    else:
        ray = running_ray(options.cluster)
    try:
        with ray, _progress(run.out / "metrics.jsonl", options.max_iter):
            steps = train_on_ray(run, workers)
    except TrainingError as error:
        complain(f"error: {error}")
        raise SystemExit(EXIT_FAILED) from error
    best = run.out / "best.ckpt"
    there = "has the lowest score of held-out pictures"
    which = there if best.exists() else "is not there: no score of held-out pictures was finite"
    click.echo(f"{steps} steps; {best} {which}")


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
    def figure(value: float | None) -> str:
        return "not finite" if value is None else f"{value:.3f}"

    def figures(of: dict[str, float | None], *names: str) -> str:
        return ", ".join(f"{name} {figure(of[name])}" for name in names)

    for reason in record.get("skipped_now", []):
        complain(f"skipped: {reason}")
    at = f"step {record['step']} of {max_iter}"
    if "options" in record:
        pictures = f"{record['contents']} contents and {record['styles']} styles"
        click.echo(f"{at}: starting, {many(record['workers'], 'worker')}, {pictures}")
    if record.get("style_told") is not None:
        click.echo(f"{at}: the style code tells {record['style_told']:.0%} of a new style")
    if "calibration" in record:
        click.echo(f"{at}: quantized from here on")
    if "held_out" in record:
        held_out = figures(record["held_out"], "content", "style", "grain")
        click.echo(f"{at}: saved, held out: {held_out}, score {figure(record['score'])}")
    elif "train" in record:
        train = figures(record["train"], "total", "content", "style", "ssc", "overflow")
        click.echo(f"{at}, {record['seconds'] / 60:.1f} min: {train}")
