"""Teach the style branch alone what a style is, before the network learns to paint it.

Through the content path the style code gets a faint gradient: after 7,000 steps of the whole
network it told a seventh of what tells the VGG statistics of two paintings apart, and the network
painted nearly the same texture for all. Regression on those statistics needs neither a VGG pass
per step nor a content path; in a few minutes it gives a code that tells a third and more.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nst.network.architecture import STYLE
from nst.training.dataset import Crops
from nst.training.losses import statistics
from nst.training.network import Conditions, StyleTransfer
from nst.training.vgg import VGG16

CROPS_EACH = 3
"""Crops of every painting."""
MOST_CROPS = 6_000
PASS = 16
"""Crops that go through VGG together."""
COMPONENTS = 96
"""Principal components of the statistics that the code is to tell: 80 % of their variance."""
BATCH = 64
RATE, LAST_RATE = 4e-3, 0.02
"""Adam's learning rate, and the share of it at the end of a cosine."""
RAMP = 50
HELD_OUT = 0.1
"""Share of the crops that tell how much of a new style the code tells."""
OVERFLOW_WEIGHT, IDLE_WEIGHT = 0.03, 0.03
"""Beside the error as a share of the variance."""
CODE_LEVELS = 4.0
"""Typical level of a style code."""
GREY, CONTRAST = 0.45, 0.22
"""Mean and deviation of the pictures that VGG sees: colours are the client's part of a style."""
Log = Callable[[dict[str, Any]], None]


def pretrain_style(
    network: StyleTransfer,
    styles: Crops,
    vgg: VGG16,
    device: torch.device,
    steps: int,
    noise: float,
    seed: int,
    log: Log,
) -> float:
    """Train the style branch so that a linear map of the code gives VGG's style statistics.

    The first half of the steps is float, the second quantized with the circuits' noise; the
    network is left in float.

    Args:
        network: Its style branch is changed in place.
        styles: Paintings.
        vgg: What statistics are measured with.
        device: Of both.
        steps: Batches of `BATCH` crops.
        noise: Standard deviation of a PBS's noise, in levels.
        seed: Of everything random.
        log: Told now and then how far it is.

    Returns:
        Share of the variance of held-out crops' statistics that the code tells, at most 1.

    Raises:
        InputError: if picture after picture cannot be used.
    """
    white, target = _targets(styles, vgg, device, random.Random(f"{seed}/style"))
    generator = torch.Generator().manual_seed(seed)
    held = max(1, int(len(white) * HELD_OUT))
    mean = target[held:].mean(0)
    _, _, basis = torch.pca_lowrank(
        target[held:] - mean, q=min(COMPONENTS, *target[held:].shape), center=False
    )
    wanted = (target - mean) @ basis
    lost = (target - mean - wanted @ basis.T)[:held].pow(2).sum(1).mean()
    total = (target - mean)[:held].pow(2).sum(1).mean()

    code = network.architecture.code
    reader = nn.Linear(code, wanted.shape[1]).to(device)
    parameters = [*reader.parameters()]
    for layer in network.branch(STYLE).values():
        parameters += layer.parameters()
    optimizer = torch.optim.Adam(parameters, lr=RATE)

    def told() -> float:
        with torch.no_grad():
            codes = network.style_code(white[:held], Conditions())
            error = (reader(codes / CODE_LEVELS) - wanted[:held]).pow(2).sum(1).mean()
        return float(1 - (error + lost) / total)

    for step in range(steps):
        network.quantize(step >= steps // 2)
        fall = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            rate = RATE * (LAST_RATE + (1 - LAST_RATE) * fall)
            group["lr"] = rate * min(1.0, (step + 1) / RAMP)
        chosen = torch.randint(held, len(white), (BATCH,), generator=generator).to(device)
        batch = white[chosen].flip(3) if step % 2 else white[chosen]
        conditions = Conditions(noise=noise if network.quantized else 0.0)
        codes = network.style_code(batch, conditions)
        error = (reader(codes / CODE_LEVELS) - wanted[chosen]).pow(2).sum(1).mean()
        loss = error / total + OVERFLOW_WEIGHT * conditions.overflow + IDLE_WEIGHT * conditions.idle
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        if (step + 1) % 500 == 0:
            log({"style_step": step + 1, "style_told": round(told(), 4)})
    share = told()
    network.quantize(False)
    return share


@torch.no_grad()
def _targets(
    styles: Crops, vgg: VGG16, device: torch.device, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Whitened crops `[N, 3, S, S]`, and their statistics as style losses compare them `[N, K]`.

    The squared distance of two rows of statistics is (but for whose energy it is relative to)
    `nst.training.losses.style_loss` of one picture against the other.
    """
    count = min(CROPS_EACH * len(styles.paths), MOST_CROPS)
    pictures, rows = [], []
    for start in range(0, count, PASS):
        some = [crop.white for crop in styles.draw(min(PASS, count - start), rng)]
        white = torch.stack(some).to(device)
        parts = []
        for mean, deviation in statistics(vgg((GREY + CONTRAST * white).clamp(0, 1))):
            energy = (mean.pow(2).mean(1) + deviation.pow(2).mean(1)) * mean.shape[1]
            parts += [mean / energy.sqrt()[:, None], deviation / energy.sqrt()[:, None]]
        pictures.append(white)
        rows.append(torch.cat(parts, 1))
    return torch.cat(pictures), torch.cat(rows)
