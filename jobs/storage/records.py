"""The JSON records of a job in the store. They hold opaque ids only: names stay on the client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from jobs.storage import layout
from jobs.storage.bounds import JOB_BYTES, MARKS, PAIR_BYTES, SMALL_BYTES, TASK_BYTES, TRACE_BYTES
from jobs.storage.store import Store
from nst.errors import StoreContentError
from nst.parsing import ID, parse_json
from nst.plain import plain

FORMAT = 3
STALE_AFTER = 120.0
"""Seconds without a sign of life after which a driver is taken to be gone: longer than it waits for
a store that is away."""

READERS = 16
"""Markers of pairs that are read at once."""
FEW = 16
"""Markers that are read one by one; where more are to be read, `PairEnds` spares most of them."""

Status = Literal["submitted", "queued", "running", "succeeded", "failed", "cancelled"]
"""Of a job and of a pair. A job is `queued` until it has actors, a pair until it has its turn."""

MOST = 1e11
"""No count and no second of ours is larger: dates end with the year 9999."""
NAME = r"^[0-9A-Za-z_:.-]{1,100}$"


Id = Annotated[str, Field(pattern=ID)]
"""Of a job, a pair, a picture, an attempt: part of a key, and shown in a terminal."""
Name = Annotated[str, Field(pattern=NAME)]
"""Of a stage, a quality level, a group of tasks."""
Count = Annotated[int, Field(ge=0, le=MOST)]
Seconds = Annotated[float, Field(ge=0, le=MOST)]
"""Of a clock or between two, so that sums and differences stay finite."""
Reason = Annotated[str, BeforeValidator(plain)]
"""Text of a server's, shown in a terminal: nothing in it may steer one."""


class StoreRecord(BaseModel):
    """What every record tells of itself, whichever version wrote it."""

    model_config = ConfigDict(allow_inf_nan=False)

    format: int = FORMAT


Record = TypeVar("Record", bound=StoreRecord)


class PairRecord(BaseModel):
    """A pair by the ids of its encrypted pictures and of its result; pairs may share all three."""

    pair_id: Id
    content: Id
    style: Id
    result: Id


class JobRecord(StoreRecord):
    """What is to be done, by which model under which keys.

    `width` and `height` are those of the encrypted contents in pixels.
    """

    job_id: Id
    created: Reason
    quality: Name
    width: Count
    height: Count
    model_id: Id
    key_id: Id
    pairs: list[PairRecord]

    @model_validator(mode="after")
    def _results_are_of_the_same_pictures(self) -> Self:
        made: dict[str, tuple[str, str]] = {}
        for pair in self.pairs:
            pictures = pair.content, pair.style
            if made.setdefault(pair.result, pictures) != pictures:
                raise ValueError(f"pairs of result {pair.result} have other pictures")
        return self


class JobState(StoreRecord):
    """How far a job is; replaced every other second while a driver has it.

    Times are seconds since the epoch, `heartbeat` by the store's clock and the others by the
    machines'; `seconds_total` is what this driver found left to do, in core-seconds at the engine's
    measured rates, `stages` the deepest stage of running pairs that has a result, `nodes` where
    actors are.
    """

    status: Status = "submitted"
    attempt: Id | Literal[""] = ""
    pairs_total: Count = 0
    pairs_done: Count = 0
    pairs_failed: Count = 0
    pairs_running: list[Id] = []
    stages: dict[Id, Name] = {}
    seconds_total: Seconds = 0.0
    seconds_done: Seconds = 0.0
    attempts_failed: Count = 0
    actors: Count = 0
    nodes: Count = 0
    driver_started: Seconds = 0.0
    first_task: Seconds = 0.0
    last_task: Seconds = 0.0
    heartbeat: Seconds = 0.0
    peak_live_bytes: Annotated[int, Field(ge=0, le=2**63)] = 0
    reason: Reason = ""

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.status in ("succeeded", "failed", "cancelled")

    @property
    def share(self) -> float:
        """Of the work that is done, 0 to 1."""
        return min(self.seconds_done / self.seconds_total, 1.0) if self.seconds_total else 0.0

    def eta(self, now: float) -> float | None:
        """Seconds to the end at the job's own rate so far; None before there is one."""
        spent = now - self.first_task
        if not self.first_task or not self.seconds_done or spent <= 0:
            return None
        rate = self.seconds_done / spent
        # A store may say that next to nothing is done.
        return min((self.seconds_total - self.seconds_done) / rate, MOST) if rate else None

    def stale(self, now: float) -> bool:
        """Whether the driver that should be at work is gone; `now` by the store's clock."""
        at_work = self.status in ("queued", "running")
        return at_work and now - self.heartbeat > STALE_AFTER


class PairEnd(StoreRecord):
    """The end of a pair, published once: whose parts are its result, or why it has none."""

    pair_id: Id
    status: Literal["succeeded", "failed"]
    attempt: Id | Literal[""] = ""
    parts: Count = 0
    reason: Reason = ""
    finished: Seconds = 0.0


class PairEnds(StoreRecord):
    """The ends of many pairs as their markers have them, so that not each marker must be read.

    It may lack some, and has some whose marker is gone: which pairs have ended say the markers.
    """

    ends: list[PairEnd]


class Cancellation(StoreRecord):
    """A wish that a job be stopped."""

    asked: Seconds


@dataclass(frozen=True)
class PairState:
    """Where a pair stands, and why if it failed."""

    status: Status
    reason: str = ""


class TaskTrace(BaseModel):
    """When one task ran, in seconds since the epoch, and the core-seconds expected of it."""

    model_config = ConfigDict(allow_inf_nan=False)

    stage: Name
    group: Name
    part: Count
    seconds: Seconds
    start: Seconds
    end: Seconds
    cpu_s: Seconds


