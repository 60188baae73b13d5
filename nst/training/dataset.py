"""Training pictures: folders as they were downloaded, random crops, batches read ahead.

COCO and WikiArt hold a few files that are damaged, grey, CMYK or larger than memory. A file that
cannot be used is passed over and another one drawn; nothing is read before it is drawn.

On a CPU the VGG passes over content and style would be half of every step. With a cache, a fixed
number of crops of every picture is used, and as many as fit in it are kept with their targets.
"""

from __future__ import annotations

import logging
import math
import os
import random
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nst.errors import InputError
from nst.pictures.color import ColorStatistics, Floats, whiten
from nst.pictures.formats import SUFFIXES
from nst.pictures.reading import read_rgb
from nst.training.halves import Half, half_of
from nst.training.losses import Statistics, statistics
from nst.training.vgg import VGG16

VALIDATION_EVERY = 16
"""Every 16th picture of a folder, in name order, is never trained on."""
SMALLEST_CROP = 0.6
"""Smallest crop side, as a share of the picture's short side."""
WIDE_CROP = 0.3
"""The same of a style that is widened."""
BLENDED, CONTRASTED = 0.3, 0.5
"""Shares of those that are blended with another one, or get another contrast."""
LEAST_CONTRAST, MOST_CONTRAST = 0.6, 1.6
MOST_ENLARGED = 256
"""Pixels beyond which nothing is enlarged in a mix: VGG takes its time by area."""
MIN_SIDE = 16
"""Pictures with a shorter side in pixels are of no use: enlarged they show nothing."""
MOST_MISSES = 200
"""So many unreadable pictures in a row mean that a folder, not a picture, is damaged."""

_log = logging.getLogger(__name__)


@dataclass
class Crop:
    """One square crop with what a step needs of it.

    Attributes:
        rgb: `[3, S, S]` in [0, 1].
        white: The same, whitened.
        coloring: `[3, 3]`.
        mean: `[3]`.
        targets: By scale, once computed: `[relu4_1]` of a content, or the means and deviations
            of a style, layer by layer.
    """

    rgb: Tensor
    white: Tensor
    coloring: Tensor
    mean: Tensor
    targets: dict[float, list[Tensor]] = field(default_factory=dict)

    @staticmethod
    def of(picture: Floats) -> Crop:
        """The crop whose pixels are `picture`, `[3, S, S]` in [0, 1]."""
        colors = ColorStatistics.of(picture)
        return Crop(
            rgb=torch.from_numpy(picture),
            white=torch.from_numpy(whiten(picture, colors)),
            coloring=torch.from_numpy(colors.coloring()),
            mean=torch.from_numpy(colors.mean),
        )


@dataclass(frozen=True)
class Batch:
    """N contents and N styles as a training step takes them.

    Attributes:
        content: `[N, 3, S, S]` in [0, 1].
        content_white: The same, whitened.
        style: `[N, 3, S, S]` in [0, 1].
        style_white: The same, whitened.
        coloring: `[N, 3, 3]` of the styles.
        mean: `[N, 3]` of the styles.
        scale: By how much pictures are enlarged before VGG sees them.
        content_target: relu4_1 of the contents at that scale.
        style_target: Feature statistics of the styles at that scale.
    """

    content: Tensor
    content_white: Tensor
    style: Tensor
    style_white: Tensor
    coloring: Tensor
    mean: Tensor
    scale: float
    content_target: Tensor
    style_target: Statistics


def list_pictures(folder: Path) -> list[Path]:
    """Pictures below a folder, at any depth, in name order; links are followed, hidden ones not.

    Raises:
        InputError: if there is no such folder, or fewer than two pictures in it: one is held out.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: name one with pictures to train on")
    found = sorted(_below(folder))
    if len(found) < 2:
        raise InputError(
            f"{folder} holds {len(found)} pictures ({', '.join(SUFFIXES)}): training needs two"
        )
    return found


def _below(folder: Path) -> Iterator[Path]:
    """Pictures of a folder and of those in it, each folder once however often it is linked."""
    known = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in known:
            folders.clear()
            continue
        known.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(root, name) for name in files if not name.startswith("."))
        yield from (path for path in paths if path.suffix.lower() in SUFFIXES)


def split(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Training and validation pictures."""
    train = [p for i, p in enumerate(paths) if i % VALIDATION_EVERY]
    return train, paths[::VALIDATION_EVERY]


def list_half(folder: Path, half: Half) -> list[Path]:
    """Styles of one half of a folder that nothing is trained on, in name order.

    Raises:
        InputError: if there is no such folder, or none of its pictures is of that half.
    """
    found = [path for path in list_pictures(folder) if half_of(path) == half]
    if not found:
        raise InputError(f"{folder} has no style of the {half} half: add more pictures")
    return found


def center_square(path: Path, size: int) -> Floats:
    """Central square of a picture as `[3, size, size]` in [0, 1].

    Raises:
        InputError: if the file cannot be used.
    """
    rgb = _decode(path)
    width, height = rgb.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return _resize(rgb, (left, top, left + side, top + side), size)


