"""What a job would take, before anything of it is encrypted."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.client.pairs import Pair
from jobs.client.preparation import PreparedPair
from jobs.execution.forecast import core_seconds
from jobs.execution.sharing import numbers, share
from jobs.storage.records import PairRecord
from nst.model import Model


def records_of_files(pairs: Sequence[Pair]) -> list[PairRecord]:
    """Pairs as a job would have them if every file were encrypted once."""
    return share([(pair.content, pair.style) for pair in pairs], 1, numbers()).records


def records_of_pictures(pairs: Sequence[PreparedPair], together: int) -> list[PairRecord]:
    """Pairs as a job will have them: a picture at two contrasts is encrypted twice.

    So many share ciphertexts, at most.
    """
    pictures = [
        ((id(content.picture), content.contrast), (id(style.picture), style.contrast))
        for content, style in ((pair.content.input, pair.style.input) for pair in pairs)
    ]
    return share(pictures, together, numbers()).records


def core_hours(model: Model, pairs: Sequence[PairRecord]) -> float:
    """Core-hours of the tasks of these pairs at the rates that ship."""
    return core_seconds(model.plan.stages, model.seconds, pairs) / 3600
