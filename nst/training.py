"""Train one quality level's network on one machine's CPU: `python -m nst.training --help`.

Float warm-up, then quantization-aware training with the circuit's rounding noise in it. Every few
minutes a checkpoint is written (atomically) and a sample sheet drawn; a second run with the same
`--out` continues from it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nst.architecture import Architecture
from nst.color import ColorStatistics, whiten
from nst.dataset import Crops, Example, center_square, list_pictures, rescale, split
from nst.losses import (
    content_loss,
    contrastive_loss,
    grain,
    statistics,
    style_loss,
)
from nst.network import Conditions, StyleTransfer
from nst.vgg import VGG16

SCALES = (1.0, 1.5)
"""Losses are taken at both, in turn: what pleases VGG only at 1x is often hatching."""


@dataclass(frozen=True)
class Options:
    """What a training run is told; recorded in the weights' card."""

    size: int
    max_iter: int
    warm_up: int
    batch_size: int = 8
    lr: float = 1e-3
    lr_end: float = 5e-5
    content_weight: float = 1.0
    style_weight: float = 2.0
    ssc_weight: float = 0.05
    grain_weight: float = 0.5
    grain_allowed: float = 0.5
    overflow_weight: float = 0.3
    noise: float = 0.16
    consistency_weight: float = 0.0
    variants: int = 3
    seed: int = 1


def colored(result: Tensor, styles: list[Example]) -> Tensor:
    """Standardized results in whitened space `[N, 3, S, S]` to RGB with the styles' colours."""
    matrices = torch.stack([s.coloring for s in styles])
    means = torch.stack([s.mean for s in styles])
    return torch.einsum("nij,njhw->nihw", matrices, result) + means[:, :, None, None]


def losses(
    network: StyleTransfer,
    vgg: VGG16,
    contents: list[Example],
    styles: list[Example],
    scale: float,
    options: Options,
) -> dict[str, Tensor]:
    """All losses of one batch, each a scalar; `total` is their weighted sum."""
    conditions = Conditions(noise=options.noise if network.quantized else 0.0)
    white = torch.stack([c.white for c in contents])
    code = network.style_code(torch.stack([s.white for s in styles]), conditions)
    result = network(white, code, conditions)
    signal = network.style_code(result, Conditions(conditions.noise))
    rgb = colored(result, styles)
    shown = rgb.clamp(0, 1)
    features = vgg(rescale(shown, scale))
    targets = [s.targets[scale] for s in styles]
    style_targets = [
        (torch.stack([t[2 * i] for t in targets]), torch.stack([t[2 * i + 1] for t in targets]))
        for i in range(len(features))
    ]
    content_targets = torch.stack([c.targets[scale][0].float() for c in contents])
    grains = grain(
        shown, torch.stack([c.rgb for c in contents]), torch.stack([s.rgb for s in styles])
    )
    out = {
        "content": content_loss(features[-1], content_targets).mean(),
        "style": style_loss(statistics(features), style_targets).mean(),
        "ssc": contrastive_loss(signal, code).mean(),
        "grain": F.relu(grains - options.grain_allowed).mean(),
        "overflow": torch.as_tensor(conditions.overflow),
        "range": (rgb - shown).pow(2).mean(),
    }
    if options.consistency_weight and network.quantized:
        # The same pair under other noise must give the same picture: a network that paints
        # texture out of nothing paints another one each time a level flips.
        again = Conditions(noise=options.noise)
        code_again = network.style_code(torch.stack([s.white for s in styles]), again)
        rgb_again = colored(network(white, code_again, again), styles)
        out["consistency"] = (rgb - rgb_again).pow(2).mean()
    else:
        out["consistency"] = torch.zeros(())
    out["total"] = (
        options.content_weight * out["content"]
        + options.style_weight * out["style"]
        + options.ssc_weight * out["ssc"]
        + options.grain_weight * out["grain"]
        + options.overflow_weight * out["overflow"]
        + options.consistency_weight * out["consistency"]
        + out["range"]
    )
    return out


