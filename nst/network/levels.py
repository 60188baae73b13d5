"""The registry of quality levels: names, picture sizes and weights, one code path for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from nst.errors import CircuitError, InputError
from nst.pictures.size import Size

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
DEFAULT_ENGINE = "concrete"
ONE_FOR_ALL = {"ckks": WEIGHTS / "ckks.safetensors"}
"""By engine, the weights of all levels, of one whose network is the same at all."""
P_ERROR = 0.01
"""Probability that the noise of one PBS exceeds half an activation level.

It also fixes how often approximate rounding flips a level near a boundary: the noise before
rounding has a standard deviation of 0.19 levels (0.5 is its 0.995 quantile), which training
imitates. At 0.03 (0.23 levels) a PBS costs 11 % less, at 0.002 (0.16 levels) 43 % more.
"""


SECURITY = 128
"""Bits of security that circuits are compiled for, unless a user wants more."""
EXACT_P_ERROR = 2.0**-64
"""The same probability for results that may be published."""


@dataclass(frozen=True)
class QualityLevel:
    """A size of picture with the network trained for it.

    Attributes:
        name: What a user types.
        side: In pixels of the style, which is square, and of the result unless another size
            is asked for.
        weights: Its `.safetensors` file.
        p_error: Error probability of one PBS that the circuits are compiled for.
        sizes: Fields of `Architecture` in which its network is trained to differ from the
            defaults; what was trained says the file of the weights.
        security: Bits of security that the circuits are compiled for.
        exact: Whether they round exactly: results then show nothing of the noise, and so of the
            key.
    """

    name: str
    side: int
    weights: Path
    p_error: float = P_ERROR
    sizes: Mapping[str, Any] = field(default_factory=dict)
    security: int = SECURITY
    exact: bool = False

    def exactly(self) -> QualityLevel:
        """The level with circuits whose results may be published; they cost several times more."""
        return replace(self, exact=True, p_error=EXACT_P_ERROR)

    @property
    def trained(self) -> bool:
        """Whether weights for this level are installed."""
        return self.weights.is_file()

    @property
    def square(self) -> Size:
        """Size of styles, and of contents and results unless another is asked for."""
        return Size.square(self.side)


DRAFT = {
    "latent": 16,
    "body": 1,
    "up": 6,
    "style_stem": 8,
    "style_body": 16,
    "style_deep": 0,
    "style_rows": 24,
    "code": 32,
}
"""Every kind of work that the other levels do, in less than a minute on two cores."""

LEVELS = {
    name: QualityLevel(name, size, WEIGHTS / f"{name}.safetensors", sizes=sizes)
    # The style branch keeps its size at low, and what it sums over, at all larger levels.
    for name, size, sizes in (
        ("draft", 32, DRAFT),
        ("low", 64, {}),
        ("mid", 128, {"style_stride": 2}),
        ("high", 192, {"style_stride": 3}),
        ("ultra", 256, {"style_stride": 4}),
    )
}


def levels_of(engine: str = DEFAULT_ENGINE) -> list[QualityLevel]:
    """All levels with an engine's weights, whether they are installed or not."""
    return [find_level(name, engine) for name in LEVELS]


def find_level(name: str, engine: str = DEFAULT_ENGINE) -> QualityLevel:
    """The level of that name with an engine's weights, whether they are installed or not.

    Raises:
        InputError: if there is none.
    """
    if name not in LEVELS:
        raise InputError(f"no quality level {name!r}; choose one of {', '.join(LEVELS)}")
    level = LEVELS[name]
    return replace(level, weights=ONE_FOR_ALL[engine]) if engine in ONE_FOR_ALL else level


def get_level(name: str, engine: str = DEFAULT_ENGINE) -> QualityLevel:
    """The level of that name, ready to be used.

    Raises:
        InputError: if there is none.
        CircuitError: if its weights are not installed.
    """
    level = find_level(name, engine)
    if not level.trained:
        ready = ", ".join(other.name for other in levels_of(engine) if other.trained)
        raise CircuitError(
            f"quality level {name!r} has no weights at {level.weights}; trained levels: {ready}"
        )
    return level


def noise_levels(p_error: float) -> float:
    """Standard deviation of a PBS's noise before rounding, in activation levels.

    The noise is Gaussian and exceeds half a level with probability `p_error`.

    Args:
        p_error: Between 0 and 1, both excluded.
    """
    return 0.5 / NormalDist().inv_cdf(1 - p_error / 2)
