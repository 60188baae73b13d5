"""The training loop, the same for one process and for several that share their gradients.

Float warm-up, calibration of the integers' ranges where the network has any, then
quantization-aware training with what noise the engine's rounding makes. Every step is a function of
(seed, rank, step) and the state before it, so a run that goes on from a checkpoint is the run that
was never stopped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nst.errors import InputError
from nst.network.levels import QualityLevel, noise_levels
from nst.training.checkpoint import Checkpoint, RunFolder, initial_network
from nst.training.dataset import (
    MOST_ENLARGED,
    Batch,
    Crops,
    Loader,
    Mix,
    Targets,
    list_pictures,
    rescale,
    split,
)
from nst.training.engines import TRAINABLE
from nst.training.finishing import finished
from nst.training.losses import (
    content_loss,
    contrastive_loss,
    grain,
    lattice,
    statistics,
    style_loss,
)
from nst.training.options import BATCH_SIZE, Part, RunOptions, TrainOptions
from nst.training.pretraining import pretrain_style
from nst.training.trainable import Conditions, Trainable
from nst.training.validation import Validation, score
from nst.training.vgg import VGG16

CPU = torch.device("cpu")
GRAIN_FREE = 0.6
"""Grain up to which nothing is lost, in terms of the inputs' grain."""
LARGEST_GRADIENT = 5.0
"""Norm to which gradients are clipped."""
CALIBRATION_BATCHES = 4
SHARE = "share"
"""Of the learning rate: a key of the optimizer's groups, and so of checkpoints."""
MOST_LOST = 20
"""So many steps in a row whose gradient is not finite end a run: one is chance, all are a fault."""
LOG_EVERY = 50
"""Steps between two lines of metrics."""
CACHE_BYTES = 2**31
"""What a worker's cache of crops takes by default on a CPU, for contents and styles together."""
READERS = {"cpu": 2, "cuda": 8}
"""Threads that read ahead: a GPU takes more pictures in a second than a thread decodes."""


@dataclass(frozen=True, kw_only=True)
class Run(RunOptions):
    """A network to train.

    Attributes:
        level: Decides the size of pictures and the circuits' noise.
        options: What decides the outcome besides; recorded with it.
        sizes: Fields of the architecture that differ from those of `init` or of the level. Of a
            run that is resumed, init and architecture stay what they are.
        cache: Crops of contents, and of styles, that a worker keeps; None for the default.
        precision: Of VGG: `fp32`, `bf16`, or `auto` for bf16 where the machine computes in it.
    """

    level: QualityLevel
    options: TrainOptions
    sizes: dict[str, Any] = field(default_factory=dict)
    cache: int | None = None
    precision: str = "auto"

    @property
    def warm_up(self) -> int:
        """Steps before quantization."""
        share = 0.0 if self.init else self.options.recipe.float_share
        usual = int(self.options.max_iter * share)
        return usual if self.options.warm_up is None else self.options.warm_up

    @property
    def style_steps(self) -> int:
        """Steps of the style branch alone before the first (see `nst.training.pretraining`)."""
        usual = 0 if self.init else self.options.recipe.lesson.steps
        return usual if self.options.style_steps is None else self.options.style_steps

    @property
    def parts(self) -> tuple[Part, ...]:
        """Sides of the pictures and pairs per worker, in turn."""
        return self.options.mix or ((self.level.side, self.options.batch_size),)

    @property
    def record(self) -> dict[str, Any]:
        """What is kept of the options with a checkpoint."""
        level = {"size": self.level.side, "p_error": self.level.p_error}
        decided = {"warm_up": self.warm_up, "style_steps": self.style_steps}
        return {**level, **asdict(self.options), **decided}

    def check(self) -> None:
        """Find what would stop the run before anything is started.

        Raises:
            InputError: if a folder or file is missing or unfit, there is no such architecture, no
                step would be quantized where that is needed, or `out` holds a run and `resume` is
                not set, or is of another engine, size or architecture.
            CircuitError: if the weights to begin with cannot be read, or no engine could compute
                the network.
        """
        kind = TRAINABLE[self.options.engine]
        if kind.needs_quantization and self.warm_up >= self.options.max_iter:
            raise InputError(
                f"--warm-up {self.warm_up} leaves none of {self.options.max_iter} steps quantized, "
                "and a float network is of no use: lower it, or raise --max-iter"
            )
        folder = RunFolder(self.out)
        if folder.used and not self.resume:
            raise InputError(
                f"{self.out} holds a run: go on with it with --resume, or use another --out"
            )
        list_pictures(self.content_dir)
        list_pictures(self.style_dir)
        VGG16(self.vgg)
        if not folder.last.exists():
            self.network()
            return
        checkpoint = Checkpoint.read(folder.last)
        known = {
            "engine": checkpoint.engine,
            "size": checkpoint.options["size"],
            **checkpoint.architecture,
        }
        asked = {
            "engine": kind.engine,
            "size": self.level.side,
            **kind.sizes_of(self.level),
            **self.sizes,
        }
        for name, value in asked.items():
            if known.get(name) != value:
                raise InputError(
                    f"the run in {self.out} has {name} {known.get(name)}, not {value}: "
                    "go on with the same, or use another --out"
                )

    def network(self, start: Path | None = None) -> Trainable:
        """The network to begin with, or that of a checkpoint of this run to go on from.

        Raises:
            InputError, CircuitError: see `nst.training.checkpoint.initial_network`.
        """
        engine, sides = self.options.engine, {self.level.side, *(side for side, _ in self.parts)}
        if start is not None:
            return initial_network(start, {}, *sides, engine=engine)
        sizes = {**TRAINABLE[engine].sizes_of(self.level), **self.sizes}
        return initial_network(self.init, sizes, *sides, engine=engine)


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together; by default the only one.

    With more than one, `torch.distributed` must be set up.

    Attributes:
        rank: Its number; 0 writes files.
        world_size: How many there are.
        device: Where it computes.
        wrap: Makes a module's backward pass average gradients over all workers.
        report: Told, by all workers at the same steps, the figures at a checkpoint, and (rank 0)
            the file.
        start: Checkpoint to go on from instead of the last one in the run's folder.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    report: Callable[[dict[str, float], Path | None], None] = lambda figures, checkpoint: None
    start: Path | None = None

    def from_first(self, value: float) -> float:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return float(tensor)


