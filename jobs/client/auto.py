"""The best quality level whose job fits a span of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.client.wording import many
from jobs.execution.forecast import Forecaster, Offer
from jobs.execution.sharing import sharing
from jobs.storage.records import PairRecord
from nst.engines.rates import Rates
from nst.errors import InputError
from nst.model import Model
from nst.network.levels import QualityLevel


@dataclass(frozen=True)
class Choice:
    """A level, and what the choice is made by.

    Attributes:
        level: The best level that fits.
        seconds: What the job takes at it.
        better: The next better one and what it would take, if there is one.
        budget: Seconds there are.
        cores: Workers, one core each.
    """

    level: QualityLevel
    seconds: float
    better: tuple[QualityLevel, float] | None
    budget: float
    cores: int

    @property
    def reason(self) -> str:
        """Why it is this level, in one line."""
        cores = many(self.cores, "core")
        why = f"about {hours(self.seconds)} of {hours(self.budget)} on {cores}"
        if self.better:
            why += f"; {self.better[0].name} would take {hours(self.better[1])}"
        return why


def choose(
    pairs: Sequence[PairRecord],
    levels: Sequence[QualityLevel],
    cores: int,
    budget: float,
    offer: Offer,
    model_of: Callable[[QualityLevel], Model],
    uploads: bool,
    rates: Rates | None = None,
) -> Choice:
    """Forecast the job at each level, from the best one down, until it fits.

    Args:
        pairs: What is to be done.
        levels: Those of an engine.
        cores: Workers, one core each.
        budget: Seconds there are.
        offer: What the cores are like, and the wire to the store.
        model_of: A level's model at the size that is wanted.
        uploads: Whether bytes go over that wire, so that their time counts.
        rates: Measured times; None is those that ship with a model's engine.

    Raises:
        InputError: if no level fits.
    """
    better: tuple[QualityLevel, float] | None = None
    trained = [level for level in levels if level.trained]
    for level in sorted(trained, key=lambda level: level.side, reverse=True):
        model = model_of(level)
        forecaster = Forecaster(model.plan, rates or model.engine.rates(), offer)
        shared = sharing(pairs, model.plan.pairs_per_result)
        seconds = forecaster.job(shared, cores).wall_s
        if uploads:
            wire = forecaster.wire(shared)
            seconds += (wire.up + wire.down) / offer.uplink
        if seconds <= budget:
            return Choice(level, seconds, better, budget, cores)
        better = level, seconds
    if better is None:
        raise InputError("no quality level has weights in this installation; reinstall it")
    raise InputError(
        f"no quality level fits {hours(budget)} on {cores} cores: {better[0].name} takes about "
        f"{hours(better[1])}; give a longer --budget, more cores or fewer pairs"
    )


def hours(seconds: float) -> str:
    """Seconds as one writes a budget."""
    minutes = max(round(seconds / 60), 1)
    whole, rest = divmod(minutes, 60)
    return " ".join(
        x for x in (f"{whole:,} h" if whole else "", f"{rest} min" if rest else "") if x
    )
