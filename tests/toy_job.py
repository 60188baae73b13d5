"""A job of one real pair on the toy network, encrypted, run and kept: for all who look at one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.client.home import Home, LocalJob
from jobs.client.pairs import find_pairs
from jobs.client.preparation import prepare
from jobs.client.session import Session
from jobs.client.submit import submit
from jobs.execution.driver import run_job
from jobs.execution.inprocess import InProcessExecutor
from jobs.execution.loading import EvaluatorLoader
from jobs.storage import layout
from jobs.storage.records import (
    JobState,
    PairEnd,
    read_job,
    read_marks,
    read_record,
    write_record,
)
from jobs.storage.store import open_store
from nst.engines.base import Evaluator
from nst.engines.tasks import Task
from nst.model import Model
from nst.network import levels
from nst.network.levels import QualityLevel
from tests.toy import toy_level, toy_weights

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "pairs"
EXAMPLE = "cat"
NAME = "grandmother-in-hospital"
"""What the owner calls that example."""

StartHere = Callable[..., None]


class RecordingExecutor(InProcessExecutor):
    """Keeps everything that an actor is ever handed."""

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__(evaluator)
        self.received: list[bytes] = []

    def submit(self, task: Task, inputs: Sequence[bytes]) -> None:
        self.received += [repr(task).encode(), *inputs]
        super().submit(task, inputs)


@dataclass(frozen=True)
class ToyJob:
    """A job that has run.

    Attributes:
        folder: Holds `pairs`, `store` and the toy's weights.
        level: The toy as a quality level.
        home: The client's data directory.
        local: The job.
        received: All that its actors were handed.
    """

    folder: Path
    level: QualityLevel
    home: Home
    local: LocalJob
    received: list[bytes]

    @property
    def session(self) -> Session:
        """Its store and its keys."""
        return Session(self.home, open_store(self.local.store))

    def parts(self) -> list[bytes]:
        """The encrypted result as it is stored."""
        store, job_id, pair = open_store(self.local.store), self.local.job_id, self.local.pairs[0]
        end = read_record(store, layout.pair_end(job_id, pair.pair_id), PairEnd)
        keys = [layout.result_part(job_id, end.attempt, pair.pair_id, p) for p in range(end.parts)]
        return [store.read(key) for key in keys]

    def play_back(self) -> StartHere:
        """A driver that does in no time what this job took: right for the same pair of pictures.

        Results of any pair are those of this job's.
        """
        parts = self.parts()

        def start_here(home: Home, local: LocalJob, actors: int, *_: object) -> None:
            store = open_store(local.store)
            job = read_job(store, local.job_id)
            left = [p for p in job.pairs if p.pair_id not in read_marks(store, job).ended]
            for pair in left:
                for number, part in enumerate(parts):
                    store.write(layout.result_part(job.job_id, "a", pair.pair_id, number), part)
                end = PairEnd(
                    pair_id=pair.pair_id, status="succeeded", attempt="a", parts=len(parts)
                )
                write_record(store, layout.pair_end(job.job_id, pair.pair_id), end)
            total = len(job.pairs)
            state = JobState(status="succeeded", pairs_total=total, pairs_done=total)
            write_record(store, layout.job_end(job.job_id), state)

        return start_here


def run_toy_job(folder: Path, model: Path, key: Path) -> ToyJob:
    """Submit and run the job with a published model and a key set that are there already."""
    for side in ("content", "style"):
        (folder / "pairs" / side).mkdir(parents=True)
        shutil.copy(EXAMPLES / side / f"{EXAMPLE}.jpg", folder / "pairs" / side / f"{NAME}.jpg")
    home = Home(folder / "home")
    home.keys.mkdir(parents=True, mode=0o700)
    shutil.copytree(key, home.keys / key.name)
    shutil.copytree(model, home.models / model.name)
    level = toy_level(toy_weights(folder / "toy.safetensors"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(levels.LEVELS, "toy", level)
        loaded = Model.load("toy", home.models)
    prepared, skipped = prepare(find_pairs(folder / "pairs")[0], loaded, "crop")
    session = Session.open(home, str(folder / "store"), create=True)
    local = submit(session, loaded, prepared, skipped)
    loader = EvaluatorLoader(session.store.url, local.model_id, local.key_id)
    executor = RecordingExecutor(loader())
    state = run_job(session.store, read_job(session.store, local.job_id), executor, 1)
    assert state.status == "succeeded"
    return ToyJob(folder, level, home, local, [repr(loader).encode(), *executor.received])
