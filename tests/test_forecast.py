"""What a job will take: times scaled from a measured machine, rates, money, limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.execution.forecast import (
    NIGHT_S,
    Forecaster,
    Offer,
    distinct_pairs,
    limit_of,
    repeated,
)
from nst.engines.tasks import build_graph
from jobs.execution.stage_times import StageTimes, read_times, times_of
from jobs.storage.records import PairRecord, TaskTrace
from nst.errors import InputError
from nst.engines.concrete.plan import CircuitPlan
from tests.plans import grid_of_pairs, made_up_plan


def plan_of(size: int = 64) -> CircuitPlan:
    """A plan whose every PBS takes 1,000 operations, with sizes of its inputs and results.

    Of its results' words 16 bits are stored, a quarter.
    """
    plan = made_up_plan(size=size)
    stages = tuple(replace(stage, operations=1000.0 * stage.pbs) for stage in plan.stages)
    return replace(
        plan, stages=stages, input_ciphertext_bytes=16_000, output_ciphertext_bytes=160_000
    )


PLAN = plan_of()
BARE = {stage.name: 0.1 + 0.01 * stage.pbs_per_row for stage in PLAN.stages}
TIMES = StageTimes(
    machine="made up",
    date="",
    command="",
    call_s=0.1,
    dispatch_s=0.0,
    overhead_s=0.0,
    worker_bytes=1_000_000,
    bytes_per_source_byte=2.0,
    stages=times_of(PLAN, BARE),
)
WORK_S = sum(BARE[stage.name] * stage.rows for stage in PLAN.stages)


def test_the_measured_level_takes_what_was_measured() -> None:
    assert TIMES.seconds(PLAN) == pytest.approx(BARE)


def test_seconds_grow_with_rows_and_with_the_cost_of_a_pbs_but_not_the_call() -> None:
    wide, seconds = plan_of(128), TIMES.seconds(plan_of(128))
    up = next(stage for stage in wide.stages if stage.name == "up")
    assert seconds["up"] == pytest.approx(0.1 + 0.01 * up.pbs_per_row)
    assert up.pbs_per_row == 2 * next(s.pbs_per_row for s in PLAN.stages if s.name == "up")
    dear = replace(PLAN, stages=tuple(replace(s, operations=3 * s.operations) for s in PLAN.stages))
    assert TIMES.seconds(dear)["up"] == pytest.approx(0.1 + 3 * (BARE["up"] - 0.1))


def test_a_stage_that_was_not_measured_takes_the_mean() -> None:
    known = {name: t for name, t in TIMES.stages.items() if name != "body2"}
    times = TIMES.model_copy(update={"stages": known})
    assert times.seconds(PLAN)["body2"] == pytest.approx(BARE["body2"])


def test_a_job_of_ones_own_replaces_the_stage_times() -> None:
    trace = [
        TaskTrace(stage=s.name, group="g", row=0, pbs=1, start=10, end=10 + took, cpu_s=0)
        for s in PLAN.stages
        for took in (2.0, 3.0, 50.0)
    ]
    times = TIMES.measured_by(PLAN, trace, "job x")
    assert set(times.seconds(PLAN).values()) == {3.0}
    assert times.machine == "job x"
    with pytest.raises(InputError, match="job x has run no up task"):
        TIMES.measured_by(PLAN, [t for t in trace if t.stage != "up"], "job x")


def test_the_shipped_times_say_where_they_are_from() -> None:
    times = read_times()
    assert times.machine and times.date and times.command
    # A PBS of these circuits takes some ten to thirty milliseconds on any core of these years.
    assert all(0.003 < t.seconds / t.pbs < 0.1 for t in times.stages.values())


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', "[1]"])
def test_damaged_times_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"times\.json"):
        read_times(path)
    path.write_text(TIMES.model_copy(update={"format": 9}).model_dump_json())
    with pytest.raises(InputError, match="format 9"):
        read_times(path)


def test_the_figures_of_a_job_on_one_core() -> None:
    offer = Offer(core_price=3.6, uplink=1e6, bandwidth=1e12)
    estimate = Forecaster(PLAN, TIMES, offer).estimate(distinct_pairs(3), [1])
    (on,) = estimate.on
    assert estimate.pairs == estimate.styles == 3
    assert estimate.pbs == 3 * (PLAN.pbs_content + PLAN.pbs_style)
    assert estimate.work_core_hours == pytest.approx(3 * WORK_S / 3600)
    assert (estimate.wire.up, estimate.wire.down) == (6 * 16_000, 3 * 40_000)
    assert on.job_s == pytest.approx(3 * WORK_S)
    assert on.pair_s == pytest.approx(WORK_S)
    assert on.pair_at_client_s == pytest.approx(WORK_S + (32_000 + 40_000) / 1e6)
    assert on.dollars == pytest.approx(3 * WORK_S / 1000)
    assert on.pairs_a_night == pytest.approx(NIGHT_S / WORK_S, abs=1)
    assert on.utilization == pytest.approx(1)
    assert on.bytes_between_nodes == 0
    assert on.limit == "cores"


def test_a_style_that_several_contents_share_is_paid_and_sent_once() -> None:
    forecaster = Forecaster(PLAN, TIMES, Offer())
    estimate = forecaster.estimate(grid_of_pairs(3, 2), [4])
    assert estimate.styles == 2
    assert estimate.pbs == 6 * PLAN.pbs_content + 2 * PLAN.pbs_style
    assert estimate.wire.up == (3 + 2) * 16_000


def test_what_limits_a_job() -> None:
    def limit(pairs: int, cores: int, dispatch_s: float = 0.0, bandwidth: float = 1e12) -> str:
        # Of results only a byte goes to the store, or it would be the driver who waits.
        plan = replace(PLAN, output_ciphertext_bytes=PLAN.size)
        times = TIMES.model_copy(update={"dispatch_s": dispatch_s})
        forecaster = Forecaster(plan, times, Offer(cores_per_node=2, bandwidth=bandwidth))
        return limit_of(forecaster.simulate(build_graph(plan, distinct_pairs(pairs)), cores), cores)

    assert limit(20, 4) == "cores"
    assert limit(1, 40) == "pairs"
    assert limit(10, 20, dispatch_s=1.0) == "driver"
    assert limit(10, 20, bandwidth=300.0) == "network"


def test_one_pair_stops_scaling_at_its_rows() -> None:
    one = Forecaster(PLAN, TIMES, Offer(bandwidth=1e12)).one_pair()
    assert one.critical_path_s == pytest.approx(
        sum(BARE[s] for s in ("style_stem", "style_body", "style_rows", "style_code"))
        + sum(BARE[s] for s in ("stem", "body1", "body2", "up"))
    )
    assert one.rows["up"] == PLAN.size // 4
    assert one.longest == max(one.path_s, key=one.path_s.__getitem__)
    assert one.halved_s == pytest.approx(one.critical_path_s - one.path_s[one.longest] / 2)
    assert 8 <= one.useful_cores <= PLAN.size // 4
    larger = Forecaster(plan_of(192), TIMES, Offer(bandwidth=1e12)).one_pair()
    assert larger.useful_cores > one.useful_cores


def test_more_cores_are_more_pairs_a_night() -> None:
    forecaster = Forecaster(PLAN, TIMES, Offer(bandwidth=1e12))
    nights = [forecaster.pairs_a_night(distinct_pairs(1), cores) for cores in (1, 16, 64)]
    assert nights[1] == pytest.approx(16 * nights[0], rel=0.05)
    assert nights[2] == pytest.approx(64 * nights[0], rel=0.05)


def test_a_pair_that_takes_longer_than_a_night() -> None:
    slow = {name: t.model_copy(update={"seconds": 1e5}) for name, t in TIMES.stages.items()}
    forecaster = Forecaster(PLAN, TIMES.model_copy(update={"stages": slow}), Offer())
    assert forecaster.pairs_a_night(distinct_pairs(1), 2) == 0


def test_pairs_repeat_with_pictures_of_their_own() -> None:
    pairs = [PairRecord(pair_id=p, content=f"c{p}", style="s") for p in "ab"]
    out = repeated(pairs, 5)
    assert len({p.pair_id for p in out}) == len({p.content for p in out}) == 5
    # Two and two share a style as the originals did; the fifth begins a third turn.
    assert [out[0].style == p.style for p in out] == [True, True, False, False, False]
    assert repeated(pairs, 1) == out[:1]


def test_too_many_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="too many to simulate"):
        Forecaster(PLAN, TIMES, Offer()).estimate(distinct_pairs(40_000), [1])