class Validation:
    """Held-out photo x painting pairs, measured as `content`, `style` and `grain` medians."""

    def __init__(self, contents: list[Path], styles: list[Path], vgg: VGG16, size: int) -> None:
        rng = random.Random(7)
        self.pairs = [(rng.choice(contents), rng.choice(styles)) for _ in range(48)]
        self.vgg = vgg
        self.content = np.stack([center_square(c, size) for c, _ in self.pairs])
        self.style = np.stack([center_square(s, size) for _, s in self.pairs])

    @torch.no_grad()
    def measure(self, network: StyleTransfer) -> tuple[dict[str, float], Tensor]:
        """Medians over the pairs, and the results `[48, 3, S, S]`."""
        network.eval()
        c_white = [whiten(c, ColorStatistics.of(c)) for c in self.content]
        s_colors = [ColorStatistics.of(s) for s in self.style]
        s_white = [whiten(s, k) for s, k in zip(self.style, s_colors, strict=True)]
        conditions = Conditions()
        code = network.style_code(torch.from_numpy(np.stack(s_white)), conditions)
        result = network(torch.from_numpy(np.stack(c_white)), code, conditions)
        matrices = torch.from_numpy(np.stack([k.coloring() for k in s_colors]))
        means = torch.from_numpy(np.stack([k.mean for k in s_colors]))
        rgb = torch.einsum("nij,njhw->nihw", matrices, result) + means[:, :, None, None]
        rgb = (rgb.clamp(0, 1) * 255).round() / 255
        content, style = torch.from_numpy(self.content), torch.from_numpy(self.style)
        rows: dict[str, list[float]] = {"content": [], "style": [], "grain": []}
        for i in range(0, len(rgb), 8):
            o, c, s = rgb[i : i + 8], content[i : i + 8], style[i : i + 8]
            fo, fc, fs = self.vgg(o), self.vgg(c), self.vgg(s)
            rows["content"] += content_loss(fo[-1], fc[-1]).tolist()
            rows["style"] += style_loss(statistics(fo), statistics(fs)).tolist()
            rows["grain"] += grain(o, c, s).tolist()
        network.train()
        figures = {key: float(np.median(value)) for key, value in rows.items()}
        figures["overflow"] = float(conditions.overflow)
        return figures, rgb

    def sheet(self, results: Tensor, path: Path) -> None:
        """Rows of content, style, result for the first 24 pairs."""
        size = self.content.shape[-1]
        columns, rows = 4, 6
        sheet = Image.new("RGB", (columns * (3 * size + 8), rows * (size + 4)))
        for k in range(columns * rows):
            triple = [self.content[k], self.style[k], results[k].numpy()]
            for j, picture in enumerate(triple):
                array = (picture.transpose(1, 2, 0) * 255).round().astype(np.uint8)
                x = (k % columns) * (3 * size + 8) + j * size
                sheet.paste(Image.fromarray(array), (x, (k // columns) * (size + 4)))
        sheet.save(path)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a crash leaves the old one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def train(options: Options, arguments: argparse.Namespace) -> None:
    """Train until `max_iter`, continuing from `out/checkpoint.pt` if there is one."""
    torch.manual_seed(options.seed)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    vgg = VGG16(arguments.vgg, torch.bfloat16).eval().requires_grad_(False)
    content_train, content_held = split(list_pictures(arguments.content_dir))
    style_train, style_held = split(list_pictures(arguments.style_dir))
    contents = Crops(content_train, vgg, options.size, SCALES, False, options.variants)
    styles = Crops(style_train, vgg, options.size, SCALES, True, options.variants)
    validation = Validation(content_held, style_held, VGG16(arguments.vgg), options.size)

    network = StyleTransfer(Architecture())
    network.quantize(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=options.lr)
    step, seconds = 0, 0.0
    checkpoint = out / "checkpoint.pt"
    if arguments.start and not checkpoint.exists():
        network.load_state_dict(torch.load(arguments.start, weights_only=False)["network"])
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
        print(f"continuing at step {step} after {seconds / 60:.0f} min", flush=True)

    rng = random.Random(options.seed + step)
    began = last_saved = time.monotonic()
    recent: list[dict[str, float]] = []

    def save() -> None:
        elapsed = seconds + time.monotonic() - began
        figures, results = validation.measure(network)
        validation.sheet(results, out / "sample.png")
        save_checkpoint(
            checkpoint,
            {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seconds": elapsed,
                "options": asdict(options),
                "architecture": network.architecture.to_dict(),
                "validation": figures,
            },
        )
        mean = {k: round(float(np.mean([r[k] for r in recent])), 4) for k in recent[0]}
        line = {"step": step, "min": round(elapsed / 60, 1), "train": mean, "held_out": figures}
        print(json.dumps(line), flush=True)
        recent.clear()

    while step < options.max_iter:
        network.quantize(step >= options.warm_up)
        progress = step / options.max_iter
        rate = options.lr_end + (options.lr - options.lr_end) * 0.5 * (
            1 + math.cos(math.pi * progress)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100)
        batch = losses(
            network,
            vgg,
            contents.draw(options.batch_size, rng),
            styles.draw(options.batch_size, rng),
            SCALES[step % len(SCALES)],
            options,
        )
        optimizer.zero_grad(set_to_none=True)
        batch["total"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        step += 1
        recent.append({k: float(v) for k, v in batch.items()})
        if time.monotonic() - last_saved > arguments.save_every:
            save()
            last_saved = time.monotonic()
    if recent:
        save()


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--content-dir", type=Path, required=True)
    parser.add_argument("--style-dir", type=Path, required=True)
    parser.add_argument("--vgg", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="checkpoint of another level to start from")
    parser.add_argument("--save-every", type=float, default=180.0, help="seconds")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    for name, field in Options.__dataclass_fields__.items():
        kind = {"int": int, "float": float}[str(field.type)]
        required = name in ("size", "max_iter", "warm_up")
        default = None if required else field.default
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, required=required, default=default
        )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = Options(**{name: getattr(arguments, name) for name in Options.__dataclass_fields__})
    train(options, arguments)


if __name__ == "__main__":
    main()