class Losses(nn.Module):
    """Network and all losses in one forward pass, so that it can be wrapped as a whole."""

    def __init__(self, network: Trainable, vgg: VGG16, options: TrainOptions, noise: float) -> None:
        """Keep all four; `vgg` has no parameters that are trained, `noise` is in levels."""
        super().__init__()
        self.network, self.options, self.noise = network, options, noise
        # In a tuple it is no submodule: its buffers would be sent to all workers at every step.
        self._vgg = (vgg,)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """All losses of one batch, each a scalar; `total` is their weighted sum."""
        o, zero = self.options, batch.mean.new_zeros(())
        conditions = self._conditions()
        # The same pair under other noise must give the same picture: a network that paints
        # texture out of nothing paints another one each time a level flips.
        passes = 2 if o.consistency_weight and self.network.quantized else 1
        code = self.network.style_code(batch.style_white.repeat(passes, 1, 1, 1), conditions)
        both = self.network(batch.content_white.repeat(passes, 1, 1, 1), code, conditions)
        (result, *others), code = both.chunk(passes), code[: len(batch.style)]
        signal = self.network.style_code(result, self._conditions())
        rgb, *again = (self._finished(picture, batch) for picture in (result, *others))
        shown = rgb.clamp(0, 1)
        features = self._vgg[0](rescale(shown, batch.scale))
        ssc = contrastive_loss(signal, code).mean()
        if o.mix:
            # It falls as 1 / (N - 1), and batches of a mix should weigh alike.
            ssc = ssc * (len(batch.style) - 1) / (BATCH_SIZE - 1)
        out = {
            "content": content_loss(features[-1], batch.content_target).mean(),
            "style": style_loss(statistics(features), batch.style_target).mean(),
            "ssc": ssc,
            "grain": F.relu(grain(shown, batch.content, batch.style) - GRAIN_FREE).mean(),
            "overflow": zero + conditions.overflow,
            "idle": zero + conditions.idle,
            "range": (rgb - shown).pow(2).mean(),
            "lattice": lattice(rgb).mean(),
            "consistency": zero + sum((rgb - other).pow(2).mean() for other in again),
        }
        out["total"] = (
            o.content_weight * out["content"]
            + o.style_weight * out["style"]
            + o.ssc_weight * out["ssc"]
            + o.grain_weight * out["grain"]
            + o.overflow_weight * out["overflow"]
            + o.idle_weight * out["idle"]
            + o.consistency_weight * out["consistency"]
            + o.lattice_weight * out["lattice"]
            + out["range"]
        )
        return out

    def _finished(self, result: Tensor, batch: Batch) -> Tensor:
        octaves = self.options.octaves
        return finished(result, batch.style_white, batch.coloring, batch.mean, octaves)

    def _conditions(self) -> Conditions:
        return Conditions(noise=self.noise if self.network.quantized else 0.0)


