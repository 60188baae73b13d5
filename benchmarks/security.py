"""What careful choices cost, and how far a decrypted result is from the exact one.

`make bench-security`: one row of a stage at low, bare on one core, with 128 and 132 bits of
security and with exact rounding (`submit --publishable`); then real jobs at draft, whose decrypted
levels are compared with those that the network gives in the clear.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import EXAMPLES, provenance, working_folder, write_result
from benchmarks.pbs import ROUNDS, STAGE, StageCall, operations_per_pbs
from benchmarks.run import Finished, prepared, run_submitted, submit_pairs
from jobs.client.home import Home
from jobs.client.preparation import PreparedPair
from jobs.storage import layout
from jobs.storage.records import read_job, read_marks
from nst.engines.concrete.compilation import compile_module
from nst.model import Model
from nst.network.levels import LEVELS, QualityLevel
from nst.network.weights import load_weights

ACTORS = 2


def choices(level: QualityLevel) -> dict[str, tuple[float, int, bool]]:
    """By name, error probability, bits of security, and whether circuits round exactly."""
    exact = level.exactly()
    return {
        "default": (level.p_error, level.security, False),
        "--security 132": (level.p_error, 132, False),
        "--publishable": (exact.p_error, exact.security, True),
    }


def prices(level: QualityLevel, stage: str) -> list[dict[str, Any]]:
    """What an activation costs with each choice, in operations and in time; they take turns."""
    network = load_weights(level.weights)
    rows, calls = [], []
    for name, (p_error, security, exact) in choices(level).items():
        module, _ = compile_module(network, level.side, p_error, level.side, security, exact)
        functions = module.functions()
        per = functions[stage].programmable_bootstrap_count
        rows.append({"choice": name, "p_error": p_error, "pbs": per, "security": security})
        rows[-1]["operations_per_pbs"] = operations_per_pbs(module)
        calls.append(StageCall(module, stage))
    for _ in range(ROUNDS):
        for call in calls:
            call.time()
    activations = rows[0]["pbs"]
    for row, call in zip(rows, calls, strict=True):
        row |= call.result()
        row["pbs_per_activation"] = row["pbs"] / activations
        row["cpu_s_per_activation"] = row["cpu_s_per_pbs"] * row["pbs_per_activation"]
        row["over_default"] = row["cpu_s_per_activation"] / rows[0]["cpu_s_per_activation"]
    return rows


def difference(folder: Path, pairs: list[PreparedPair], model: Model) -> dict[str, Any]:
    """How many levels of really encrypted results are not those of the network in the clear."""
    job = run_submitted(folder, *_submitted(folder, pairs, model))
    off = np.concatenate(
        [
            np.abs(found - pair.content.features).ravel()
            for found, pair in zip(_features(job, model), pairs, strict=True)
        ]
    )
    return {
        "pairs": len(pairs),
        "values": int(off.size),
        "differ": int(np.count_nonzero(off >= 0.5)),
        "share": float(np.mean(off >= 0.5)),
        "more_than_one_level": int(np.count_nonzero(off >= 1.5)),
        "core_seconds": sum(task.cpu_s for task in job.trace),
    }


def _submitted(folder: Path, pairs: list[PreparedPair], model: Model) -> tuple[Any, int, float]:
    local, seconds = submit_pairs(folder, pairs, model)
    return local, ACTORS, seconds


def _features(job: Finished, model: Model) -> list[Any]:
    """Decrypted levels of a job's pairs, in order."""
    store, local = job.session.store, job.local
    ended = read_marks(store, read_job(store, local.job_id)).ended
    cipher = model.cipher(job.session.ring, local.key_id)
    out = []
    for pair in local.pairs:
        end = ended[pair.pair_id]
        keys = (
            layout.result_part(local.job_id, end.attempt, pair.pair_id, part)
            for part in range(end.parts)
        )
        out.append(cipher.decrypt_result(map(store.read, keys), pair.name))
    return out


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--price-quality", default="low")
    parser.add_argument("--quality", default="draft")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--publishable-pairs", type=int, default=1)
    options = parser.parse_args()
    result = {
        **provenance("make bench-security"),
        "price_quality": options.price_quality,
        "stage": STAGE,
        "prices": prices(LEVELS[options.price_quality], STAGE),
        "quality": options.quality,
    }
    print(write_result("security", result), result["prices"], flush=True)
    for name, count in (
        ("results", options.pairs),
        ("publishable_results", options.publishable_pairs),
    ):
        publishable = name == "publishable_results"
        with working_folder() as folder:
            cache = Home(folder / "home").models
            model = Model.load(options.quality, cache, publishable=publishable)
            pairs = prepared(EXAMPLES, model)[:count]
            result[name] = difference(folder, pairs, model)
            print(write_result("security", result), result[name], flush=True)


if __name__ == "__main__":
    main()
