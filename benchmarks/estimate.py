"""Estimates against real runs, and what they say of machines that are not here: `make
bench-estimate`.

1. A job at toy size (the network of the tests) runs on local Ray with 1 and then 2 actors. In
   pauses of it its stages are called bare in as many processes at once as the run has actors
   (cores of one machine share its caches and its clock), and from these seconds alone the run is
   predicted.
2. The stages of low are called bare, on all cores at once: these are the times that ship as
   `nst/engines/concrete/rates.json`.
3. With them, 1 low, 1 high and 1,000 low pairs are estimated on 16, 96 and 1,024 cores.

Takes some 10 minutes. Run it on an idle machine: estimates of all users rest on what it measures.
`--smoke` only tries it out, in a minute or two, and records nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.bare import BareCalls, bare_rate, predicted_s
from benchmarks.measure import EXAMPLES, FOLDER, provenance, working_folder, write_result
from benchmarks.run import load, prepared, run_submitted, submit_pairs
from jobs.execution.forecast import Forecaster, Offer, distinct_pairs, largest_call
from nst.engines.rates import Rates, rates_of
from nst.network import levels
from tests.toy import toy_level, toy_weights

SHIPPED = FOLDER.parent / "nst" / "engines" / "concrete" / "rates.json"
TOY = "toy"
CORES = (16, 96, 1024)
ESTIMATED = (("low", 1), ("high", 1), ("low", 1000))
"""Levels and numbers of pairs."""
PAIRS = 8
"""Of the jobs at toy size. With 3, half a minute on two cores had too few bare calls: one run said
15 % too much."""
EVERY_S = 4.0
"""Seconds of a job between two pauses."""
ROUNDS = 1
"""Bare calls of every stage whose times ship."""
CALL_S = 0.05
"""Seconds of a call besides its PBS."""
DISPATCHED = 3000
"""Tasks that do nothing, to time the driver alone."""


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="try it out; record nothing")
    smoke = parser.parse_args().smoke
    with working_folder() as folder:
        levels.LEVELS[TOY] = toy_level(toy_weights(folder / "toy.safetensors"))
        dispatch = {str(cores): dispatch_seconds(cores, smoke) for cores in CORES}
        print("dispatch", dispatch)
        base = Rates(
            machine=_machine(),
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            command="make bench-estimate",
            call_s=CALL_S,
            dispatch_s=dispatch[str(CORES[-1])],
            overhead_s=0.0,
            actor_bytes=0,
            bytes_per_source_byte=0.0,
            stages={},
        )
        runs = [compare(folder, actors, smoke) for actors in (1, 2)]
        rates = measured_rates(folder, base, runs, TOY if smoke else "low")
        estimates = [
            estimated(folder, rates, quality, pairs)
            for quality, pairs in (((TOY, 1), (TOY, 20)) if smoke else ESTIMATED)
        ]
    result = {
        **provenance("make bench-estimate"),
        "runs": runs,
        "dispatch_s_by_actors": dispatch,
        "rates": rates.model_dump(),
        "estimates": estimates,
    }
    if smoke:
        print(json.dumps(result, indent=2))
        return
    SHIPPED.write_text(rates.model_dump_json(indent=2) + "\n")
    print(write_result("estimate", result))
    for run in runs:
        print(f"{run['actors']} actors: {run['error']:+.1%} of the measured {run['wall_s']:.1f} s")


def compare(folder: Path, actors: int, smoke: bool) -> dict[str, Any]:
    """A real run and its prediction from bare calls made in pauses of it."""
    model = load(folder, TOY)
    pairs = prepared(EXAMPLES, model, grid=True)[: 1 if smoke else PAIRS]
    local, _ = submit_pairs(folder, pairs, model)
    with BareCalls(local.store, local.job_id, actors, EVERY_S) as bare:
        job = run_submitted(folder, local, actors, 0.0, bare.watch)
        peak = bare.peak_rss()
    seconds = bare.found.mean(bare.found.together)
    predicted = predicted_s(local.store, local.job_id, bare.found, actors)
    wall_s = bare.found.running(job.state.first_task, job.state.last_task)
    pbs = sum(seconds[task.stage]["pbs"] for task in job.trace)
    return {
        "actors": actors,
        "pairs": len(pairs),
        "tasks": len(job.trace),
        "pbs": pbs,
        "bare_pbs_per_s_a_core": bare_rate(seconds),
        "bare_calls_s": bare.found.together,
        "pbs_per_s": pbs / wall_s,
        "predicted_s": predicted,
        "wall_s": wall_s,
        "error": predicted / wall_s - 1,
        "core_s": sum(task.cpu_s for task in job.trace),
        "bare_peak_rss_bytes": peak,
    }


def measured_rates(
    folder: Path, base: Rates, runs: Sequence[dict[str, Any]], quality: str
) -> Rates:
    """Rates of a level with all cores of this machine busy."""
    model = load(folder, quality)
    local, _ = submit_pairs(folder, prepared(EXAMPLES, model)[:1], model)
    with BareCalls(local.store, local.job_id, os.cpu_count() or 1) as bare:
        bare.measure_rest(ROUNDS)
        peak = bare.peak_rss()
    together = bare.found.mean(bare.found.together)
    # A process at toy size holds circuits and keys and hardly any ciphertexts.
    actor_bytes = max(run["bare_peak_rss_bytes"] for run in runs)
    largest = largest_call(model.plan.graph(distinct_pairs(1), model.seconds))
    return base.model_copy(
        update={
            "stages": rates_of(
                model.plan.stages, {name: stage["seconds"] for name, stage in together.items()}
            ),
            "actor_bytes": actor_bytes,
            "bytes_per_source_byte": max(peak - actor_bytes, 0) / largest,
        }
    )


def dispatch_seconds(actors: int, smoke: bool) -> float:
    """Seconds of the driver per task, when so many actors have all they can queue.

    The real executor and scheduler hand tasks to one process that stands in for all actors and
    does nothing but wait; only the driver is at work.
    """
    done = subprocess.run(
        [sys.executable, "-c", f"from benchmarks.dispatch import time_dispatch; "
         f"print(time_dispatch({actors}, {DISPATCHED // (10 if smoke else 1)}))"],
        capture_output=True, text=True, check=True, cwd=FOLDER.parent,
    )  # fmt: skip
    return float(done.stdout.splitlines()[-1])


def estimated(folder: Path, rates: Rates, quality: str, pairs: int) -> dict[str, Any]:
    """What `nst-batch estimate` says."""
    plan, offer, start = load(folder, quality).plan, Offer(), time.perf_counter()
    estimate = Forecaster(plan, rates, offer).estimate(distinct_pairs(pairs), CORES)
    return {
        "quality": quality,
        "offer": asdict(offer),
        **estimate.to_dict(),
        "simulated_in_s": time.perf_counter() - start,
    }


def _machine() -> str:
    machine = provenance("")["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores"


if __name__ == "__main__":
    main()
