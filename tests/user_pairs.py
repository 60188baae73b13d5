"""Pictures and folders of pairs as a user has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int = 0, width: int = 48, height: int = 40) -> Path:
    """A picture of smooth colours, other ones for another seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def folder_of(root: Path, names: Sequence[str], width: int = 48) -> Path:
    """A folder of pairs with these names; `width` is that of the contents."""
    for seed, name in enumerate(names):
        picture(root / "content" / f"{name}.png", seed, width)
        picture(root / "style" / f"{name}.png", seed + 100)
    return root
