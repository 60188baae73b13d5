"""Where the time goes in one stage and in one job: `make bench-profile`.

The stage: what a process pays once for circuits and keys, and what every call pays: reading its
ciphertexts, evaluation, and writing the result. The job: two pairs at draft on local Ray, from the
start of the driver to its end, as the driver and its actors record it.

`--native FILE` writes a flame graph of repeated calls of the stage as well, down into Concrete's
runtime, if `py-spy` is installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import concrete.compiler as runtime

from benchmarks.bytes import blank_arguments
from benchmarks.measure import EXAMPLES, provenance, working_folder, write_result
from benchmarks.run import Finished, circuits, load, prepared, run_submitted, submit_pairs
from nst.engines.base import Evaluator
from nst.engines.concrete.client import CircuitCipher
from nst.engines.concrete.server import CircuitEvaluator
from nst.keyring import KeyRing
from nst.network.architecture import OUTPUT as STAGE

ACTORS = 2
PAIRS = 2
CALLS = 5
T = TypeVar("T")


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage-quality", default="low")
    parser.add_argument("--job-quality", default="draft")
    parser.add_argument("--native", type=Path, help="SVG file for a flame graph of the stage")
    arguments = parser.parse_args()
    with working_folder() as folder:
        stage = stage_profile(folder, arguments.stage_quality, CALLS, arguments.native)
    with working_folder() as folder:
        model = load(folder, arguments.job_quality)
        local, submit_s = submit_pairs(folder, prepared(EXAMPLES, model)[:PAIRS], model)
        job = job_profile(run_submitted(folder, local, ACTORS, submit_s))
    result = {
        **provenance("make bench-profile"),
        "stage": {"quality": arguments.stage_quality, "name": STAGE, **stage},
        "job": {"quality": arguments.job_quality, "pairs": PAIRS, **job},
    }
    print(write_result("profile", result))
    print(table("once per process", stage["once_s"]))
    print(table(f"one call of {STAGE}", stage["call_s"]))
    print(table("one job", job["phases_s"]))


def stage_profile(folder: Path, quality: str, calls: int, native: Path | None) -> dict[str, Any]:
    """Seconds that a process pays once, and mean seconds of the parts of one call of `STAGE`."""
    model = load(folder, quality)
    plan, ring = circuits(model.plan), KeyRing(folder / "keys")
    key_id = ring.create(model.published, quality).key_id
    cipher = ring.cipher(key_id, model.published)
    assert isinstance(cipher, CircuitCipher)
    rows = blank_arguments(model.network, cipher, plan.width)
    bundle, keys = model.published.server_bundle.read_bytes(), ring.evaluation_keys(key_id)
    once: dict[str, float] = {}
    evaluator = timed(once, "load circuits and keys", lambda: CircuitEvaluator(plan, bundle, keys))
    timed(once, "first call, which unpacks the keys", lambda: evaluator.run(STAGE, rows))
    call: dict[str, float] = defaultdict(float)
    whole: dict[str, float] = defaultdict(float)
    cpu = time.process_time()
    for _ in range(calls):
        sealed = timed(
            call, "read ciphertexts", lambda: [runtime.TransportValue.deserialize(r) for r in rows]
        )
        result = timed(call, "evaluate", lambda sealed=sealed: evaluator.evaluate(STAGE, sealed))
        timed(call, "write result", lambda result=result: bytes(result.serialize()))
    cpu = time.process_time() - cpu
    for _ in range(calls):
        timed(whole, "whole", lambda: evaluator.run(STAGE, rows))
    pbs = next(circuit.pbs_per_row for circuit in plan.circuits if circuit.name == STAGE)
    if native is not None:
        flame_graph(native, evaluator, rows)
    return {
        "pbs": pbs,
        "bytes_in": sum(map(len, rows)),
        "once_s": once,
        "call_s": {what: seconds / calls for what, seconds in call.items()},
        "whole_call_s": whole["whole"] / calls,
        "call_cpu_s": cpu / calls,
    }


def flame_graph(target: Path, evaluator: Evaluator, rows: list[bytes]) -> None:
    """Sample this process, native frames as well, while it calls the stage."""
    spy = Path(sys.executable).with_name("py-spy")
    options = ["--native", "--format", "flamegraph", "--duration", "20", "--rate", "100"]
    command = [str(spy), "record", "--pid", str(os.getpid()), "--output", str(target), *options]
    watcher = subprocess.Popen(command)
    while watcher.poll() is None:
        evaluator.run(STAGE, rows)
    # Its title is the command, with a path of this machine.
    target.write_text(target.read_text().replace(str(spy), spy.name))


def job_profile(job: Finished) -> dict[str, Any]:
    """Seconds of a job by phase, of its tasks by stage, and of CPU by kind of process."""
    stages: dict[str, float] = defaultdict(float)
    for task in job.trace:
        stages[task.stage] += task.end - task.start
    state, busy = job.state, sum(stages.values())
    tasks_s = state.last_task - state.first_task
    return {
        "actors": ACTORS,
        "phases_s": {
            "encrypt and upload": job.submit_s,
            "start Ray, load circuits and keys, end": job.driver_s - tasks_s,
            "first to last task": tasks_s,
        },
        "actor_s": {"in tasks": busy, "without a task": ACTORS * tasks_s - busy},
        "stage_s": dict(stages),
        "cpu_s_of_tasks": sum(task.cpu_s for task in job.trace),
        "cpu_s_by_process": {role: use.cpu_s for role, use in job.memory.roles.items()},
    }


def timed(into: dict[str, float], what: str, call: Callable[[], T]) -> T:
    """Add the seconds of a call to those of the same name."""
    start = time.perf_counter()
    out = call()
    into[what] = into.get(what, 0.0) + time.perf_counter() - start
    return out


def table(title: str, seconds: dict[str, float]) -> str:
    """Seconds with their share of the sum, as text."""
    total = sum(seconds.values())
    lines = [f"  {what:40} {s:10.4f} s {s / total:7.2%}" for what, s in seconds.items()]
    return "\n".join([f"{title}: {total:.4f} s", *lines])


if __name__ == "__main__":
    main()