def random_square(
    path: Path, size: int, rng: random.Random, smallest: float = SMALLEST_CROP
) -> Floats:
    """A random square crop, perhaps mirrored, as `[3, size, size]` in [0, 1].

    Its side is at least `smallest` of the picture's short side.

    Raises:
        InputError: if the file cannot be used; nothing has been drawn from `rng` then.
    """
    rgb = _decode(path, math.ceil(size / smallest))
    width, height = rgb.size
    short = min(width, height)
    side = int(short * rng.uniform(smallest, 1.0))
    left, top = rng.randint(0, width - side), rng.randint(0, height - side)
    out = _resize(rgb, (left, top, left + side, top + side), size)
    return np.ascontiguousarray(out[:, :, ::-1]) if rng.random() < 0.5 else out


def _decode(path: Path, short_side: int | None = None) -> Image.Image:
    """See `read_rgb`; pictures that show nothing are refused as well."""
    rgb = read_rgb(path, short_side)
    if min(rgb.size) < MIN_SIDE:
        raise InputError(f"{path} is too small: its short side has {min(rgb.size)} pixels")
    return rgb


def _resize(rgb: Image.Image, box: tuple[int, int, int, int], size: int) -> Floats:
    resized = rgb.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / 255


class Crops:
    """Random crops of a list of pictures; may be drawn from by several threads.

    Attributes:
        skipped: Pictures that could not be used so far, with the reason.
    """

    def __init__(self, paths: list[Path], size: int, cache: int, widen: float = 0.0) -> None:
        """Read nothing yet.

        Args:
            paths: Pictures.
            size: Side of a crop in pixels.
            cache: How many crops to keep. The crops of a picture are then always the same few;
                with 0 every crop is another.
            widen: Share of crops that are turned, perhaps blended with another picture and of
                another contrast: more styles than there are paintings.
        """
        self.paths, self.size, self.cache, self.widen = paths, size, cache, widen
        self.variants = max(1, cache // len(paths)) if cache else 0
        self.skipped: dict[Path, str] = {}
        self._kept: dict[tuple[int, int], Crop] = {}

    def draw(self, count: int, rng: random.Random) -> list[Crop]:
        """Crops of `count` pictures, different ones if there are so many.

        What is drawn depends on `rng` and the files only, not on what was drawn before.

        Raises:
            InputError: if picture after picture cannot be used.
        """
        everything = range(len(self.paths))
        few = len(self.paths) < count
        indices = rng.choices(everything, k=count) if few else rng.sample(everything, count)
        return [self._usable(index, rng) for index in indices]

    def _usable(self, index: int, rng: random.Random) -> Crop:
        for _ in range(MOST_MISSES):
            # One generator a crop: how much a crop draws must not change what comes after it.
            own = random.Random(rng.getrandbits(64))
            with suppress(InputError):
                return self._get(index, own)
            index = rng.randrange(len(self.paths))
        path, reason = next(reversed(self.skipped.items()))
        raise InputError(
            f"{MOST_MISSES} pictures in a row cannot be used, the last in {path.parent}: {reason}"
        )

    def _get(self, index: int, rng: random.Random) -> Crop:
        if not self.variants:
            return self._read(index, rng)
        key = (index, rng.randrange(self.variants))
        if key in self._kept:
            return self._kept[key]
        crop = self._read(index, random.Random(f"{index}/{key[1]}"))
        if len(self._kept) < self.cache:
            self._kept[key] = crop
        return crop

    def _read(self, index: int, rng: random.Random) -> Crop:
        path = self.paths[index]
        if path in self.skipped:
            raise InputError(self.skipped[path])
        try:
            wide = self.widen > 0 and rng.random() < self.widen
            return Crop.of(self._wide(path, rng) if wide else random_square(path, self.size, rng))
        except InputError as error:
            self.skipped[path] = str(error)
            _log.warning("skipped: %s", error)
            raise

    def _wide(self, path: Path, rng: random.Random) -> Floats:
        picture = np.rot90(random_square(path, self.size, rng, WIDE_CROP), rng.randrange(4), (1, 2))
        if rng.random() < BLENDED:
            with suppress(InputError):
                other = random_square(rng.choice(self.paths), self.size, rng, WIDE_CROP)
                picture = picture + np.float32(rng.uniform(0.3, 0.7)) * (other - picture)
        if rng.random() < CONTRASTED:
            mean = picture.mean((1, 2), keepdims=True)
            contrast = np.float32(rng.uniform(LEAST_CONTRAST, MOST_CONTRAST))
            picture = np.clip(mean + contrast * (picture - mean), 0, 1)
        return np.ascontiguousarray(picture)


class Targets:
    """What VGG makes of contents and styles: computed for crops that do not have it yet."""

    def __init__(self, vgg: VGG16, device: torch.device, together: bool) -> None:
        """Keep the features.

        Args:
            vgg: Features, on `device`.
            device: Where to compute.
            together: Whether one pass takes all crops that lack targets: faster on a GPU. Apart,
                the last bits do not depend on which of them were kept from earlier steps.
        """
        self.vgg, self.device, self.together = vgg, device, together

    def contents(self, crops: list[Crop], scale: float) -> Tensor:
        """relu4_1 of contents `[N, 512, S/8, S/8]`."""
        for part in self._lacking(crops, scale):
            # In half precision: they are most of what the cache holds.
            found = self._features(part, scale)[-1].half()
            for crop, target in zip(part, found, strict=True):
                crop.targets[scale] = [target]
        return torch.stack([crop.targets[scale][0].float() for crop in crops])

    def styles(self, crops: list[Crop], scale: float) -> Statistics:
        """Means and deviations `[N, C]` of each layer of styles."""
        for part in self._lacking(crops, scale):
            found = [t for pair in statistics(self._features(part, scale)) for t in pair]
            for i, crop in enumerate(part):
                crop.targets[scale] = [t[i] for t in found]
        flat = [torch.stack(ts) for ts in zip(*(c.targets[scale] for c in crops), strict=True)]
        return list(zip(flat[::2], flat[1::2], strict=True))

    def _lacking(self, crops: list[Crop], scale: float) -> list[list[Crop]]:
        lacking = list({id(c): c for c in crops if scale not in c.targets}.values())
        if self.together:
            return [lacking] if lacking else []
        return [[crop] for crop in lacking]

    @torch.no_grad()
    def _features(self, crops: list[Crop], scale: float) -> list[Tensor]:
        rgb = torch.stack([c.rgb for c in crops]).to(self.device)
        return self.vgg(rescale(rgb, scale))


def rescale(picture: Tensor, scale: float) -> Tensor:
    """Pictures `[N, 3, S, S]` enlarged bilinearly."""
    if scale == 1:
        return picture
    return F.interpolate(picture, scale_factor=scale, mode="bilinear", align_corners=False)


class Loader:
    """Batches of one worker, of one size."""

    def __init__(
        self,
        contents: Crops,
        styles: Crops,
        targets: Targets,
        batch_size: int,
        scales: tuple[float, ...],
    ) -> None:
        """Read nothing yet; see `Crops` and `Targets`. Scales take turns."""
        self.contents, self.styles, self.targets = contents, styles, targets
        self.batch_size, self.scales = batch_size, scales

    @property
    def skipped(self) -> list[str]:
        """Reasons why pictures could not be used, so far."""
        return [*self.contents.skipped.values(), *self.styles.skipped.values()]

    def batches(self, seed: str, start: int, stop: int, threads: int) -> Generator[Batch]:
        """See `Mix.batches`."""
        return Mix([self]).batches(seed, start, stop, threads)

    def batch(self, seed: str, scale: float) -> Batch:
        """One batch, read now."""
        return self._batch(*self._draw(seed), scale)

    def _draw(self, seed: str) -> tuple[list[Crop], list[Crop]]:
        rng = random.Random(seed)
        return self.contents.draw(self.batch_size, rng), self.styles.draw(self.batch_size, rng)

    def _batch(self, contents: list[Crop], styles: list[Crop], scale: float) -> Batch:
        def stack(tensors: list[Tensor]) -> Tensor:
            return torch.stack(tensors).to(self.targets.device)

        return Batch(
            content=stack([c.rgb for c in contents]),
            content_white=stack([c.white for c in contents]),
            style=stack([s.rgb for s in styles]),
            style_white=stack([s.white for s in styles]),
            coloring=stack([s.coloring for s in styles]),
            mean=stack([s.mean for s in styles]),
            scale=scale,
            content_target=self.targets.contents(contents, scale),
            style_target=self.targets.styles(styles, scale),
        )


class Mix:
    """Batches of one worker, of several sizes in turn, read ahead in threads.

    Batch k of a worker is a function of its seed, k and the files: a resumed run sees what an
    uninterrupted one would have seen.
    """

    def __init__(self, loaders: list[Loader]) -> None:
        """Read nothing yet; a loader may have several turns."""
        self.loaders = loaders

    @property
    def skipped(self) -> list[str]:
        """Reasons why pictures could not be used, so far, each once."""
        return list(dict.fromkeys(reason for each in self.loaders for reason in each.skipped))

    def batches(self, seed: str, start: int, stop: int, threads: int) -> Generator[Batch]:
        """Batches `start` to `stop`, each read by one of so many threads.

        Raises:
            InputError: see `Crops.draw`.
        """
        turns = len(self.loaders)
        with ThreadPoolExecutor(threads, "reader") as pool:
            ahead: deque[Future[tuple[list[Crop], list[Crop]]]] = deque()
            try:
                for step in range(start, stop):
                    while len(ahead) <= threads and step + len(ahead) < stop:
                        later = step + len(ahead)
                        draw = self.loaders[later % turns]._draw
                        ahead.append(pool.submit(draw, f"{seed}/{later}"))
                    contents, styles = ahead.popleft().result()
                    loader = self.loaders[step % turns]
                    scale = loader.scales[step // turns % len(loader.scales)]
                    yield loader._batch(contents, styles, scale)
            finally:
                for future in ahead:
                    future.cancel()
