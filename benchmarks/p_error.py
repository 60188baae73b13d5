"""Cost of a PBS of the low network by `p_error`, from the optimizer alone: `make bench-p-error`."""

from __future__ import annotations

from statistics import NormalDist

from benchmarks.measure import provenance, write_result
from benchmarks.run import load
from nst.compilation import compile_module

VALUES = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0003, 0.0001)


def main() -> None:
    """Compile for every value, print and record."""
    level, network = load("low")
    rows = []
    for p_error in VALUES:
        module, _ = compile_module(network, level.size, p_error)
        functions = module.functions().values()
        calls = sum(f.programmable_bootstrap_count for f in functions)
        rows.append(
            {
                "p_error": p_error,
                "operations_per_pbs": module.complexity / calls,
                # Noise beyond half a level has probability p_error; the rest is Gaussian.
                "noise_levels": 0.5 / NormalDist().inv_cdf(1 - p_error / 2),
            }
        )
        print(rows[-1], flush=True)
    print(write_result("p_error", {**provenance("make bench-p-error"), "rows": rows}))


if __name__ == "__main__":
    main()
