"""Cost of one PBS by kept bits and by `p_error`, in operations and in time: `make bench-pbs`.

The low network is compiled as it is, but approximate rounding keeps another number of bits, or the
circuits have another error probability; weights and accumulators stay, so what changes is the PBS
alone. Operations are Concrete's `complexity` over the PBS of all its functions. Time is that of
one row of a stage, called bare on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
from concrete import fhe

from benchmarks.measure import provenance, write_result
from nst.engines.concrete.compilation import compile_module
from nst.engines.concrete.fft_plan import fix_fft_plan
from nst.network import architecture as shape
from nst.network.integers import IntegerNetwork
from nst.network.levels import get_level, noise_levels
from nst.network.weights import load_weights
from tests.toy import TOY_SIZE, toy_network

KEPT = (3, 4, 5, 6)
"""With 2 bits a leaky activation would have no negative level left."""
P_ERRORS = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0001)
TIMED = (0.01, 0.001)
"""Error probabilities at which the PBS of every number of kept bits is timed as well."""
STAGE = "body1"
ROUNDS = 3
"""Calls that are timed."""


def main() -> None:
    """Compile for every pair of values, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="toy size; record nothing")
    if parser.parse_args().smoke:
        print(json.dumps(measured(toy_network(), TOY_SIZE, (4, 3), (0.01,), (0.01,)), indent=2))
        return
    level = get_level("low")
    rows = measured(load_weights(level.weights), level.side, KEPT, P_ERRORS, TIMED)
    result = {**provenance("make bench-pbs"), "quality": "low", "stage": STAGE, "rows": rows}
    print(write_result("pbs", result))
    print(table(rows))


def measured(
    network: IntegerNetwork,
    size: int,
    kept: tuple[int, ...],
    p_errors: tuple[float, ...],
    timed: tuple[float, ...],
) -> list[dict[str, Any]]:
    """One record for every number of kept bits and error probability.

    All are compiled before the first is timed, and then timed in turn: a machine that shares its
    cores with others is faster and slower from minute to minute.
    """
    rows, calls = [], {}
    for bits, p_error in product(kept, p_errors):
        with keeping(bits):
            module, _ = compile_module(network, size, p_error, size)
        row: dict[str, Any] = {
            "kept_bits": bits,
            "p_error": p_error,
            "noise_levels": noise_levels(p_error),
            "operations_per_pbs": operations_per_pbs(module),
        }
        rows.append(row)
        if p_error in timed:
            calls[bits, p_error] = StageCall(module, STAGE)
        print(row, flush=True)
    print("all compiled; timing begins", flush=True)
    for _ in range(ROUNDS):
        for call in calls.values():
            call.time()
    for row in rows:
        if call := calls.get((row["kept_bits"], row["p_error"])):
            row |= call.result()
    return rows


@contextmanager
def keeping(bits: int) -> Iterator[None]:
    """Circuits compiled in this block round to so many bits; accumulators stay as wide."""
    before = shape.SHIFT, shape.LEVEL, shape.ACCUMULATOR_MAX
    shape.SHIFT = shape.ACCUMULATOR_BITS - bits
    shape.LEVEL = 1 << shape.SHIFT
    # Larger ones would round up and out of the range.
    shape.ACCUMULATOR_MAX = (1 << (shape.ACCUMULATOR_BITS - 1)) - shape.LEVEL // 2 - 1
    try:
        yield
    finally:
        shape.SHIFT, shape.LEVEL, shape.ACCUMULATOR_MAX = before


def operations_per_pbs(module: fhe.FheModule) -> float:
    """Concrete's `complexity` over the PBS of calling every function once."""
    calls = sum(f.programmable_bootstrap_count for f in module.functions().values())
    return float(module.complexity) / calls


class StageCall:
    """One row of a stage, called bare on one core.

    Values do not matter for the time: all of them are 0.
    """

    def __init__(self, module: fhe.FheModule, stage: str) -> None:
        """Make keys and arguments; the first call unpacks the keys and does not count."""
        fix_fft_plan()
        self._function = module.functions()[stage]
        nodes = self._function.graph.ordered_inputs()
        module.keygen()
        zeros = (np.zeros(n.output.shape, dtype=np.int64) for n in nodes)
        self._sealed = self._function.encrypt(*zeros)
        self._function.run(*self._sealed)
        self._wall: list[float] = []
        self._cpu: list[float] = []

    def time(self) -> None:
        """Call it once more."""
        wall, cpu = time.perf_counter(), time.process_time()
        self._function.run(*self._sealed)
        self._wall.append(time.perf_counter() - wall)
        self._cpu.append(time.process_time() - cpu)

    def result(self) -> dict[str, Any]:
        """PBS of a call, and mean wall and CPU seconds of each."""
        pbs = self._function.programmable_bootstrap_count
        return {
            "pbs": pbs,
            "wall_s_per_pbs": fmean(self._wall) / pbs,
            "cpu_s_per_pbs": fmean(self._cpu) / pbs,
        }


def table(rows: list[dict[str, Any]]) -> str:
    """The records as Markdown: a row for each error probability, a column for each width."""
    kept = sorted({row["kept_bits"] for row in rows})
    at = {(row["p_error"], row["kept_bits"]): row for row in rows}

    def cell(row: dict[str, Any]) -> str:
        text = f"{row['operations_per_pbs'] / 1e6:.1f}"
        return f"{text}, {1e3 * row['cpu_s_per_pbs']:.1f} ms" if "cpu_s_per_pbs" in row else text

    lines = ["| `p_error` | noise, levels | " + " | ".join(f"{k} bits" for k in kept) + " |"]
    lines.append("|---" * (len(kept) + 2) + "|")
    for p_error in sorted({row["p_error"] for row in rows}, reverse=True):
        cells = " | ".join(cell(at[p_error, k]) for k in kept)
        lines.append(f"| {p_error:g} | {noise_levels(p_error):.2f} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
