"""Staged row circuits against one monolithic circuit of the same trained layer: `make
bench-monolithic`.

A stage of the low network, weights and biases as trained, on a patch of a real picture: once as
concrete-ml compiles it from Brevitas with the settings of the published program (rounding to 8
bits, approximately, and concrete-ml's default error probability), once as the row circuit that
jobs run. Both on one core; the monolithic one is run once. A pair's cost is extrapolated by PBS: as
many as a pair at low has, each as dear as here. The published network itself has more of them,
and wider ones, than this layer.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import numpy as np
from concrete.fhe import Configuration
from concrete.ml.torch.compile import compile_brevitas_qat_model

from benchmarks.measure import provenance, write_result
from benchmarks.pbs import ROUNDS, StageCall, operations_per_pbs
from nst.engines.concrete.compilation import compile_module
from nst.engines.concrete.plan import count_pbs
from nst.network.integers import IntegerNetwork
from nst.network.levels import P_ERROR, get_level
from nst.network.weights import load_weights
from tests.oracle import make_oracle, run_clear
from tests.toy import TOY_P_ERROR, TOY_SIZE, toy_network

ROUNDING: dict[str, str | int] = {"n_bits": 8, "method": "APPROXIMATE"}
STAGE, PATCH = "stem", 4
"""A stage, and the side of the patch of its sources: without padding the result is 2 smaller."""
PUBLISHED = {
    "pbs_per_pair": 3_236_992,
    "operations_per_pbs": 2.972e9,
    "source": "its circuit compiled at 16 x 16 with its own settings, extrapolated by PBS to 64",
}


def main() -> None:
    """Compile both, run both, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", default=STAGE)
    parser.add_argument("--patch", type=int, default=PATCH)
    parser.add_argument("--no-run", action="store_true", help="compile only")
    parser.add_argument("--smoke", action="store_true", help="toy size, not run, not recorded")
    arguments = parser.parse_args()
    if arguments.smoke:
        result = compared(toy_network(), TOY_SIZE, TOY_P_ERROR, STAGE, 3, False)
        print(json.dumps(result, indent=2))
        return
    level = get_level("low")
    result = compared(
        load_weights(level.weights),
        level.side,
        P_ERROR,
        arguments.stage,
        arguments.patch,
        not arguments.no_run,
    )
    print(write_result("monolithic", {**provenance("make bench-monolithic"), **result}))
    print(json.dumps(result, indent=2))


def compared(
    network: IntegerNetwork, size: int, p_error: float, stage: str, patch: int, run: bool
) -> dict[str, Any]:
    """Both circuits of a stage, a pair extrapolated from each, and their ratios."""
    whole = monolithic(network, size, stage, patch, run)
    rows = staged(network, size, p_error, stage, run)
    pbs = count_pbs(network.architecture, size)
    kinds = [k for k in ("operations_per_pbs", "cpu_s_per_pbs") if k in whole and k in rows]
    return {
        "stage": stage,
        "patch": patch,
        "monolithic": whole,
        "staged": rows,
        "pair": {
            "pbs": pbs,
            "monolithic": {kind: pbs * whole[kind] for kind in kinds},
            "staged": {kind: pbs * rows[kind] for kind in kinds},
        },
        "monolithic_over_staged": {kind: whole[kind] / rows[kind] for kind in kinds},
        "published_over_staged_pair": PUBLISHED["pbs_per_pair"]
        * PUBLISHED["operations_per_pbs"]
        / (pbs * rows["operations_per_pbs"]),
        "published": PUBLISHED,
    }


def monolithic(
    network: IntegerNetwork, size: int, stage: str, patch: int, run: bool
) -> dict[str, Any]:
    """The stage on a patch `[in, patch, patch]` as one circuit by concrete-ml."""
    oracle, source = make_oracle(network, stage, run_clear(network, size))
    corners = [source[:, y : y + patch, x : x + patch] for y in (0, 2, 4) for x in (0, 2, 4)]
    samples = np.stack([c for c in corners if c.shape[1:] == (patch, patch)]).astype(np.float32)
    start = time.perf_counter()
    module = compile_brevitas_qat_model(
        oracle,
        samples,
        n_bits=4,
        rounding_threshold_bits=ROUNDING,
        configuration=Configuration(loop_parallelize=False),
    )
    circuit = module.fhe_circuit
    pbs = circuit.programmable_bootstrap_count
    out = {
        "rounding_threshold_bits": ROUNDING,
        "p_error": circuit.p_error,
        "maximum_bit_width": circuit.graph.maximum_integer_bit_width(),
        "pbs": pbs,
        "operations": circuit.complexity,
        "operations_per_pbs": circuit.complexity / pbs,
        "compile_s": time.perf_counter() - start,
    }
    if run:
        start = time.perf_counter()
        circuit.keygen()
        sealed = circuit.encrypt(module.quantize_input(samples[:1]))
        out["keys_and_encryption_s"] = time.perf_counter() - start
        wall, cpu = time.perf_counter(), time.process_time()
        circuit.run(sealed)
        out["wall_s_per_pbs"] = (time.perf_counter() - wall) / pbs
        out["cpu_s_per_pbs"] = (time.process_time() - cpu) / pbs
    return out


def staged(
    network: IntegerNetwork, size: int, p_error: float, stage: str, run: bool
) -> dict[str, Any]:
    """The stage's row circuit, in its module with all others, as jobs run it."""
    module, _ = compile_module(network, size, p_error, size)
    out = {
        "kept_bits": 4,
        "p_error": module.p_error,
        "operations_per_pbs": operations_per_pbs(module),
    }
    if not run:
        return out
    call = StageCall(module, stage)
    for _ in range(ROUNDS):
        call.time()
    return out | call.result()


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
