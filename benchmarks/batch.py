"""A batch of pairs on local Ray against bare circuit calls: `make bench-batch`.

The job's PBS/s, from its first to its last row task, over actors x the rate at which one process
alone on the machine calls the same circuits, which it does in pauses of the job. What is lost
between the two is told apart, see `benchmarks.bare.efficiency`. The raw data, every task's start
and end with the pauses in them, are in `batch_tasks.json`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict

from benchmarks.bare import EVERY_S, BareCalls, efficiency, predicted_s
from benchmarks.faults import pairs_of_examples
from benchmarks.measure import FOLDER, provenance, working_folder, write_result
from benchmarks.run import Finished, load, prepared, run_submitted, submit_pairs

ACTORS = 2
PAIRS = 8


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quality", default="draft")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds between two pauses")
    arguments = parser.parse_args()
    quality = arguments.quality
    with working_folder() as folder:
        model = load(folder, quality)
        listed = pairs_of_examples(folder / "listed", arguments.pairs, shared_styles=False)
        pairs = prepared(listed, model)
        local, submit_s = submit_pairs(folder, pairs, model)
        with BareCalls(local.store, local.job_id, ACTORS, arguments.every) as bare:
            job = run_submitted(folder, local, ACTORS, submit_s, bare.watch)
        predicted = predicted_s(local.store, local.job_id, bare.found, ACTORS)
    result = {
        **provenance("make bench-batch"),
        "quality": quality,
        "pairs": len(pairs),
        **efficiency(job.trace, bare.found, ACTORS),
        "predicted_wall_s": predicted,
        "processes": {role: vars(use) for role, use in job.memory.roles.items()},
        "peak_rss_bytes": job.memory.rss,
        "startup_s": job.state.first_task - job.state.driver_started,
    }
    write_tasks(job)
    print(write_result("batch", result))
    for key in ("pbs_per_s", "parallel_efficiency", "of_bare_together", "idle_share", "cpu_share"):
        print(f"{key:22} {result[key]:.4g}")


def write_tasks(job: Finished) -> None:
    """Record every task as `[start, end, cpu]` in seconds from the first start, by stage."""
    tasks: dict[str, list[list[float]]] = defaultdict(list)
    for task in sorted(job.trace, key=lambda task: task.start):
        start = task.start - job.state.first_task
        end = task.end - job.state.first_task
        tasks[task.stage].append([round(v, 3) for v in (start, end, task.cpu_s)])
    (FOLDER / "batch_tasks.json").write_text(json.dumps(tasks) + "\n")


if __name__ == "__main__":
    main()
