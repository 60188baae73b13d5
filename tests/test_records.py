"""Records that are damaged, old, or not there."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.client.watch import describe
from jobs.execution.loading import ModelPin
from jobs.storage import layout
from jobs.storage.local_store import LocalStore
from jobs.storage.records import (
    FEW,
    FORMAT,
    STALE_AFTER,
    JobRecord,
    JobState,
    PairEnd,
    PairRecord,
    pair_states,
    read_job,
    read_marks,
    read_record,
    read_state,
    read_trace,
    write_ends,
    write_record,
)
from jobs.storage.store import Store, open_store
from nst.errors import CircuitError, StoreContentError, StoreError

JOB = JobRecord(
    job_id="j",
    created="2026-01-01T00:00:00+00:00",
    quality="low",
    width=64,
    height=64,
    model_id="c",
    key_id="k",
    pairs=[PairRecord(pair_id=p, content=f"c{p}", style="s", result=p) for p in ("1", "2", "3")],
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path), create=True)


def error_of(store: Store) -> str:
    with pytest.raises(StoreError) as caught:
        read_record(store, layout.job("j"), JobRecord)
    message = str(caught.value)
    assert "\n" not in message and layout.job("j") in message
    return message


def test_records_survive_the_store(store: Store) -> None:
    write_record(store, layout.job("j"), JOB)
    assert read_record(store, layout.job("j"), JobRecord) == JOB


@pytest.mark.parametrize(
    "blob", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"format": "x"}', b'{"pairs": 3}']
)
def test_damaged_records_are_refused(store: Store, blob: bytes) -> None:
    store.write(layout.job("j"), blob)
    assert "damaged" in error_of(store)


def test_cut_off_records_are_refused(store: Store) -> None:
    blob = JOB.model_dump_json().encode()
    store.write(layout.job("j"), blob[: len(blob) // 2])
    assert "damaged" in error_of(store)


@pytest.mark.parametrize(
    "changed",
    [{"format": 1}, {"format": FORMAT + 1, "pairs": "elsewhere"}, {"format": 0, "job_id": None}],
)
def test_records_of_other_formats_are_told_from_damage(
    store: Store, changed: dict[str, object]
) -> None:
    store.write(layout.job("j"), json.dumps({**JOB.model_dump(), **changed}).encode())
    assert f"has format {changed['format']}" in error_of(store)


def test_missing_records_are_refused(store: Store) -> None:
    error_of(store)


def test_a_job_that_no_driver_has_taken_up_is_submitted(store: Store) -> None:
    assert read_state(store, "j").status == "submitted"
    write_record(store, layout.state("j"), JobState(status="running", pairs_total=3))
    assert read_state(store, "j").pairs_total == 3


DONE = PairEnd(pair_id="1", status="succeeded", attempt="a", rows=8)
FAILED = PairEnd(pair_id="2", status="failed", reason="because")


def test_pairs_that_have_ended_are_those_with_a_marker(store: Store) -> None:
    for end in (DONE, FAILED):
        write_record(store, layout.pair_end("j", end.pair_id), end)
    # Parts without a marker, and the marker of a pair of no job, count for nothing.
    store.write(layout.result_part("j", "a", "3", 0), b"part")
    write_record(store, layout.pair_end("j", "9"), PairEnd(pair_id="9", status="succeeded"))
    marks = read_marks(store, JOB)
    assert marks.ended == {"1": DONE, "2": FAILED}
    assert not marks.cancelled and not marks.complete
    store.write(layout.cancellation("j"), b"{}")
    assert read_marks(store, JOB).cancelled


def test_markers_that_are_known_are_not_read_again(store: Store) -> None:
    write_record(store, layout.pair_end("j", "1"), DONE)
    known = {"1": FAILED}
    assert read_marks(store, JOB, known).ended == known


@pytest.mark.parametrize(
    ("status", "rest", "reason"),
    [
        ("submitted", "submitted", ""),
        ("queued", "queued", ""),
        ("running", "queued", ""),
        ("cancelled", "cancelled", ""),
        ("failed", "failed", "no keys"),
    ],
)
def test_pairs_share_the_fate_of_their_job(status: Any, rest: str, reason: str) -> None:
    state = JobState(status=status, pairs_running=["3"], reason="no keys")
    states = pair_states(["1", "2", "3", "4"], state, {"1": DONE, "2": FAILED})
    assert (states["1"].status, states["2"].status) == ("succeeded", "failed")
    assert states["2"].reason == "because"
    assert (states["4"].status, states["4"].reason) == (rest, reason)
    assert states["3"].status == ("running" if status == "running" else rest)


def test_the_end_marker_outweighs_a_late_state(store: Store) -> None:
    write_record(store, layout.job_end("j"), JobState(status="succeeded"))
    write_record(store, layout.state("j"), JobState(status="running"))
    assert read_state(store, "j").status == "succeeded"


@pytest.mark.parametrize("blob", [b"", b"[", b'{"a": 1}', b'[{"stage": "up"}]'])
def test_a_damaged_trace_is_one_line_and_no_trace_is_empty(store: Store, blob: bytes) -> None:
    assert read_trace(store, "j") == []
    store.write(layout.trace("j"), blob)
    with pytest.raises(StoreError, match="is damaged") as caught:
        read_trace(store, "j")
    assert "\n" not in str(caught.value) and layout.trace("j") in str(caught.value)


def test_progress_and_eta_are_those_of_the_work_that_is_done() -> None:
    state = JobState(status="running", seconds_total=400.0, first_task=1000.0)
    assert state.share == 0 and state.eta(1010.0) is None
    state.seconds_done = 100.0
    assert state.share == 0.25 and state.eta(1010.0) == pytest.approx(30.0)
    assert state.eta(1000.0) is None and JobState().share == 0


def test_a_driver_without_a_sign_of_life_is_gone() -> None:
    state = JobState(status="running", heartbeat=1000.0)
    assert not state.stale(1000.0 + STALE_AFTER) and state.stale(1001.0 + STALE_AFTER)
    for status in ("submitted", "succeeded", "failed", "cancelled"):
        assert not JobState(status=status).stale(1e9)  # type: ignore[arg-type]


@pytest.mark.parametrize("blob", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"{}", b'{"format": 99}'])
def test_damaged_plans_are_refused(store: Store, blob: bytes) -> None:
    pin = ModelPin("c", "k", hashlib.sha256(blob).hexdigest(), "")
    store.write(layout.model_plan("c", pin.plan), blob)
    with pytest.raises(CircuitError) as caught:
        pin.read_plan(store)
    assert "\n" not in str(caught.value)


def test_a_reason_cannot_steer_a_terminal(store: Store) -> None:
    state = {
        "format": FORMAT,
        "status": "failed",
        "reason": "no\x1b[2J\x1b]0;title\x07\r\nmemory\u202e",
    }
    store.write(layout.state("j"), json.dumps(state).encode())
    shown = read_state(store, "j").reason
    assert shown.isprintable() and shown.startswith("no") and "memory" in shown
    end = {"format": FORMAT, "pair_id": "1", "status": "failed", "reason": "\x1b[31mred"}
    store.write(layout.pair_end("j", "1"), json.dumps(end).encode())
    assert read_marks(store, JOB).ended["1"].reason == " [31mred"


@pytest.mark.parametrize("done", [5e-324, 1e-300, 1e11])
@pytest.mark.parametrize("total", [0.0, 5e-324, 1e11])
def test_progress_is_said_of_any_numbers(done: float, total: float) -> None:
    state = JobState(status="running", seconds_total=total, seconds_done=done, first_task=1.0)
    assert "pairs" in describe(state, 1e11) and 0 <= state.share <= 1


@pytest.mark.parametrize(
    "evil",
    [
        *({"heartbeat": float("nan")}, {"seconds_done": float("inf")}, {"first_task": -1}),
        *({"pairs_done": -1}, {"pairs_total": 10**30}, {"peak_live_bytes": 10**400}),
        *({"attempt": "../.."}, {"pairs_running": ["a/b"]}, {"stages": {"ab": "\x1b[2J"}}),
    ],
)
def test_records_are_finite_and_ids_are_ids(store: Store, evil: dict[str, object]) -> None:
    store.write(layout.state("j"), json.dumps({**JobState().model_dump(), **evil}).encode())
    with pytest.raises(StoreContentError, match="is damaged"):
        read_state(store, "j")


def test_records_are_no_larger_than_their_job(store: Store) -> None:
    write_record(store, layout.job("j"), JOB)
    assert read_job(store, "j", 3) == JOB
    with pytest.raises(StoreContentError, match="another job's"):
        read_job(store, "j", 2)
    for key in (layout.job("j"), layout.state("j")):
        store.write(key, b" " * (1 << 20) + store.read(layout.job("j")))
    for read in (read_job, read_state):
        with pytest.raises(StoreContentError, match="larger than"):
            read(store, "j", 3)


def test_a_damaged_marker_costs_its_pair_alone(store: Store) -> None:
    write_record(store, layout.pair_end("j", "1"), DONE)
    write_record(store, layout.pair_end("j", "2"), DONE)
    store.write(layout.pair_end("j", "3"), b"NaN")
    ended = read_marks(store, JOB).ended
    assert ended["1"] == DONE
    assert ended["2"].status == ended["3"].status == "failed"
    assert "another pair" in ended["2"].reason and "damaged" in ended["3"].reason
    for number in range(100):
        store.write(layout.marks("j") + f"x{number}", b"")
    with pytest.raises(StoreContentError, match="more than"):
        read_marks(store, JOB)


class Counting(LocalStore):
    """Keeps the keys that are read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[str] = []

    def read(self, key: str, limit: int | None = None) -> bytes:
        self.reads.append(key)
        return super().read(key, limit)


