"""What a gallery says of a job: time and PBS of pairs, why they wait, and the job as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.client.costs import PairCost, pair_costs
from jobs.client.facts import job_summary, pair_facts, waiting_note
from jobs.client.home import BookPair, JobBook
from jobs.execution.driver import run_job
from jobs.storage import layout
from jobs.storage.records import JobState, PairState
from jobs.storage.store import Store, open_store
from nst.network.levels import QualityLevel
from tests.fakes import PLAN, fake_executor, fake_job, plain_results  # noqa: F401
from tests.plans import grid_of_pairs

PAIRS = [
    BookPair(pair_id=p.pair_id, name=p.pair_id, content=0, style=int(p.style[1:]), box=[])
    for p in grid_of_pairs(2, 2)
]
BOOK = JobBook(
    job_id="job",
    created="2026-01-02T03:04:05+00:00",
    store="",
    quality="toy",
    key_id="key",
    model_id="circuits",
    pairs=PAIRS,
    skipped=[],
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


def test_costs_of_pairs_that_have_run(store: Store) -> None:
    job = fake_job(store, pairs=grid_of_pairs(2, 2))
    state = run_job(store, job, fake_executor(), 1)
    costs = pair_costs(store, "job", PLAN, PAIRS)
    assert list(costs) == [pair.pair_id for pair in PAIRS]
    spent = state.last_task - state.first_task
    for cost in costs.values():
        assert (cost.pbs, cost.style_pbs, cost.sharing) == (PLAN.pbs_content, PLAN.pbs_style, 2)
        assert cost.seconds is not None and 0 < cost.seconds <= spent
        assert cost.core_seconds is not None and 0 < cost.core_seconds <= cost.seconds
    assert sum(cost.core_seconds or 0 for cost in costs.values()) <= spent


@pytest.mark.parametrize("trace", [None, b"[", b'{"a": 1}', b"[]"])
def test_without_a_trace_only_pbs_are_known(store: Store, trace: bytes | None) -> None:
    if trace is not None:
        store.write(layout.trace("job"), trace)
    for cost in pair_costs(store, "job", PLAN, PAIRS).values():
        assert (cost.pbs, cost.seconds, cost.core_seconds) == (PLAN.pbs_content, None, None)


def test_a_pair_that_another_driver_began_has_no_time(store: Store) -> None:
    job = fake_job(store, pairs=grid_of_pairs(2, 2))
    run_job(store, job, fake_executor(), 1)
    lines = store.read(layout.trace("job")).decode().removeprefix("[").removesuffix("]").split("},")
    first = next(i for i, line in enumerate(lines) if '"pair:p00"' in line)
    left = "},".join(line for i, line in enumerate(lines) if i != first)
    store.write(layout.trace("job"), f"[{left}]".encode())
    costs = pair_costs(store, "job", PLAN, PAIRS)
    assert [pair for pair, cost in costs.items() if cost.seconds is None] == ["p00"]


def test_facts_of_a_pair() -> None:
    assert pair_facts(PairCost(3_744, 768, 1, 72.4, 98.2)) == (
        "1 min 12 s",
        "98 core-seconds",
        "3,744 PBS + 768 for the style",
    )
    assert pair_facts(PairCost(3_744, 768, 3, None, None)) == (
        "3,744 PBS + 768 for the style shared by 3 pairs",
    )


def test_why_a_pair_waits() -> None:
    assert waiting_note(BOOK, PairState("queued")) == "queued"
    assert waiting_note(BOOK, PairState("failed", "no Ray")) == (
        "failed (no Ray); go on with: nst-batch retry job"
    )


def test_summary_of_a_job() -> None:
    level = QualityLevel("toy", 32, Path("toy"))
    waiting = dict(job_summary(BOOK, level, JobState()).facts)
    assert waiting == {
        "job": "job",
        "quality": "toy, 32 × 32 pixels",
        "submitted": "2026-01-02 03:04 UTC",
        "state": "submitted",
    }
    state = JobState(
        status="failed", pbs_done=9_000, first_task=10, last_task=100, actors=2, reason="disk full"
    )
    facts = dict(job_summary(BOOK, level, state).facts)
    assert facts["computed"] == "9,000 PBS in 1 min 30 s"
    assert facts["speed"] == "100 PBS/s on 2 actors"
    assert (facts["state"], facts["stopped"]) == ("failed", "disk full")
    state.reason = ""
    assert dict(job_summary(BOOK, level, state).facts)["state"] == "ended, pairs failed"
