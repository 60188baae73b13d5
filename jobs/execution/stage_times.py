"""How long row tasks take: measured once on a named machine, scaled by what a PBS costs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ValidationError

from jobs.storage.records import TaskTrace
from nst.errors import InputError
from nst.engines.concrete.plan import CircuitPlan

FORMAT = 1
SHIPPED = Path(__file__).with_name("stage_times.json")


class StageTime(BaseModel):
    """One measured row task: its PBS, what one of them costs, and its seconds on one core."""

    pbs: int
    operations_per_pbs: float
    seconds: float


class StageTimes(BaseModel):
    """Measured times, and where they come from.

    Attributes:
        machine: What they were measured on.
        date: When.
        command: How.
        call_s: Seconds of a call besides its PBS; part of the stages' seconds.
        dispatch_s: Seconds of the driver's for every task.
        overhead_s: Seconds between two tasks of a worker.
        worker_bytes: Resident memory of a worker with circuits and keys.
        bytes_per_source_byte: What a call needs besides, a byte of its sources and its result.
        stages: By stage.
    """

    format: int = FORMAT
    machine: str
    date: str
    command: str
    call_s: float
    dispatch_s: float
    overhead_s: float
    worker_bytes: int
    bytes_per_source_byte: float
    stages: dict[str, StageTime]

    def worker_bytes_of(self, call_bytes: int) -> int:
        """Resident memory of a worker whose largest call reads and gives so many bytes."""
        return self.worker_bytes + int(self.bytes_per_source_byte * call_bytes)

    def seconds(self, plan: CircuitPlan) -> dict[str, float]:
        """Seconds of one row task of each stage of a plan, on one core.

        A PBS takes what it takes in the measured stage of the same name, linear work included,
        in proportion to its operations; stages that were not measured take the mean.
        """
        per_operation = {
            name: max(t.seconds - self.call_s, 0.0) / (t.pbs * t.operations_per_pbs)
            for name, t in self.stages.items()
        }
        mean = statistics.fmean(per_operation.values())
        return {
            stage.name: self.call_s
            + per_operation.get(stage.name, mean) * stage.operations / stage.rows
            for stage in plan.stages
        }

    def measured_by(self, plan: CircuitPlan, trace: Iterable[TaskTrace], what: str) -> StageTimes:
        """These times with the stages as a job of one's own took them.

        Args:
            plan: The job's circuits.
            trace: Its tasks.
            what: What to call it.

        Raises:
            InputError: if the job has run no task of some stage.
        """
        seconds: dict[str, list[float]] = defaultdict(list)
        for task in trace:
            seconds[task.stage].append(task.end - task.start)
        missing = [stage.name for stage in plan.stages if stage.name not in seconds]
        if missing:
            raise InputError(f"{what} has run no {missing[0]} task: name a job that has run whole")
        medians = {name: statistics.median(each) for name, each in seconds.items()}
        return self.model_copy(
            update={"machine": what, "date": "", "command": "", "stages": times_of(plan, medians)}
        )


def times_of(plan: CircuitPlan, seconds: dict[str, float]) -> dict[str, StageTime]:
    """Measured seconds of a call of each stage, beside what the plan says of the stage."""
    return {
        stage.name: StageTime(
            pbs=stage.pbs_per_row,
            operations_per_pbs=stage.operations / stage.pbs,
            seconds=seconds[stage.name],
        )
        for stage in plan.stages
    }


def read_times(path: Path = SHIPPED) -> StageTimes:
    """Times out of a file; by default those that came with this version.

    Raises:
        InputError: if it is missing, damaged or of another format.
    """
    try:
        times = StageTimes.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"stage times {path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise InputError(
            f"stage times {path} are damaged ({error.error_count()} problems); "
            "take a file that make bench-estimate wrote"
        ) from error
    if times.format != FORMAT or not times.stages:
        raise InputError(
            f"stage times {path} have format {times.format} and {len(times.stages)} stages, this "
            f"version reads format {FORMAT}; measure again: make bench-estimate"
        )
    return times
