"""A job of one real pair on the toy network, encrypted, run and kept: for all who look at one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import jobs
from jobs.client import drivers
from jobs.client.home import Home, JobBook
from jobs.execution.driver import run_job
from nst.engines.tasks import Task
from jobs.execution.inprocess import InProcessExecutor
from jobs.execution.loading import EvaluatorLoader
from jobs.storage import layout
from jobs.storage.records import (
    JobRecord,
    JobState,
    PairEnd,
    read_marks,
    read_record,
    write_record,
)
from jobs.storage.store import open_store
from nst.network import levels
from nst.network.levels import QualityLevel
from tests.toy import TOY_P_ERROR, TOY_SIZE, toy_weights

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "pairs"
EXAMPLE = "cat"
NAME = "grandmother-in-hospital"
"""What the owner calls that example."""

StartHere = Callable[..., None]


class RecordingExecutor(InProcessExecutor):
    """Keeps everything that an actor is ever handed."""

    def __init__(self, evaluator: Any) -> None:
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
        book: The job.
        received: All that its actors were handed.
    """

    folder: Path
    level: QualityLevel
    home: Home
    book: JobBook
    received: list[bytes]

    def rows(self) -> list[bytes]:
        """The encrypted result as it is stored."""
        store, job_id, pair = open_store(self.book.store), self.book.job_id, self.book.pairs[0]
        end = read_record(store, layout.pair_end(job_id, pair.pair_id), PairEnd)
        keys = [layout.result_row(job_id, end.attempt, pair.pair_id, r) for r in range(end.rows)]
        return [store.read(key) for key in keys]

    def play_back(self) -> StartHere:
        """A driver that does in no time what this job took: right for the same pair of pictures.

        Results of any pair are those of this job's.
        """
        rows = self.rows()

        def start_here(home: Home, book: JobBook, actors: int, *_: object) -> None:
            store = open_store(book.store)
            job = read_record(store, layout.job(book.job_id), JobRecord)
            left = [p for p in job.pairs if p.pair_id not in read_marks(store, job).ended]
            for pair in left:
                for number, row in enumerate(rows):
                    store.write(layout.result_row(job.job_id, "a", pair.pair_id, number), row)
                end = PairEnd(pair_id=pair.pair_id, status="succeeded", attempt="a", rows=len(rows))
                write_record(store, layout.pair_end(job.job_id, pair.pair_id), end)
            total = len(job.pairs)
            state = JobState(status="succeeded", pairs_total=total, pairs_done=total)
            write_record(store, layout.job_end(job.job_id), state)

        return start_here


def run_toy_job(folder: Path, circuits: Path, key: Path) -> ToyJob:
    """Submit and run the job with circuits and a key set that are there already."""
    for side in ("content", "style"):
        (folder / "pairs" / side).mkdir(parents=True)
        shutil.copy(EXAMPLES / side / f"{EXAMPLE}.jpg", folder / "pairs" / side / f"{NAME}.jpg")
    home = Home(folder / "home")
    home.keys.mkdir(parents=True, mode=0o700)
    shutil.copytree(key, home.keys / key.name)
    shutil.copytree(circuits, home.circuits / circuits.name)
    weights = toy_weights(folder / "toy.safetensors")
    level = QualityLevel("toy", TOY_SIZE, weights, TOY_P_ERROR)
    received: list[bytes] = []

    def start_here(_: Home, book: JobBook, actors: int, *__: object) -> None:
        store = open_store(book.store)
        loader = EvaluatorLoader(store.url, book.model_id, book.key_id)
        executor = RecordingExecutor(loader())
        record = read_record(store, layout.job(book.job_id), JobRecord)
        assert run_job(store, record, executor, actors).status == "succeeded"
        received.extend([repr(loader).encode(), *executor.received])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(levels.LEVELS, "toy", level)
        patch.setattr(drivers, "start_here", start_here)
        client = jobs.Client(folder / "store", home=home.root)
        job = client.submit(folder / "pairs", "toy", actors=1)
    return ToyJob(folder, level, home, home.book(job.id), received)