_TRACE = TypeAdapter(list[TaskTrace])


def read_record(store: Store, key: str, kind: type[Record], limit: int = SMALL_BYTES) -> Record:
    """Read and check a record.

    Args:
        store: Where it is.
        key: Which.
        kind: What it is.
        limit: Bytes that it can have.

    Raises:
        StoreContentError: if it is missing, damaged, too large or of another format.
        StoreError: if the store does not answer.
    """
    blob = store.read(key, limit)
    try:
        document = parse_json(blob, limit)
        # The format first: other versions have other fields.
        form = StoreRecord.model_validate(document).format
        if form != FORMAT:
            raise StoreContentError(
                f"store {store.url}: {key} has format {form}, this version reads {FORMAT}; "
                "use the version that wrote it"
            )
        return kind.model_validate(document)
    except ValueError as error:
        problems = error.error_count() if isinstance(error, ValidationError) else 1
        raise StoreContentError(
            f"store {store.url}: {key} is damaged ({problems} problems); submit the job again"
        ) from error


def read_trace(store: Store, job_id: str, tasks: int | None = None) -> list[TaskTrace]:
    """When the tasks of a job's last driver ran; empty where no driver has ended yet.

    Args:
        store: Where it is.
        job_id: Which job.
        tasks: How many tasks the job can have, if the reader knows.

    Raises:
        StoreContentError: if it is damaged.
        StoreError: if the store does not answer.
    """
    key = layout.trace(job_id)
    if not store.exists(key):
        return []
    limit = TRACE_BYTES if tasks is None else SMALL_BYTES + TASK_BYTES * tasks
    try:
        return _TRACE.validate_python(parse_json(store.read(key, limit), limit))
    except ValueError as error:
        raise StoreContentError(
            f"store {store.url}: {key} is damaged; "
            "times of the job's tasks are lost, its results are not"
        ) from error


def write_record(store: Store, key: str, record: BaseModel) -> None:
    """Create or replace a record."""
    store.write(key, record.model_dump_json().encode())


def read_job(store: Store, job_id: str, pairs: int | None = None) -> JobRecord:
    """What was submitted; see `read_record` for errors.

    Args:
        store: Where it is.
        job_id: Which job.
        pairs: How many pairs the job has at most, if the reader knows.
    """
    key = layout.job(job_id)
    job = read_record(store, key, JobRecord, _job_bytes(pairs))
    if job.job_id != job_id or (pairs is not None and len(job.pairs) > pairs):
        raise StoreContentError(f"store {store.url}: {key} is another job's; submit the job again")
    return job


def read_state(store: Store, job_id: str, pairs: int | None = None) -> JobState:
    """The state of a job; `submitted` before a driver has taken it up; see `read_job`."""
    for key in (layout.job_end(job_id), layout.state(job_id)):
        if store.exists(key):
            return read_record(store, key, JobState, _job_bytes(pairs))
    return JobState()


def _job_bytes(pairs: int | None) -> int:
    return JOB_BYTES if pairs is None else SMALL_BYTES + PAIR_BYTES * pairs


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
    """The markers of a job; a pair whose own is damaged has failed, so that `retry` mends it.

    However many pairs have ended, they are one listing and few reads once the job's driver has
    written their `PairEnds`.

    Args:
        store: Where it is.
        job: Its record.
        known: Pairs whose end has been read already: a marker never changes.
    """
    known = known or {}
    listed = set(store.list(layout.marks(job.job_id), MARKS + 2 * len(job.pairs)))
    keys = {pair.pair_id: layout.pair_end(job.job_id, pair.pair_id) for pair in job.pairs}
    ended = {pair_id: known.get(pair_id) for pair_id, key in keys.items() if key in listed}
    unread = [pair_id for pair_id, end in ended.items() if end is None]
    if len(unread) > FEW and layout.pair_ends(job.job_id) in listed:
        together = _read_ends(store, job)
        ended |= {pair_id: together.get(pair_id) for pair_id in unread}
        unread = [pair_id for pair_id in unread if pair_id not in together]
    # A store that is far away takes its time for each, not for all.
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda pair_id: _read_end(store, keys[pair_id], pair_id), unread)
        ended |= zip(unread, found, strict=True)
    return Marks(
        {pair_id: end for pair_id, end in ended.items() if end},
        cancelled=layout.cancellation(job.job_id) in listed,
        complete=layout.job_end(job.job_id) in listed,
    )


def write_ends(store: Store, job_id: str, ends: Iterable[PairEnd]) -> None:
    """Replace the `PairEnds` of a job; what a long reason makes too large its marker alone says."""
    lines = (end.model_dump_json() for end in ends)
    kept = [line for line in lines if len(line.encode()) < PAIR_BYTES]
    store.write(
        layout.pair_ends(job_id), f'{{"format":{FORMAT},"ends":[{",".join(kept)}]}}'.encode()
    )


def _read_ends(store: Store, job: JobRecord) -> dict[str, PairEnd]:
    """By pair id; nothing if the record is damaged, since the markers say the same."""
    key, limit = layout.pair_ends(job.job_id), _job_bytes(len(job.pairs))
    try:
        return {end.pair_id: end for end in read_record(store, key, PairEnds, limit).ends}
    except StoreContentError:
        return {}


def _read_end(store: Store, key: str, pair_id: str) -> PairEnd:
    try:
        end = read_record(store, key, PairEnd)
        if end.pair_id == pair_id:
            return end
        reason = f"its marker {key} is another pair's"
    except StoreContentError as error:
        reason = str(error)
    return PairEnd(pair_id=pair_id, status="failed", reason=reason)


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
