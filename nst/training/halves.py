"""Two halves of a folder of strong styles: one to choose weights by, one to report figures of.

Nothing is trained on either. Whoever picks weights or settings by a style's figures has fitted them
to it. So choices look at one half, and figures that are published come from the other.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

Half = Literal["choosing", "deciding"]
DECIDING: Half = "deciding"


def half_of(path: Path) -> Half:
    """The half of a style: by a hash of its file name, so that other files do not move it."""
    odd = hashlib.sha256(path.name.encode(errors="surrogateescape")).digest()[0] % 2
    return "choosing" if odd else DECIDING
