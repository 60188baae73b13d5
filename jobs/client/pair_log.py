"""What a driver's log says of pairs, whose names only the client knows."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime

from jobs.client.home import BookPair, JobBook
from jobs.execution.graph import pair_group
from jobs.storage.records import TaskTrace
from nst.errors import InputError


def pair_named(book: JobBook, name: str) -> BookPair:
    """The pair of that name.

    Raises:
        InputError: if the job has none, or it was skipped.
    """
    for pair in book.pairs:
        if pair.name == name:
            return pair
    for skipped in book.skipped:
        if skipped.name == name:
            raise InputError(f"pair {name} was not submitted: {skipped.reason}")
    near = difflib.get_close_matches(name, [pair.name for pair in book.pairs], 1)
    hint = f"did you mean {near[0]}?" if near else f"see nst-batch status {book.job_id}"
    raise InputError(f"job {book.job_id} has no pair {name!r}; {hint}")


def with_names(text: str, book: JobBook) -> str:
    """A driver's log with the names of pairs behind their ids."""
    names = {pair.pair_id: pair.name for pair in book.pairs}
    # The server's words: nothing in them may steer a terminal.
    plain = "".join(c for c in text if c.isprintable() or c in "\n\t")
    return re.sub(
        r"\bpair (\w+)\b",
        lambda m: f"{m[0]} ({names[m[1]]})" if m[1] in names else m[0],
        plain,
    )


def lines_of(text: str, pair: BookPair) -> list[str]:
    """Lines of a driver's log that are about a pair."""
    return [line for line in text.splitlines() if re.search(rf"\b{pair.pair_id}\b", line)]


def stages_of(trace: list[TaskTrace], pair: BookPair) -> Iterator[str]:
    """A line for every stage of a pair that has run, in the order of their first tasks."""
    by_stage: defaultdict[str, list[TaskTrace]] = defaultdict(list)
    for task in sorted(trace, key=lambda task: task.start):
        if task.group == pair_group(pair.pair_id):
            by_stage[task.stage].append(task)
    for stage, tasks in by_stage.items():
        start, end = min(t.start for t in tasks), max(t.end for t in tasks)
        spent = sum(t.end - t.start for t in tasks)
        yield (
            f"{datetime.fromtimestamp(start):%Y-%m-%d %H:%M:%S} {stage}: {len(tasks)} rows, "
            f"{sum(t.pbs for t in tasks):,} PBS, {spent:.1f} core-seconds in {end - start:.1f} s"
        )