def many_ended(store: Store, count: int = 3 * FEW) -> tuple[JobRecord, dict[str, PairEnd]]:
    """A job with so many pairs, all of which have failed, one of them with a long reason."""
    ids = [str(number) for number in range(count)]
    pairs = [PairRecord(pair_id=p, content=f"c{p}", style="s", result=p) for p in ids]
    ends = {p: PairEnd(pair_id=p, status="failed", attempt="a", reason=f"of {p}") for p in ids}
    ends["1"].reason = "x" * 500
    for pair_id, end in ends.items():
        write_record(store, layout.pair_end("j", pair_id), end)
    return JOB.model_copy(update={"pairs": pairs}), ends


def test_the_ends_of_many_pairs_are_read_at_once(tmp_path: Path) -> None:
    store = Counting(tmp_path)
    job, ends = many_ended(store)
    assert read_marks(store, job).ended == ends and len(store.reads) == len(ends)
    write_ends(store, "j", ends.values())
    store.reads.clear()
    assert read_marks(store, job).ended == ends
    # Of the pair whose reason is long its own marker has to tell.
    assert store.reads == [layout.pair_ends("j"), layout.pair_end("j", "1")]
    # Few are read one by one: a client that watches has the others.
    store.reads.clear()
    known = dict(list(ends.items())[2:])
    assert read_marks(store, job, known).ended == ends
    assert store.reads == [layout.pair_end("j", "0"), layout.pair_end("j", "1")]