class Trainer:
    """One worker's part of a run."""

    def __init__(self, run: Run, worker: Worker) -> None:
        """Load everything a run needs.

        Raises:
            InputError: see `Run.check`.
        """
        self.run, self.worker, self.options = run, worker, run.options
        self.noise = noise_levels(run.level.p_error)
        self.folder = RunFolder(run.out)
        dtype = vgg_dtype(run.precision, worker.device)
        vgg = VGG16(run.vgg, dtype).eval().requires_grad_(False).to(worker.device)
        contents, contents_held = split(list_pictures(run.content_dir))
        styles, styles_held = split(list_pictures(run.style_dir))
        photographs = random.Random(f"{self.options.seed}/photographs")
        styles += photographs.sample(contents, min(self.options.photo_styles, len(contents)))
        self.styles = styles
        self.loader = self._mix(contents, styles, vgg)
        start = worker.start
        if start is None and run.resume and self.folder.last.exists():
            start = self.folder.last
        checkpoint = None if start is None else Checkpoint.read(start)
        self.warm_up = run.warm_up
        if checkpoint is not None and self.options.warm_up is None:
            # What it goes on from may have begun with --init.
            self.warm_up = checkpoint.options["warm_up"]
        self.step = 0 if checkpoint is None else checkpoint.step
        self.seconds = 0.0 if checkpoint is None else checkpoint.seconds
        if worker.rank == 0:
            self.folder.begin(
                {
                    "step": self.step,
                    "seconds": round(self.seconds, 1),
                    "workers": worker.world_size,
                    "contents": len(contents),
                    "styles": len(styles),
                    "options": run.record,
                }
            )
        self.began = self.saved = time.monotonic()
        self.saved_step = self.step
        self.lost = 0
        self.recent: list[dict[str, Tensor]] = []
        self.reported: set[str] = set()
        self._begin(vgg, start, checkpoint)
        if worker.rank == 0:
            # In float32 everywhere: figures of all runs can be compared.
            exact = VGG16(run.vgg).eval().requires_grad_(False).to(worker.device)
            self.validation = Validation(
                contents_held,
                styles_held,
                exact,
                run.level.side,
                worker.device,
                self.options.octaves,
            )

    def _mix(self, contents: list[Path], styles: list[Path], vgg: VGG16) -> Mix:
        """A loader for each size, and their turns."""
        options, device, parts = self.options, self.worker.device, self.run.parts
        loaders = {}
        for side, pairs in dict.fromkeys(parts):
            scales = options.scales
            if options.mix:
                scales = tuple(s for s in scales if s * side <= MOST_ENLARGED) or (1.0,)
            cache = self.run.cache
            if cache is None:
                cache = default_cache(side, scales) // len(set(parts))
                # A cache too small for a crop of each would save little, and show each just so.
                if device.type != "cpu" or (
                    options.mix and cache < max(len(contents), len(styles))
                ):
                    cache = 0
            loaders[side, pairs] = Loader(
                Crops(contents, side, cache),
                Crops(styles, side, cache, options.widen),
                Targets(vgg, device, together=cache == 0),
                pairs,
                scales,
            )
        return Mix([loaders[part] for part in parts])

    def _begin(self, vgg: VGG16, start: Path | None, checkpoint: Checkpoint | None) -> None:
        """Network and optimizer, as they were at the checkpoint if there is one to go on from."""
        torch.manual_seed(self.options.seed)
        run = self.run
        self.network = run.network(start).to(self.worker.device)
        self.network.quantize(False)
        if checkpoint is None and run.style_steps and self.worker.rank == 0:
            # Wrapping sends rank 0's parameters to the others.
            self._pretrain_style(vgg)
        self.losses = self.worker.wrap(Losses(self.network, vgg, self.options, self.noise))
        self.optimizer = self._make_optimizer()
        if checkpoint is not None:
            groups = self.optimizer.param_groups
            if len(checkpoint.optimizer["param_groups"]) != len(groups):
                raise InputError(
                    f"the run in {run.out} trained with another --style-rate: go on with the same, "
                    "or use another --out"
                )
            shares = [group[SHARE] for group in groups]
            self.optimizer.load_state_dict(checkpoint.optimizer)
            for group, share in zip(self.optimizer.param_groups, shares, strict=True):
                group[SHARE] = share

    def _make_optimizer(self) -> torch.optim.Optimizer:
        """Adam; the style branch has a group of its own if it has a rate of its own."""
        share, everything = self.options.style_rate, list(self.network.parameters())
        groups: list[dict[str, Any]] = [{"params": everything, SHARE: 1.0}]
        if share != 1:
            style = list(self.network.style_parameters())
            known = {id(parameter) for parameter in style}
            rest = [p for p in everything if id(p) not in known]
            groups = [{"params": rest, SHARE: 1.0}, {"params": style, SHARE: share}]
        return torch.optim.Adam(groups, lr=self.options.lr)

    def _pretrain_style(self, vgg: VGG16) -> None:
        side = self.options.recipe.lesson.side
        crops = Crops(self.styles, side, 0) if side else self.loader.loaders[0].styles
        told = pretrain_style(
            self.network,
            crops,
            vgg,
            self.worker.device,
            self.run.style_steps,
            self.noise,
            self.options.seed,
            self._log,
        )
        self._log({"style_told": round(told, 4)})

    def train(self) -> int:
        """Train to the last step; returns its number.

        Raises:
            InputError: if picture after picture cannot be used, or no step can be taken.
        """
        seed = f"{self.options.seed}/{self.worker.rank}"
        readers = READERS[self.worker.device.type]
        batches = self.loader.batches(seed, self.step, self.options.max_iter, readers)
        with closing(batches):
            for batch in batches:
                if 0 < self.step == self.warm_up:
                    self._calibrate()
                self.network.quantize(self.step >= self.warm_up)
                self._train_on(batch, f"{seed}/{self.step}/noise")
                self.step += 1
                if self.step % LOG_EVERY == 0:
                    self._log({})
                due = time.monotonic() - self.saved > self.run.save_every
                if self.worker.from_first(due):
                    self._save()
        if self.step > self.saved_step:
            self._save()
        return self.step

    def _train_on(self, batch: Batch, seed: str) -> None:
        torch.manual_seed(random.Random(seed).getrandbits(63))
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate(self.step) * group[SHARE]
        losses = self.losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)
        # One infinite gradient would make every weight NaN; it is the same on all workers.
        self.lost = 0 if norm.isfinite() else self.lost + 1
        if not self.lost:
            self.optimizer.step()
        if self.lost == min(MOST_LOST, self.options.max_iter):
            raise InputError(
                f"the gradient of {self.lost} steps in a row is not finite: lower --lr, or look at "
                "the weights that it began with"
            )
        if self.worker.rank == 0:
            self.recent.append({key: value.detach() for key, value in losses.items()})

    def _calibrate(self) -> None:
        """See `Trainable.calibrate`; on all workers alike."""
        loader = self.loader.loaders[0]
        seed, scale = f"{self.options.seed}/calibration", loader.scales[0]

        def batches() -> list[Batch]:
            return [loader.batch(f"{seed}/{k}", scale) for k in range(CALIBRATION_BATCHES)]

        done = self.network.calibrate(self.optimizer, batches, self.worker.from_first)
        self._log({"calibration": {name: round(f, 3) for name, f in done.items()}})

    def _save(self) -> None:
        figures: dict[str, float] = {"step": self.step}
        if self.worker.rank == 0:
            held_out, results = self.validation.measure(self.network)
            checkpoint = Checkpoint(
                network=self.network.state_dict(),
                optimizer=self.optimizer.state_dict(),
                step=self.step,
                seconds=self._elapsed(),
                options=self.run.record,
                architecture=self.network.sizes,
                validation=held_out,
                engine=self.network.engine,
            )
            usable = self.network.quantized or not self.network.needs_quantization
            self.folder.save(checkpoint, self.validation.sheet(results), usable)
            self._log({"held_out": held_out, "score": score(held_out)})
            figures |= {**held_out, "score": score(held_out)}
        self.worker.report(figures, self.folder.last if self.worker.rank == 0 else None)
        self.saved, self.saved_step = time.monotonic(), self.step

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.began

    def _log(self, record: dict[str, Any]) -> None:
        """Write a line of metrics: `record`, and what has happened since the last line."""
        if self.worker.rank != 0:
            return
        record = {"step": self.step, "seconds": round(self._elapsed(), 1), **record}
        if self.recent:
            means = {k: torch.stack([r[k] for r in self.recent]).mean() for k in self.recent[0]}
            record["train"] = {k: round(float(mean), 5) for k, mean in means.items()}
            record["learning_rate"] = self.optimizer.param_groups[0]["lr"]
            self.recent.clear()
        skipped = self.loader.skipped
        record["skipped"] = len(skipped)
        if new := [reason for reason in skipped if reason not in self.reported]:
            record["skipped_now"] = new
            self.reported.update(new)
        self.folder.log(record)


def vgg_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What VGG computes in; `auto` is bfloat16 where the device multiplies in it."""
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            # Without such instructions PyTorch converts back and forth, slower than float32.
            flags = set(_read_text(Path("/proc/cpuinfo")).split())
            fast = bool(flags & {"avx512_bf16", "amx_bf16"})
        precision = "bf16" if fast else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def default_cache(size: int, scales: tuple[float, ...]) -> int:
    """Crops of contents, and of styles, that fit into `CACHE_BYTES`."""
    pixels = 2 * 2 * 3 * 4
    """Bytes per pixel: content and style, plain and whitened, three float32."""
    targets = sum(512 * 2 * (scale / 8) ** 2 for scale in scales)
    return int(CACHE_BYTES / (size**2 * (pixels + targets)))
