"""The registry of quality levels: names, picture sizes and weights, one code path for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from nst.errors import CircuitError, InputError

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
P_ERROR = 0.01
"""Probability that the noise of one PBS exceeds half an activation level.

It also fixes how often approximate rounding flips a level near a boundary: the noise before
rounding has a standard deviation of 0.19 levels (0.5 is its 0.995 quantile), which training
imitates. At 0.03 (0.23 levels) a PBS costs 11 % less, at 0.002 (0.16 levels) 43 % more.
"""


@dataclass(frozen=True)
class QualityLevel:
    """A size of picture with the network trained for it.

    Attributes:
        name: What a user types.
        size: Side of the square result in pixels.
        weights: Its `.safetensors` file.
        p_error: Error probability of one PBS that the circuits are compiled for.
    """

    name: str
    size: int
    weights: Path
    p_error: float = P_ERROR

    @property
    def trained(self) -> bool:
        """Whether weights for this level are installed."""
        return self.weights.is_file()


LEVELS = {
    name: QualityLevel(name, size, WEIGHTS / f"{name}.safetensors")
    for name, size in (("draft", 32), ("low", 64), ("mid", 128), ("high", 192))
}


def find_level(name: str) -> QualityLevel:
    """The level of that name, whether its weights are installed or not.

    Raises:
        InputError: if there is none.
    """
    if name not in LEVELS:
        raise InputError(f"no quality level {name!r}; choose one of {', '.join(LEVELS)}")
    return LEVELS[name]


def get_level(name: str) -> QualityLevel:
    """The level of that name, ready to be used.

    Raises:
        InputError: if there is none.
        CircuitError: if its weights are not installed.
    """
    level = find_level(name)
    if not level.trained:
        ready = ", ".join(n for n, other in LEVELS.items() if other.trained)
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
