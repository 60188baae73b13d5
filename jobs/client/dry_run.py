"""What a job would take, before anything of it is encrypted."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from jobs.client.pairs import Pair
from jobs.client.preparation import PreparedPair
from jobs.execution.forecast import work_s
from jobs.execution.graph import build_graph
from jobs.execution.stage_times import StageTimes
from jobs.storage.records import PairRecord
from nst.engines.concrete.plan import CircuitPlan


def records_of_files(pairs: Sequence[Pair]) -> list[PairRecord]:
    """Pairs as a job would have them if every file were encrypted once."""
    return _records((pair.content, pair.style) for pair in pairs)


def records_of_pictures(pairs: Sequence[PreparedPair]) -> list[PairRecord]:
    """Pairs as a job will have them: a picture at two contrasts is encrypted twice."""
    return _records(
        ((id(pair.content), pair.content_gain), (id(pair.style), pair.style_gain)) for pair in pairs
    )


def core_hours(plan: CircuitPlan, times: StageTimes, pairs: Sequence[PairRecord]) -> float:
    """Core-hours of the tasks of these pairs."""
    return work_s(build_graph(plan, pairs), times.seconds(plan)) / 3600


def _records(pictures: Iterable[tuple[Hashable, Hashable]]) -> list[PairRecord]:
    """Records under numbers in place of the ids that encryption would draw."""
    numbers: dict[Hashable, str] = {}
    return [
        PairRecord(
            pair_id=str(index),
            content=numbers.setdefault(("content", content), str(len(numbers))),
            style=numbers.setdefault(("style", style), str(len(numbers))),
        )
        for index, (content, style) in enumerate(pictures)
    ]
