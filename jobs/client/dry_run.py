"""What a job would take, before anything of it is encrypted."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from jobs.client.pairs import Pair
from jobs.client.preparation import PreparedPair
from jobs.storage.records import PairRecord
from nst.model import Model


def records_of_files(pairs: Sequence[Pair]) -> list[PairRecord]:
    """Pairs as a job would have them if every file were encrypted once."""
    return _records((pair.content, pair.style) for pair in pairs)


def records_of_pictures(pairs: Sequence[PreparedPair]) -> list[PairRecord]:
    """Pairs as a job will have them: a picture at two contrasts is encrypted twice."""
    return _records(
        (
            (id(content.picture), content.contrast),
            (id(style.picture), style.contrast),
        )
        for content, style in ((pair.content.input, pair.style.input) for pair in pairs)
    )


def core_hours(model: Model, pairs: Sequence[PairRecord]) -> float:
    """Core-hours of the tasks of these pairs at the rates that ship."""
    return model.plan.graph(pairs, model.seconds).seconds / 3600


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
