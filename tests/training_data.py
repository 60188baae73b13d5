"""Small folders of pictures as they come, and a run that is over in seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nst.engines.ckks.network import LeveledArchitecture
from nst.training.loop import Run
from nst.training.options import TrainOptions
from nst.training.vgg import LAYERS_16
from tests.toy import TOY, toy_level
from tests.vggs import random_arrays, write_npz

SIZE = 32
USABLE = 13
UNUSABLE = 4


def picture(seed: int, width: int = 60, height: int = 48) -> Image.Image:
    """Smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + rng.integers(-20, 20, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def make_pictures(folder: Path, seed: int) -> Path:
    """`USABLE` pictures and `UNUSABLE` files that are called pictures, some in sub-folders."""
    deep = folder / "some painter" / "1907"
    deep.mkdir(parents=True)
    for i in range(USABLE - 5):
        picture(seed + i).save(folder / f"c{i}.jpg")
    picture(seed + 90).save(deep / "UPPER CASE.JPG", "JPEG")
    picture(seed + 91).convert("L").save(deep / "grey.jpg")
    picture(seed + 92).convert("CMYK").save(deep / "cmyk.jpg")
    picture(seed + 93).quantize(16).save(deep / "palette.png", transparency=3)
    whole = (folder / "c0.jpg").read_bytes()
    (deep / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "d-empty.jpg").write_bytes(b"")
    (folder / "d-text.png").write_text("404 not found")
    picture(seed + 94, 9, 9).save(folder / "d-tiny.png")
    Image.fromarray(np.full((40, 40), 40000, np.uint16)).save(deep / "16-bits.png")
    (folder / "notes.txt").write_text("no picture at all")
    return folder


LEVELED = LeveledArchitecture(channels=4, stages=6, up=1, style=(4, 4), code=4)
"""Tiny, with as many levels as the parameters that ship have primes for."""
SIZES = {"concrete": TOY.to_dict(), "ckks": {**dataclasses.asdict(LEVELED), "style": [4, 4]}}
"""Of the networks that are trained here, by engine, as JSON holds them."""
SHORT = {"max_iter": 6, "style_steps": 0, "warm_up": 2, "batch_size": 2}


def make_run(folder: Path, options: dict[str, Any] | None = None, **changes: Any) -> Run:
    """A run of an engine's toy network on made-up pictures, with a VGG of random weights.

    Args:
        folder: Where everything is made, unless it is there already.
        options: Fields of `TrainOptions` that differ.
        changes: Fields of `Run` that differ.
    """
    content, style, vgg = folder / "content", folder / "style", folder / "vgg.npz"
    if not vgg.exists():
        make_pictures(content, 100)
        make_pictures(style, 200)
        write_npz(vgg, random_arrays(LAYERS_16))
    decided = TrainOptions(**{**SHORT, **(options or {})})
    run = Run(
        level=toy_level(side=SIZE),
        options=decided,
        content_dir=content,
        style_dir=style,
        vgg=vgg,
        out=folder / "out",
        sizes=SIZES[decided.engine],
        save_every=1e9,
        cache=0,
        precision="fp32",
    )
    return dataclasses.replace(run, **changes)
