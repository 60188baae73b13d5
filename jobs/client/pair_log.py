"""What a driver's log says of pairs, whose names only the client knows."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from jobs.client.home import LocalJob, LocalPair
from jobs.client.pairs import composed
from jobs.client.wording import many
from jobs.storage.records import JobRecord, TaskTrace
from nst.engines.tasks import result_group, style_group
from nst.errors import InputError
from nst.plain import plain_lines


def pair_named(local: LocalJob, name: str) -> LocalPair:
    """The pair of that name.

    Raises:
        InputError: if the job has none, or it was skipped.
    """
    for pair in local.pairs:
        if composed(pair.name) == composed(name):
            return pair
    for skipped in local.skipped:
        if composed(skipped.name) == composed(name):
            raise InputError(f"pair {name} was not submitted: {skipped.reason}")
    near = difflib.get_close_matches(name, [pair.name for pair in local.pairs], 1)
    hint = f"did you mean {near[0]}?" if near else f"see nst-batch status {local.job_id}"
    raise InputError(f"job {local.job_id} has no pair {name!r}; {hint}")


DUMP = re.compile(
    r"^(Plasma Store Usage:|Eviction Stats:|- (objects|bytes) \w|\(global lru\) ).*\n\n*", re.M
)
"""Lines of what Ray's object store prints of itself, by the hundred, when a node is lost."""


def with_names(text: str, local: LocalJob) -> str:
    """A driver's log with the names of pairs behind their ids, without dumps of Ray's."""
    names = {pair.pair_id: pair.name for pair in local.pairs}
    plain = DUMP.sub("", plain_lines(text))
    return re.sub(
        r"\bpair (\w+)\b",
        lambda m: f"{m[0]} ({names[m[1]]})" if m[1] in names else m[0],
        plain,
    )


def lines_of(text: str, pair: LocalPair) -> list[str]:
    """Lines of a driver's log that are about a pair."""
    return [line for line in text.splitlines() if re.search(rf"\b{pair.pair_id}\b", line)]


@dataclass(frozen=True)
class StageRun:
    """When a stage of a pair or of its style ran, and what it cost.

    Attributes:
        stage: Its name.
        start: Beginning of its first task, in seconds since the epoch.
        end: End of its last.
        tasks: How many of its tasks ran.
        core_s: Seconds of a core, of them together.
        pairs: How many pairs of the job it was computed for: those that share a style.
    """

    stage: str
    start: float
    end: float
    tasks: int
    core_s: float
    pairs: int

    def line(self) -> str:
        """The same for people, in local time."""
        shared = f", for {many(self.pairs, 'pair')}" if self.pairs > 1 else ""
        return (
            f"{datetime.fromtimestamp(self.start):%Y-%m-%d %H:%M:%S} {self.stage}: "
            f"{many(self.tasks, 'task')}, "
            f"{self.core_s:.1f} core-seconds in {self.end - self.start:.1f} s{shared}"
        )


def stages_of(trace: list[TaskTrace], job: JobRecord, pair_id: str) -> Iterator[StageRun]:
    """Every stage of a pair and its style that has run, in the order of their first tasks.

    Args:
        trace: Tasks of the job's last driver.
        job: What was submitted.
        pair_id: One of its pairs.
    """
    sharing: dict[str, int] = {}
    for own in (pair for pair in job.pairs if pair.pair_id == pair_id):
        sharing[result_group(own.result)] = sum(p.result == own.result for p in job.pairs)
        sharing[style_group(own.style)] = sum(p.style == own.style for p in job.pairs)
    by_stage: defaultdict[str, list[TaskTrace]] = defaultdict(list)
    for task in sorted(trace, key=lambda task: task.start):
        if task.group in sharing:
            by_stage[task.stage].append(task)
    for stage, tasks in by_stage.items():
        yield StageRun(
            stage=stage,
            start=min(t.start for t in tasks),
            end=max(t.end for t in tasks),
            tasks=len(tasks),
            core_s=sum(t.end - t.start for t in tasks),
            pairs=sharing[tasks[0].group],
        )
