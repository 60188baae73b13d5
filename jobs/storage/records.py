"""The JSON records of a job in the store. They hold opaque ids only: names stay on the client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, TypeAdapter, ValidationError

from jobs.storage import layout
from jobs.storage.store import Store
from nst.errors import StoreContentError

FORMAT = 3
STALE_AFTER = 120.0
"""Seconds without a sign of life after which a driver is taken to be gone: longer than it waits for
a store that is away."""

Status = Literal["submitted", "queued", "running", "succeeded", "failed", "cancelled"]
"""Of a job and of a pair. A job is `queued` until it has actors, a pair until it has its turn."""

Record = TypeVar("Record", bound=BaseModel)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


Reason = Annotated[str, AfterValidator(_one_line)]
"""Text of a server's, shown in a terminal: nothing in it may steer one."""


class _Form(BaseModel):
    """What every record tells of itself, whichever version wrote it."""

    format: int = FORMAT


class PairRecord(BaseModel):
    """A pair by the ids of its encrypted pictures."""

    pair_id: str
    content: str
    style: str


class JobRecord(BaseModel):
    """What is to be done, by which model under which keys.

    `width` and `height` are those of the encrypted contents in pixels.
    """

    format: int = FORMAT
    job_id: str
    created: str
    quality: str
    width: int
    height: int
    model_id: str
    key_id: str
    pairs: list[PairRecord]


class JobState(BaseModel):
    """How far a job is; replaced every other second while a driver has it.

    Times are seconds since the epoch, `heartbeat` by the store's clock and the others by the
    machines'; `seconds_total` is what this driver found left to do, in core-seconds at the engine's
    measured rates, `stages` the deepest stage of running pairs that has a result, `nodes` where
    actors are.
    """

    format: int = FORMAT
    status: Status = "submitted"
    attempt: str = ""
    pairs_total: int = 0
    pairs_done: int = 0
    pairs_failed: int = 0
    pairs_running: list[str] = []
    stages: dict[str, str] = {}
    seconds_total: float = 0.0
    seconds_done: float = 0.0
    attempts_failed: int = 0
    actors: int = 0
    nodes: int = 0
    driver_started: float = 0.0
    first_task: float = 0.0
    last_task: float = 0.0
    heartbeat: float = 0.0
    peak_live_bytes: int = 0
    reason: Reason = ""

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.status in ("succeeded", "failed", "cancelled")

    @property
    def share(self) -> float:
        """Of the work that is done, 0 to 1."""
        return self.seconds_done / self.seconds_total if self.seconds_total else 0.0

    def eta(self, now: float) -> float | None:
        """Seconds to the end at the job's own rate so far; None before there is one."""
        spent = now - self.first_task
        if not self.first_task or not self.seconds_done or spent <= 0:
            return None
        return (self.seconds_total - self.seconds_done) / (self.seconds_done / spent)

    def stale(self, now: float) -> bool:
        """Whether the driver that should be at work is gone; `now` by the store's clock."""
        at_work = self.status in ("queued", "running")
        return at_work and now - self.heartbeat > STALE_AFTER


class PairEnd(BaseModel):
    """The end of a pair, published once: whose parts are its result, or why it has none."""

    format: int = FORMAT
    pair_id: str
    status: Literal["succeeded", "failed"]
    attempt: str = ""
    parts: int = 0
    reason: Reason = ""
    finished: float = 0.0


class Cancellation(BaseModel):
    """A wish that a job be stopped."""

    format: int = FORMAT
    asked: float


@dataclass(frozen=True)
class PairState:
    """Where a pair stands, and why if it failed."""

    status: Status
    reason: str = ""


class TaskTrace(BaseModel):
    """When one task ran, in seconds since the epoch, and the core-seconds expected of it."""

    stage: str
    group: str
    part: int
    seconds: float
    start: float
    end: float
    cpu_s: float


