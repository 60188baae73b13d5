"""Threads that share circuits and keys against processes with their own: `make bench-sharing`.

A node's workers could be threads of one process, with one set of evaluation keys for all. The same
stage is called by as many threads as there are cores and by as many processes, in turn; figures
are seconds of a call, which thread or process whatever, resident memory, and how many calls gave
other bits than the same call alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from typing import Any

import psutil

from benchmarks.bare import BareProcess, Calls
from benchmarks.measure import EXAMPLES, provenance, working_folder, write_result
from benchmarks.run import load, prepared, submit_pairs

STAGE = "body1"
ROUNDS = 4
WORKERS = os.cpu_count() or 1


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quality", default="draft")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    with working_folder() as folder:
        model = load(folder, arguments.quality)
        local, _ = submit_pairs(folder, prepared(EXAMPLES, model)[:1], model)
        compared = compare(local.store, local.job_id, arguments.rounds)
    result = {
        **provenance("make bench-sharing"),
        "quality": arguments.quality,
        "stage": STAGE,
        "workers": WORKERS,
        **compared,
    }
    print(write_result("sharing", result))
    print(json.dumps(compared, indent=2))


def compare(store_url: str, job_id: str, rounds: int) -> dict[str, Any]:
    """Both ways in turn, each as many calls at once as there are workers."""
    kinds = {"processes": [1] * WORKERS, "threads": [WORKERS]}
    started = {
        kind: [_started(store_url, job_id, threads) for threads in each]
        for kind, each in kinds.items()
    }
    for servers in started.values():
        for server in servers:
            server.answer()
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    other = dict.fromkeys(kinds, 0)
    try:
        for _ in range(rounds):
            for kind, servers in started.items():
                for server in servers:
                    server.ask(STAGE)
                for server in servers:
                    took, different = server.answer()
                    seconds[kind] += took
                    other[kind] += different
        memory = {kind: sum(_rss(s) for s in servers) for kind, servers in started.items()}
    finally:
        for servers in started.values():
            for server in servers:
                server.close()
    return {
        "seconds_a_call": {kind: fmean(each) for kind, each in seconds.items()},
        "calls_s": seconds,
        "calls_with_other_bits": other,
        "rss_bytes": memory,
    }


def _started(store_url: str, job_id: str, threads: int) -> BareProcess:
    """A process that calls the stage with so many threads at once when it is asked to."""
    return BareProcess(store_url, job_id, str(threads), module="benchmarks.sharing")


def _rss(server: BareProcess) -> int:
    size: int = psutil.Process(server.pid).memory_info().rss
    return size


def serve(store_url: str, job_id: str, threads: str) -> None:
    """Body of such a process: seconds of each call, and how many gave other bits than alone."""
    calls = Calls(store_url, job_id)
    _, expected = calls.unlocked(STAGE)
    with ThreadPoolExecutor(int(threads)) as pool:
        print(json.dumps("ready"), flush=True)
        for _ in sys.stdin:
            results = list(pool.map(calls.unlocked, [STAGE] * int(threads)))
            other = sum(result != expected for _, result in results)
            print(json.dumps([[seconds for seconds, _ in results], other]), flush=True)


if __name__ == "__main__":
    main()
