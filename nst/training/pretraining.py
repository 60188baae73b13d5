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

from nst.training.dataset import Crops
from nst.training.losses import statistics
from nst.training.options import RECIPES
from nst.training.trainable import Conditions, Trainable
from nst.training.vgg import VGG16

CROPS_EACH = 3
"""Crops of every painting."""
PASS = 16
"""Crops that go through VGG together."""
COMPONENTS = 96
"""Principal components of the statistics that the code is to tell: 80 % of their variance."""
LAST_RATE, RAMP = 0.02, 50
"""Share of the learning rate at the end of a cosine, and steps that it takes to rise."""
HELD_OUT = 0.1
"""Share of the crops that tell how much of a new style the code tells."""
GREY, CONTRAST = 0.45, 0.22
"""Mean and deviation of the pictures that VGG sees: colours are the client's part of a style."""
Log = Callable[[dict[str, Any]], None]


def pretrain_style(
    network: Trainable,
    styles: Crops,
    vgg: VGG16,
    device: torch.device,
    steps: int,
    noise: float,
    seed: int,
    log: Log,
) -> float:
    """Train the style branch so that a linear map of the code gives VGG's style statistics.

    How is the `Lesson` of the engine's recipe (`nst.training.options`). Where it says so, the
    second half of the steps is quantized with the circuits' noise; the network is left in float.

    Args:
        network: Its style branch is changed in place.
        styles: Paintings.
        vgg: What statistics are measured with.
        device: Of both.
        steps: Batches of crops.
        noise: Standard deviation of a PBS's noise, in levels.
        seed: Of everything random.
        log: Told now and then how far it is.

    Returns:
        Share of the variance of held-out crops' statistics that the code tells, at most 1.

    Raises:
        InputError: if picture after picture cannot be used.
    """
    lesson = RECIPES[network.engine].lesson
    count = min(CROPS_EACH * len(styles.paths), lesson.most_crops)
    white, target = _targets(styles, vgg, device, count, random.Random(f"{seed}/style"))
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
    parameters = [*reader.parameters(), *network.style_parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lesson.rate)

    def told() -> float:
        with torch.no_grad():
            codes = network.style_code(white[:held], Conditions())
            error = (reader(codes / lesson.code_level) - wanted[:held]).pow(2).sum(1).mean()
        return float(1 - (error + lost) / total)

    for step in range(steps):
        network.quantize(lesson.quantized and step >= steps // 2)
        fall = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            rate = lesson.rate * (LAST_RATE + (1 - LAST_RATE) * fall)
            group["lr"] = rate * min(1.0, (step + 1) / RAMP)
        chosen = torch.randint(held, len(white), (lesson.batch,), generator=generator).to(device)
        batch = white[chosen].flip(3) if step % 2 else white[chosen]
        if lesson.window:
            # Another part of the same crop has about the same statistics.
            batch = _window(batch, lesson.window, random.Random(f"{seed}/style/{step}"))
        conditions = Conditions(noise=noise if network.quantized else 0.0)
        codes = network.style_code(batch, conditions)
        error = (reader(codes / lesson.code_level) - wanted[chosen]).pow(2).sum(1).mean()
        loss = error / total + lesson.overflow_weight * conditions.overflow
        loss = loss + lesson.idle_weight * conditions.idle
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        if (step + 1) % 500 == 0:
            log({"style_step": step + 1, "style_told": round(told(), 4)})
    share = told()
    network.quantize(False)
    return share


def _window(pictures: Tensor, side: int, rng: random.Random) -> Tensor:
    top, left = (rng.randrange(0, length - side + 1) for length in pictures.shape[2:])
    return pictures[:, :, top : top + side, left : left + side]


@torch.no_grad()
def _targets(
    styles: Crops, vgg: VGG16, device: torch.device, count: int, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Whitened crops `[N, 3, S, S]`, and their statistics as style losses compare them `[N, K]`.

    The squared distance of two rows of statistics is (but for whose energy it is relative to)
    `nst.training.losses.style_loss` of one picture against the other.
    """
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