_TRACE = TypeAdapter(list[TaskTrace])


def read_record(store: Store, key: str, kind: type[Record]) -> Record:
    """Read and check a record.

    Raises:
        StoreContentError: if it is missing, damaged or of another format.
        StoreError: if the store does not answer.
    """
    blob = store.read(key)
    try:
        # The format first: other versions have other fields.
        form = _Form.model_validate_json(blob).format
        if form != FORMAT:
            raise StoreContentError(
                f"store {store.url}: {key} has format {form}, this version reads {FORMAT}; "
                "use the version that wrote it"
            )
        return kind.model_validate_json(blob)
    except ValidationError as error:
        raise StoreContentError(
            f"store {store.url}: {key} is damaged ({error.error_count()} problems); "
            "submit the job again"
        ) from error


def read_trace(store: Store, job_id: str) -> list[TaskTrace]:
    """When the tasks of a job's last driver ran; empty where no driver has ended yet.

    Raises:
        StoreContentError: if it is damaged.
        StoreError: if the store does not answer.
    """
    key = layout.trace(job_id)
    if not store.exists(key):
        return []
    try:
        return _TRACE.validate_json(store.read(key))
    except ValidationError as error:
        raise StoreContentError(
            f"store {store.url}: {key} is damaged ({error.error_count()} problems); "
            "times of the job's tasks are lost, its results are not"
        ) from error


def write_record(store: Store, key: str, record: BaseModel) -> None:
    """Create or replace a record."""
    store.write(key, record.model_dump_json().encode())


def read_job(store: Store, job_id: str) -> JobRecord:
    """What was submitted; see `read_record` for errors."""
    return read_record(store, layout.job(job_id), JobRecord)


def read_state(store: Store, job_id: str) -> JobState:
    """The state of a job; `submitted` before a driver has taken it up."""
    for key in (layout.job_end(job_id), layout.state(job_id)):
        if store.exists(key):
            return read_record(store, key, JobState)
    return JobState()


@dataclass(frozen=True)
class Marks:
    """What one listing of a job's markers tells.

    Attributes:
        ended: The pairs that have ended, by pair id.
        cancelled: Whether the job is to be stopped.
        complete: Whether the job has its own end marker.
    """

    ended: dict[str, PairEnd]
    cancelled: bool
    complete: bool


def read_marks(store: Store, job: JobRecord, known: Mapping[str, PairEnd] | None = None) -> Marks:
    """The markers of a job.

    Args:
        store: Where it is.
        job: Its record.
        known: Pairs whose end has been read already: a marker never changes.
    """
    known = known or {}
    listed = set(store.list(layout.marks(job.job_id)))
    ended = {}
    for pair_id in (pair.pair_id for pair in job.pairs):
        key = layout.pair_end(job.job_id, pair_id)
        if key in listed:
            ended[pair_id] = known.get(pair_id) or read_record(store, key, PairEnd)
    return Marks(
        ended,
        cancelled=layout.cancellation(job.job_id) in listed,
        complete=layout.job_end(job.job_id) in listed,
    )


def pair_states(
    pairs: Iterable[str], state: JobState, ended: Mapping[str, PairEnd]
) -> dict[str, PairState]:
    """Where each pair of a job stands: its marker says, else what the job does.

    Args:
        pairs: Pair ids.
        state: The job's state.
        ended: Markers of the pairs that have ended.
    """
    running = set(state.pairs_running) if state.status == "running" else set()
    # Pairs of a running job wait for their turn; otherwise they share the job's fate.
    rest: Status = "queued" if state.status == "running" else state.status
    states = {}
    for pair_id in pairs:
        if pair_id in ended:
            states[pair_id] = PairState(ended[pair_id].status, ended[pair_id].reason)
        elif pair_id in running:
            states[pair_id] = PairState("running")
        else:
            states[pair_id] = PairState(rest, state.reason if rest == "failed" else "")
    return states
