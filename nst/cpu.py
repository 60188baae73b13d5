"""What this machine's CPU can do, of what a compiler takes up by itself."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from nst.errors import CircuitError

CPU_INFO = Path("/proc/cpuinfo")
USED = frozenset(
    [
        "ssse3",
        "sse4_1",
        "sse4_2",
        "popcnt",
        "movbe",
        "abm",
        "bmi1",
        "bmi2",
        "fma",
        "f16c",
        "avx",
        "avx2",
        "avx_vnni",
        "gfni",
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "avx512ifma",
        "avx512vbmi",
        "avx512_vbmi2",
        "avx512_vnni",
        "avx512_bitalg",
        "avx512_vpopcntdq",
    ]
)
"""By Linux's names. Others, for matrices or encryption say, are never used unasked."""


@cache
def cpu_features() -> tuple[str, ...]:
    """Those of this machine, sorted; empty if the system does not tell."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return ()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return tuple(sorted(USED.intersection(flags.split())))


def require_features(needed: tuple[str, ...], what: str) -> None:
    """Raise CircuitError if this CPU lacks some: a call would end its process (SIGILL).

    Args:
        needed: Features of the machine on which code was compiled.
        what: The code in the error.
    """
    lacking = sorted(set(needed).difference(here)) if (here := cpu_features()) else []
    if lacking:
        raise CircuitError(
            f"{what} was compiled for a CPU with {', '.join(lacking)}, which this one lacks; run "
            "workers on CPUs like the client's, or build the model on one like the workers'"
        )