def test_which_pairs_have_ended_say_their_markers_alone(store: Store) -> None:
    job, ends = many_ended(store)
    gone = ends.pop("7")
    store.delete(layout.pair_end("j", "7"))
    write_ends(store, "j", [gone, *ends.values(), PairEnd(pair_id="x", status="succeeded")])
    assert read_marks(store, job).ended == ends


@pytest.mark.parametrize("blob", [b"", b"[]", b'{"format": 99}', b'{"ends": 3}', b" " * (1 << 20)])
def test_what_says_the_ends_of_many_pairs_may_be_damaged(store: Store, blob: bytes) -> None:
    job, ends = many_ended(store)
    store.write(layout.pair_ends("j"), blob)
    assert read_marks(store, job).ended == ends


def test_markers_are_read_side_by_side(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for pair in JOB.pairs:
        end = PairEnd(pair_id=pair.pair_id, status="failed", reason=pair.pair_id)
        write_record(store, layout.pair_end("j", pair.pair_id), end)
    together, read = threading.Barrier(len(JOB.pairs)), store.read

    def slow(key: str, limit: int | None = None) -> bytes:
        together.wait(timeout=10)
        return read(key, limit)

    monkeypatch.setattr(store, "read", slow)
    ended = read_marks(store, JOB).ended
    assert {pair_id: end.reason for pair_id, end in ended.items()} == {"1": "1", "2": "2", "3": "3"}
    monkeypatch.setattr(store, "read", None)
    assert read_marks(store, JOB, ended).ended == ended
