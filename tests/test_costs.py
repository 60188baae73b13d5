"""What a gallery says of a job: what pairs took, why they wait, and the job as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.client.costs import PairCost, pair_costs
from jobs.client.facts import job_summary, pair_facts, waiting_note
from jobs.client.home import LocalJob, LocalPair
from jobs.storage.records import JobState, PairState, read_trace
from jobs.storage.store import Store, open_store
from tests.fakes import PLAN, fake_executor, fake_job, run_job
from tests.plans import grid_of_pairs

PAIRS = [
    LocalPair(
        pair_id=p.pair_id,
        result=p.result,
        name=p.pair_id,
        content=0,
        style=int(p.style[1:]),
        box=(0, 0, 1, 1),
    )
    for p in grid_of_pairs(2, 2)
]
LOCAL = LocalJob(
    job_id="job",
    created="2026-01-02T03:04:05+00:00",
    store="",
    quality="toy",
    width=36,
    height=20,
    engine="fake",
    key_id="key",
    model_id="model",
    pairs=PAIRS,
    skipped=[],
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


def test_costs_of_pairs_that_have_run(store: Store) -> None:
    job = fake_job(store, pairs=grid_of_pairs(2, 2))
    state = run_job(store, job, fake_executor(), 1)
    costs = pair_costs(read_trace(store, "job"), PLAN, PAIRS)
    assert list(costs) == [pair.pair_id for pair in PAIRS]
    spent = state.last_task - state.first_task
    for cost in costs.values():
        assert 0 < cost.core_seconds <= cost.seconds <= spent
    assert sum(cost.core_seconds for cost in costs.values()) <= spent


def test_a_pair_that_another_driver_began_has_no_cost(store: Store) -> None:
    job = fake_job(store, pairs=grid_of_pairs(2, 2))
    run_job(store, job, fake_executor(), 1)
    trace = read_trace(store, "job")
    trace.remove(next(task for task in trace if task.group == "result:p00"))
    # A task that was done twice makes up for none.
    trace.append(next(task for task in trace if task.group == "result:p00"))
    costs = pair_costs(trace, PLAN, PAIRS)
    assert list(costs) == [pair.pair_id for pair in PAIRS if pair.pair_id != "p00"]


def test_facts_of_a_pair() -> None:
    assert pair_facts(PairCost(72.4, 98.2)) == ("1 min 12 s", "98 core-seconds")
    assert pair_facts(None) == ()


def test_why_a_pair_waits() -> None:
    assert waiting_note(LOCAL, PairState("queued")) == "queued"
    assert waiting_note(LOCAL, PairState("failed", "no Ray")) == (
        "failed (no Ray); go on with: nst-batch retry job"
    )


def test_summary_of_a_job() -> None:
    waiting = dict(job_summary(LOCAL, JobState()).facts)
    assert waiting == {
        "job": "job",
        "quality": "toy, 36 × 20 pixels",
        "submitted": "2026-01-02 03:04 UTC",
        "state": "submitted",
    }
    state = JobState(
        status="failed",
        seconds_done=170.0,
        first_task=10,
        last_task=100,
        actors=2,
        reason="disk full",
    )
    facts = dict(job_summary(LOCAL, state).facts)
    assert facts["computed"] == "in 1 min 30 s on 2 actors"
    assert (facts["state"], facts["stopped"]) == ("failed", "disk full")
    state.reason = ""
    assert dict(job_summary(LOCAL, state).facts)["state"] == "ended, pairs failed"
