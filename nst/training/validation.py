"""Held-out pictures: how good the network is so far, in figures and on a sheet of samples."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nst.errors import InputError
from nst.pictures.color import Floats
from nst.pictures.picture import to_image
from nst.pictures.sheet import contact_sheet
from nst.pictures.size import Size
from nst.training.dataset import Crop, center_square
from nst.training.finishing import finished
from nst.training.losses import Statistics, content_loss, grain, statistics, style_loss
from nst.training.trainable import Conditions, Trainable
from nst.training.vgg import VGG16

PAIRS = 48
SHEET_COLUMNS, SHEET_ROWS = 4, 6
PASS = 8
"""Pictures that go through the networks together."""
CONTENT_ALLOWED = 0.75
"""Content loss up to which a picture is still recognizable."""
GRAIN_ALLOWED = 1.0
"""Grain up to which a result has no more fine texture than its inputs."""

_log = logging.getLogger(__name__)


def score(figures: dict[str, float]) -> float:
    """What the best checkpoint has least of.

    The style loss, plus twice the content loss beyond `CONTENT_ALLOWED`, so that style is never
    bought with an unrecognizable content, plus the grain beyond `GRAIN_ALLOWED`.
    """
    content = max(0.0, figures["content"] - CONTENT_ALLOWED)
    return figures["style"] + 2 * content + max(0.0, figures["grain"] - GRAIN_ALLOWED)


class Validation:
    """Held-out pairs of a photograph and a painting, with their VGG targets."""

    def __init__(
        self,
        contents: list[Path],
        styles: list[Path],
        vgg: VGG16,
        size: int,
        device: torch.device,
        octaves: float = 0.0,
    ) -> None:
        """Read the pictures; pairs are always the same ones of the same folders.

        Results are finished as a client with this share of `octaves` would.

        Raises:
            InputError: if none of the contents or of the styles can be used.
        """
        pairs = choose_pairs(contents, styles, size, size)
        self.content, self.style = ([Crop.of(p) for p in part] for part in zip(*pairs, strict=True))
        self.vgg, self.device, self.octaves = vgg, device, octaves
        self._targets = [self._measure_targets(start) for start in range(0, PAIRS, PASS)]

    @torch.no_grad()
    def measure(self, network: Trainable) -> tuple[dict[str, float], Tensor]:
        """Medians of `content`, `style` and `grain` over the pairs, mean `overflow`; results.

        Of a network that measures it, the `largest` size of a bounded value, too. Results are
        `[PAIRS, 3, S, S]` in [0, 1] in steps of 1/255, on the CPU.
        """
        network.eval()
        rows: dict[str, list[float]] = {"content": [], "style": [], "grain": []}
        results, overflow, largest = [], 0.0, 0.0
        for start, (deepest, style_target) in zip(
            range(0, PAIRS, PASS), self._targets, strict=True
        ):
            content, style = self.content[start : start + PASS], self.style[start : start + PASS]
            conditions = Conditions()
            style_white = self._stack([s.white for s in style])
            code = network.style_code(style_white, conditions)
            white = network(self._stack([c.white for c in content]), code, conditions)
            coloring = self._stack([s.coloring for s in style])
            mean = self._stack([s.mean for s in style])
            rgb = finished(white, style_white, coloring, mean, self.octaves)
            rgb = (rgb.clamp(0, 1) * 255).round() / 255
            features = self.vgg(rgb)
            content_rgb = self._stack([c.rgb for c in content])
            style_rgb = self._stack([s.rgb for s in style])
            rows["content"] += content_loss(features[-1], deepest).tolist()
            rows["style"] += style_loss(statistics(features), style_target).tolist()
            rows["grain"] += grain(rgb, content_rgb, style_rgb).tolist()
            overflow += float(conditions.overflow) * len(content) / PAIRS
            largest = max(largest, conditions.largest)
            results.append(rgb.cpu())
        network.train()
        figures = {key: float(np.median(value)) for key, value in rows.items()}
        figures["overflow"] = overflow
        return figures | ({"largest": largest} if largest else {}), torch.cat(results)

    def sheet(self, results: Tensor) -> Image.Image:
        """Content, style and result of the first pairs, side by side."""
        count = min(SHEET_COLUMNS * SHEET_ROWS, len(results))
        rgb = [(self.content[k].rgb, self.style[k].rgb, results[k]) for k in range(count)]
        groups = [[to_image(picture.cpu().numpy()) for picture in each] for each in rgb]
        return contact_sheet(groups, Size.square(results.shape[-1]), SHEET_COLUMNS)

    def _stack(self, tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors).to(self.device)

    @torch.no_grad()
    def _measure_targets(self, start: int) -> tuple[Tensor, Statistics]:
        content, style = self.content[start : start + PASS], self.style[start : start + PASS]
        deepest = self.vgg(self._stack([c.rgb for c in content]))[-1]
        return deepest, statistics(self.vgg(self._stack([s.rgb for s in style])))


def choose_pairs(
    contents: list[Path], styles: list[Path], content_side: int, style_side: int
) -> list[tuple[Floats, Floats]]:
    """`PAIRS` contents and styles `[3, S, S]` in [0, 1], the same ones of the same lists.

    Raises:
        InputError: if none of the contents or of the styles can be used.
    """
    rng = random.Random(7)
    of_content = _Readable(content_side)
    of_style = of_content if style_side == content_side else _Readable(style_side)
    return [(of_content.choose(contents, rng), of_style.choose(styles, rng)) for _ in range(PAIRS)]


class _Readable:
    """Chooses pictures, passing over those that cannot be used."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._read: dict[Path, Floats] = {}
        self._bad: set[Path] = set()

    def choose(self, paths: list[Path], rng: random.Random) -> Floats:
        """Central square of a random picture; raises InputError if none can be used."""
        while True:
            path = rng.choice(paths)
            if path in self._bad:
                continue
            try:
                if path not in self._read:
                    self._read[path] = center_square(path, self.size)
                return self._read[path]
            except InputError as error:
                _log.warning("skipped: %s", error)
                self._bad.add(path)
                if self._bad.issuperset(paths):
                    raise InputError(f"no held-out picture can be used: {error}") from error
