"""A batch of pairs on local Ray against bare circuit calls: `make bench-batch`.

The job's PBS/s, from its first to its last row task, over actors x the rate at which one process
alone on the machine calls the same circuits, before and after the job. What is lost between the two
is told apart: time in which actors had no task, and calls that took longer than bare ones. The raw
data, every task's start and end, are in `batch_tasks.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.faults import pairs_of_examples
from benchmarks.measure import FOLDER, bare_rate, bare_stage_seconds, provenance, write_result
from benchmarks.run import Finished, prepared, run_submitted, submit_pairs

ACTORS = 2
PAIRS = 6
REPEATS = 3
"""Bare calls of a stage, before the job and after it."""


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quality", default="draft")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    arguments = parser.parse_args()
    quality = arguments.quality
    with tempfile.TemporaryDirectory(prefix="nst-bench-") as name:
        folder = Path(name)
        pairs = prepared(pairs_of_examples(folder / "listed", arguments.pairs), quality)
        book, submit_s = submit_pairs(folder, pairs, quality)
        before = bare_stage_seconds(book.store, book.job_id, REPEATS)
        job = run_submitted(folder, book, ACTORS, submit_s)
        after = bare_stage_seconds(book.store, book.job_id, REPEATS)
    bare = {
        stage: {**figures, "seconds": fmean((figures["seconds"], after[stage]["seconds"]))}
        for stage, figures in before.items()
    }
    result = {
        **provenance("make bench-batch"),
        "quality": quality,
        "pairs": len(pairs),
        **efficiency(job, bare),
        "bare_pbs_per_s_before_and_after": [bare_rate(before), bare_rate(after)],
        "bare_stages": bare,
        "processes": {role: vars(use) for role, use in job.memory.roles.items()},
        "peak_rss_bytes": job.memory.rss,
        "startup_s": job.driver_s - (job.state.last_task - job.state.first_task),
    }
    write_tasks(job)
    print(write_result("batch", result))
    for key in ("pbs_per_s", "parallel_efficiency", "idle_share", "slower_calls_share"):
        print(f"{key:22} {result[key]:.4g}")


def efficiency(job: Finished, bare: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The job against bare calls of the same tasks.

    Args:
        job: What has run.
        bare: By stage, `seconds` of one bare call on one core.

    Returns:
        `parallel_efficiency`: what the tasks take bare on one core, over actors x the time from the
        first to the last. `idle_share`: of that time, when actors had no task.
        `slower_calls_share`: by how much the calls took longer than bare ones.
    """
    wall = job.state.last_task - job.state.first_task
    alone = sum(bare[task.stage]["seconds"] for task in job.trace)
    busy = sum(task.end - task.start for task in job.trace)
    return {
        "actors": ACTORS,
        "wall_s": wall,
        "pbs": sum(task.pbs for task in job.trace),
        "pbs_per_s": job.pbs_per_s,
        "bare_s": alone,
        "busy_s": busy,
        "parallel_efficiency": alone / (ACTORS * wall),
        "idle_share": 1 - busy / (ACTORS * wall),
        "slower_calls_share": busy / alone - 1,
    }


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
