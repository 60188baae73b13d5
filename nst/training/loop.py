"""The training loop, the same for one process and for several that share their gradients.

Float warm-up, calibration of the integers' ranges, then quantization-aware training with the
circuit's rounding noise in it. Every step is a function of (seed, rank, step) and the state before
it, so a run that goes on from a checkpoint is the run that was never stopped.
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
from nst.training.calibration import accumulator_levels, factors, rescale_moments, rescale_stages
from nst.training.checkpoint import Checkpoint, RunFolder, initial_network
from nst.training.dataset import Batch, Crops, Loader, Targets, list_pictures, rescale, split
from nst.training.finishing import finished
from nst.training.losses import (
    content_loss,
    contrastive_loss,
    grain,
    lattice,
    statistics,
    style_loss,
)
from nst.training.network import Conditions, StyleTransfer
from nst.training.options import RunOptions, TrainOptions
from nst.training.pretraining import pretrain_style
from nst.training.validation import Validation, score
from nst.training.vgg import VGG16

CPU = torch.device("cpu")
STYLE_STEPS = 2_500
"""Steps of the style branch alone, of a run that starts from random weights."""
GRAIN_FREE = 0.6
"""Grain up to which nothing is lost, in terms of the inputs' grain."""
LARGEST_GRADIENT = 5.0
"""Norm to which gradients are clipped."""
CALIBRATION_BATCHES = 4
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
        usual = 0 if self.init else self.options.max_iter // 10
        return usual if self.options.warm_up is None else self.options.warm_up

    @property
    def style_steps(self) -> int:
        """Steps of the style branch alone before the first (see `nst.training.pretraining`)."""
        usual = 0 if self.init else STYLE_STEPS
        return usual if self.options.style_steps is None else self.options.style_steps

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
                step would be quantized, or `out` holds a run and `resume` is not set, or is of
                another size or architecture.
        """
        if self.warm_up >= self.options.max_iter:
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
        known = {"size": checkpoint.options["size"], **checkpoint.architecture}
        for name, value in {"size": self.level.side, **self.level.sizes, **self.sizes}.items():
            if known.get(name) != value:
                raise InputError(
                    f"the run in {self.out} has {name} {known.get(name)}, not {value}: "
                    "go on with the same, or use another --out"
                )

    def network(self) -> StyleTransfer:
        """The network to begin with; see `nst.training.checkpoint.initial_network` for errors."""
        return initial_network(self.init, {**self.level.sizes, **self.sizes}, self.level.side)


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

    def __init__(
        self, network: StyleTransfer, vgg: VGG16, options: TrainOptions, noise: float
    ) -> None:
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
        out = {
            "content": content_loss(features[-1], batch.content_target).mean(),
            "style": style_loss(statistics(features), batch.style_target).mean(),
            "ssc": contrastive_loss(signal, code).mean(),
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
        size, cache = run.level.side, run.cache
        if cache is None:
            cache = default_cache(size, self.options.scales) if worker.device.type == "cpu" else 0
        self.loader = Loader(
            Crops(contents, size, cache),
            Crops(styles, size, cache),
            Targets(vgg, worker.device, together=cache == 0),
            self.options.batch_size,
            self.options.scales,
        )
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
                    "options": run.record,
                }
            )
        self.began = self.saved = time.monotonic()
        self.saved_step = self.step
        self.recent: list[dict[str, Tensor]] = []
        self.reported: set[str] = set()
        self._begin(vgg, start, checkpoint)
        if worker.rank == 0:
            # In float32 everywhere: figures of all runs can be compared.
            exact = VGG16(run.vgg).eval().requires_grad_(False).to(worker.device)
            self.validation = Validation(
                contents_held, styles_held, exact, size, worker.device, self.options.octaves
            )

    def _begin(self, vgg: VGG16, start: Path | None, checkpoint: Checkpoint | None) -> None:
        """Network and optimizer, as they were at the checkpoint if there is one to go on from."""
        torch.manual_seed(self.options.seed)
        run = self.run
        network = run.network() if start is None else initial_network(start, {}, run.level.side)
        self.network = network.to(self.worker.device)
        self.network.quantize(False)
        if checkpoint is None and run.style_steps and self.worker.rank == 0:
            # Wrapping sends rank 0's parameters to the others.
            self._pretrain_style(vgg)
        self.losses = self.worker.wrap(Losses(self.network, vgg, self.options, self.noise))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.options.lr)
        if checkpoint is not None:
            self.optimizer.load_state_dict(checkpoint.optimizer)

    def _pretrain_style(self, vgg: VGG16) -> None:
        told = pretrain_style(
            self.network,
            self.loader.styles,
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
            InputError: if picture after picture cannot be used.
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
            group["lr"] = self.options.learning_rate(self.step)
        losses = self.losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)
        # One infinite gradient would make every weight NaN; it is the same on all workers.
        if norm.isfinite():
            self.optimizer.step()
        if self.worker.rank == 0:
            self.recent.append({key: value.detach() for key, value in losses.items()})

    def _calibrate(self) -> None:
        """Fit the ranges of the integers, see `nst.training.calibration`, on all workers alike."""
        seed, scale = f"{self.options.seed}/calibration", self.options.scales[0]
        batches = [self.loader.batch(f"{seed}/{k}", scale) for k in range(CALIBRATION_BATCHES)]
        found = factors(self.network, accumulator_levels(self.network, batches))
        # Workers on different machines may differ in the last bit.
        agreed = {name: self.worker.from_first(factor) for name, factor in found.items()}
        moved = rescale_stages(self.network, agreed)
        rescale_moments(self.network, self.optimizer, moved)
        self._log({"calibration": {name: round(f, 3) for name, f in agreed.items()}})

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
                architecture=self.network.architecture.to_dict(),
                validation=held_out,
            )
            self.folder.save(checkpoint, self.validation.sheet(results), self.network.quantized)
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
