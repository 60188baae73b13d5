"""The JSON records of a job in the store. They hold opaque ids only: names stay on the client."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError

from jobs.storage import layout
from jobs.storage.store import Store
from nst.errors import StoreError

FORMAT = 1

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
    """What is to be done, under which circuits and keys."""

    format: int = FORMAT
    job_id: str
    created: str
    quality: str
    circuit_id: str
    key_id: str
    pairs: list[PairRecord]


class JobState(BaseModel):
    """How far a job is; replaced about once a second while it runs.

    Times are seconds since the epoch; `pbs_done` counts from the driver's start.
    """

    format: int = FORMAT
    status: Literal["submitted", "running", "succeeded", "failed"] = "submitted"
    pairs_total: int = 0
    pairs_done: int = 0
    pairs_failed: int = 0
    pbs_total: int = 0
    pbs_done: int = 0
    actors: int = 0
    driver_started: float = 0.0
    first_task: float = 0.0
    last_task: float = 0.0
    updated: float = 0.0
    peak_live_bytes: int = 0
    reason: Reason = ""

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.status in ("succeeded", "failed")


class ResultRecord(BaseModel):
    """The end of a pair: its result's rows, or why it has none."""

    format: int = FORMAT
    pair_id: str
    status: Literal["done", "failed"]
    rows: int = 0
    reason: Reason = ""
    finished: float = 0.0


class TaskTrace(BaseModel):
    """When one row task ran, in seconds since the epoch, and what it cost."""

    stage: str
    group: str
    row: int
    pbs: int
    start: float
    end: float
    cpu_s: float


def read_record(store: Store, key: str, kind: type[Record]) -> Record:
    """Read and check a record.

    Raises:
        StoreError: if it is missing, damaged or of another format.
    """
    blob = store.read(key)
    try:
        # The format first: other versions have other fields.
        form = _Form.model_validate_json(blob).format
        if form != FORMAT:
            raise StoreError(
                f"store {store.url}: {key} has format {form}, this version reads {FORMAT}; "
                "use the version that wrote it"
            )
        return kind.model_validate_json(blob)
    except ValidationError as error:
        raise StoreError(
            f"store {store.url}: {key} is damaged ({error.error_count()} problems); "
            "submit the job again"
        ) from error


def write_record(store: Store, key: str, record: BaseModel) -> None:
    """Create or replace a record."""
    store.write(key, record.model_dump_json().encode())


def read_state(store: Store, job_id: str) -> JobState:
    """The state of a job; `submitted` before a driver has taken it up."""
    if not store.exists(layout.state(job_id)):
        return JobState()
    return read_record(store, layout.state(job_id), JobState)


def finished_pairs(store: Store, job: JobRecord) -> dict[str, ResultRecord]:
    """Markers of the pairs that have ended, by pair id: one listing of the store."""
    known = {layout.result(job.job_id, pair.pair_id): pair.pair_id for pair in job.pairs}
    listed = store.list(layout.results(job.job_id))
    return {known[key]: read_record(store, key, ResultRecord) for key in listed if key in known}
