"""Jobs without cryptography: made-up circuits and rows of bytes, for tests of what drives them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import pytest

from jobs.execution import writer as writing
from nst.engines.tasks import Task
from jobs.execution.inprocess import InProcessExecutor
from jobs.storage import layout
from jobs.storage.records import JobRecord, PairRecord, write_record
from jobs.storage.store import Store
from nst.ciphertext import Envelope
from nst.errors import CircuitError
from nst.engines.concrete.plan import CircuitPlan
from nst.engines.concrete.server import Evaluator
from tests.plans import grid_of_pairs, made_up_plan


@pytest.fixture(scope="module", autouse=True)
def plain_results() -> Iterator[None]:
    """Rows are stored as they are, in modules that import this: they are no ciphertexts."""

    def whole(key_id: str, model_id: str, rows: Sequence[bytes], bits: int) -> Envelope:
        return Envelope(key_id, model_id, tuple(rows))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "switched", whole)
        yield


PLAN = made_up_plan(size=32)
POISON = b"poison"
"""A row that no stage takes."""


class FakeEvaluator(Evaluator):
    """Stages as hash functions."""

    def __init__(self) -> None:
        pass

    def run(self, stage: str, rows: Sequence[bytes]) -> bytes:
        """See `Evaluator`."""
        if POISON in rows:
            raise CircuitError(f"stage {stage} refused its ciphertexts")
        return hashlib.sha256(b"|".join([stage.encode(), *rows])).digest()


class Meddling(InProcessExecutor):
    """Does something before one of its tasks."""

    def __init__(self, at: int, meddle: Callable[[], object]) -> None:
        super().__init__(FakeEvaluator())
        self.at, self.meddle = at, meddle
        self.tasks: list[Task] = []
        self.closed = False

    def submit(self, task: Task, inputs: Sequence[bytes]) -> None:
        """See `Executor`."""
        self.tasks.append(task)
        if len(self.tasks) == self.at:
            self.meddle()
        super().submit(task, inputs)

    def close(self) -> None:
        """See `Executor`."""
        self.closed = True


def fake_executor() -> InProcessExecutor:
    """An executor of fake stages."""
    return InProcessExecutor(FakeEvaluator())


def fake_job(
    store: Store,
    job_id: str = "job",
    pairs: Sequence[PairRecord] | None = None,
    plan: CircuitPlan = PLAN,
    poisoned: str = "",
) -> JobRecord:
    """Put a job into a store as a client would: by default 3 contents with 2 styles."""
    pairs = grid_of_pairs(3, 2) if pairs is None else pairs
    store.write(layout.circuit_plan(plan.model_id), json.dumps(plan.to_dict()).encode())
    store.write(layout.server_zip(plan.model_id), b"circuits")
    store.write(layout.evaluation_keys("key"), b"keys")
    for input_id in {i for pair in pairs for i in (pair.content, pair.style)}:
        rows = tuple(f"{input_id} {row}".encode() for row in range(plan.size // 4))
        if input_id == poisoned:
            rows = (*rows[:-1], POISON)
        envelope = Envelope("key", plan.model_id, rows)
        store.write(layout.encrypted_input(job_id, input_id), envelope.pack())
    job = JobRecord(
        job_id=job_id,
        created="2026-01-01T00:00:00+00:00",
        quality="toy",
        model_id=plan.model_id,
        key_id="key",
        pairs=list(pairs),
    )
    write_record(store, layout.job(job_id), job)
    return job
