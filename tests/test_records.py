"""Records that are damaged, old, or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.execution.loading import read_plan
from jobs.storage import layout
from jobs.storage.records import (
    JobRecord,
    JobState,
    PairRecord,
    ResultRecord,
    finished_pairs,
    read_record,
    read_state,
    write_record,
)
from jobs.storage.store import Store, open_store
from nst.errors import CircuitError, StoreError

JOB = JobRecord(
    job_id="j",
    created="2026-01-01T00:00:00+00:00",
    quality="low",
    circuit_id="c",
    key_id="k",
    pairs=[PairRecord(pair_id=p, content=f"c{p}", style="s") for p in ("1", "2", "3")],
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


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
    [{"format": 2}, {"format": 2, "pairs": "elsewhere"}, {"format": 0, "job_id": None}],
)
def test_records_of_other_formats_are_told_from_damage(
    store: Store, changed: dict[str, object]
) -> None:
    store.write(layout.job("j"), json.dumps({**JOB.model_dump(), **changed}).encode())
    assert f"has format {changed['format']}" in error_of(store)


def test_missing_records_are_refused(store: Store) -> None:
    error_of(store)


def test_a_job_nobody_has_taken_up_is_submitted(store: Store) -> None:
    assert read_state(store, "j").status == "submitted"
    write_record(store, layout.state("j"), JobState(status="running", pairs_total=3))
    assert read_state(store, "j").pairs_total == 3


def test_finished_pairs_are_those_with_a_marker(store: Store) -> None:
    done = ResultRecord(pair_id="1", status="done", rows=8)
    failed = ResultRecord(pair_id="2", status="failed", reason="because")
    for record in (done, failed):
        write_record(store, layout.result("j", record.pair_id), record)
    # Rows without a marker, and the marker of a pair of no job, count for nothing.
    store.write(layout.result_row("j", "3", 0), b"row")
    write_record(store, layout.result("j", "9"), ResultRecord(pair_id="9", status="done"))
    assert finished_pairs(store, JOB) == {"1": done, "2": failed}


@pytest.mark.parametrize("blob", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"{}", b'{"format": 99}'])
def test_damaged_plans_are_refused(store: Store, blob: bytes) -> None:
    store.write(layout.circuit_plan("c"), blob)
    with pytest.raises(CircuitError) as caught:
        read_plan(store, "c")
    assert "\n" not in str(caught.value)


def test_a_reason_cannot_steer_a_terminal(store: Store) -> None:
    state = {"status": "failed", "reason": "no\x1b[2J\x1b]0;title\x07\r\nmemory\u202e"}
    store.write(layout.state("j"), json.dumps(state).encode())
    shown = read_state(store, "j").reason
    assert shown.isprintable() and shown.startswith("no") and "memory" in shown
    result = {"pair_id": "1", "status": "failed", "reason": "\x1b[31mred"}
    store.write(layout.result("j", "1"), json.dumps(result).encode())
    assert finished_pairs(store, JOB)["1"].reason == " [31mred"
