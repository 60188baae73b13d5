"""How long tasks take: measured once on a named machine, scaled by each stage's work."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from nst.engines.tasks import StageShape
from nst.errors import InputError

FORMAT = 1


class StageRate(BaseModel):
    """One measured task: its work in the engine's own unit, and its seconds on one core."""

    work: float
    seconds: float


class Rates(BaseModel):
    """Measured times of an engine's stages, and where they come from.

    Attributes:
        machine: What they were measured on.
        date: When.
        command: How.
        call_s: Seconds of a call whatever its work; part of the stages' seconds.
        dispatch_s: Seconds of the driver per task.
        overhead_s: Seconds between two tasks of an actor.
        actor_bytes: Resident memory of an actor with model and evaluation keys.
        bytes_per_source_byte: What a call needs besides, per byte of its sources and its result.
        streamed_bytes_per_s: What a core reads of memory per second in a task, because no cache
            holds it; 0 if that is not known.
        stages: By stage.
    """

    format: int = FORMAT
    machine: str
    date: str
    command: str
    call_s: float
    dispatch_s: float
    overhead_s: float
    actor_bytes: int
    bytes_per_source_byte: float
    streamed_bytes_per_s: float = 0.0
    stages: dict[str, StageRate]

    @property
    def source(self) -> str:
        """Machine, day and command in one line."""
        return ", ".join(x for x in (self.machine, self.date[:10], self.command) if x)

    def actor_bytes_of(self, call_bytes: int) -> int:
        """Resident memory of an actor whose largest call reads and gives so many bytes."""
        return self.actor_bytes + int(self.bytes_per_source_byte * call_bytes)

    def slowdown(self, cores: int, memory_bandwidth: float) -> float:
        """How many times longer tasks take where so many cores share a memory.

        Args:
            cores: Of a node, all at work.
            memory_bandwidth: Bytes per second of its memory.
        """
        return max(1.0, cores * self.streamed_bytes_per_s / memory_bandwidth)

    def seconds(self, stages: Sequence[StageShape]) -> dict[str, float]:
        """Core-seconds of one task of each stage.

        A unit of work takes what it takes in the measured stage of the same name; stages that
        were not measured take the mean.
        """
        per_unit = {
            name: max(rate.seconds - self.call_s, 0.0) / rate.work
            for name, rate in self.stages.items()
        }
        mean = statistics.fmean(per_unit.values())
        return {s.name: self.call_s + per_unit.get(s.name, mean) * s.work for s in stages}

    def measured_by(
        self, stages: Sequence[StageShape], tasks: Iterable[tuple[str, float]], what: str
    ) -> Rates:
        """These rates with the stages as a job of the user's took them.

        Args:
            stages: The job's stages.
            tasks: Stage and seconds of each task that the job has run.
            what: What to call it.

        Raises:
            InputError: if the job has run no task of some stage.
        """
        seconds: dict[str, list[float]] = defaultdict(list)
        for stage, took in tasks:
            seconds[stage].append(took)
        missing = [stage.name for stage in stages if stage.name not in seconds]
        if missing:
            raise InputError(f"{what} has run no {missing[0]} task: name a job that has run whole")
        medians = {name: statistics.median(each) for name, each in seconds.items()}
        return self.model_copy(
            update={"machine": what, "date": "", "command": "", "stages": rates_of(stages, medians)}
        )


def rates_of(stages: Sequence[StageShape], seconds: dict[str, float]) -> dict[str, StageRate]:
    """Measured seconds of a task of each stage, beside the stage's work."""
    return {s.name: StageRate(work=s.work, seconds=seconds[s.name]) for s in stages}


def read_rates(path: Path) -> Rates:
    """Rates out of a file.

    Raises:
        InputError: if it is missing, damaged or of another format.
    """
    try:
        rates = Rates.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"rates {path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise InputError(
            f"rates {path} are damaged ({error.error_count()} problems); "
            "take a file that make bench-estimate wrote"
        ) from error
    if rates.format != FORMAT or not rates.stages:
        raise InputError(
            f"rates {path} have format {rates.format} and {len(rates.stages)} stages, this "
            f"version reads format {FORMAT}; measure again: make bench-estimate"
        )
    return rates
