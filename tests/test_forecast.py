"""What a job will take: times scaled from a measured machine, rates, money, limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.execution import forecast
from jobs.execution.forecast import (
    MOST_PAIRS,
    NIGHT_S,
    Forecaster,
    Offer,
    core_seconds,
    distinct_pairs,
    limit_of,
    repeated,
)
from jobs.execution.sharing import sharing
from jobs.storage.records import PairRecord
from nst.engines import get_engine
from nst.engines.base import Plan
from nst.engines.rates import Rates, rates_of, read_rates
from nst.engines.tasks import StageShape, TaskGraph
from nst.errors import InputError
from tests.fakes import FakePlan
from tests.plans import grid_of_pairs, made_up_plan

PLAN = FakePlan(parts=16, part_bytes=1000, result_bytes=5000)
BARE = {stage.name: 0.1 + 0.01 * stage.work for stage in PLAN.stages}
RATES = Rates(
    machine="made up",
    date="",
    command="",
    call_s=0.1,
    dispatch_s=0.0,
    overhead_s=0.0,
    actor_bytes=1_000_000,
    bytes_per_source_byte=2.0,
    stages=rates_of(PLAN.stages, BARE),
)
STYLE_S, PAIR_S = (
    sum(BARE[stage.name] * stage.tasks for stage in PLAN.stages if stage.style == style)
    for style in (True, False)
)
WORK_S = STYLE_S + PAIR_S


def test_the_measured_model_takes_what_was_measured() -> None:
    assert RATES.seconds(PLAN.stages) == pytest.approx(BARE)


def test_seconds_grow_with_the_work_of_a_task_but_not_the_call() -> None:
    dear = [StageShape("up", tasks=99, work=3 * 5.0, style=False)]
    assert RATES.seconds(dear) == pytest.approx({"up": 0.1 + 3 * (BARE["up"] - 0.1)})


def test_a_stage_that_was_not_measured_takes_the_mean() -> None:
    known = {name: rate for name, rate in RATES.stages.items() if name != "blur"}
    rates = RATES.model_copy(update={"stages": known})
    assert rates.seconds(PLAN.stages)["blur"] == pytest.approx(BARE["blur"])


def test_a_job_of_ones_own_replaces_the_rates() -> None:
    tasks = [(stage.name, took) for stage in PLAN.stages for took in (2.0, 3.0, 50.0)]
    rates = RATES.measured_by(PLAN.stages, tasks, "job x")
    assert set(rates.seconds(PLAN.stages).values()) == {3.0}
    assert rates.machine == "job x"
    with pytest.raises(InputError, match="job x has run no up task"):
        RATES.measured_by(PLAN.stages, [t for t in tasks if t[0] != "up"], "job x")


def test_the_shipped_rates_say_where_they_are_from() -> None:
    rates = get_engine("concrete").rates()
    assert rates.machine and rates.date and rates.command
    # A row of low takes seconds on any core of these years.
    assert all(0.3 < rate.seconds < 100 for rate in rates.stages.values())


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', "[1]"])
def test_damaged_rates_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rates.json"
    with pytest.raises(InputError, match=r"rates\.json cannot be read"):
        read_rates(path)
    path.write_text(text)
    with pytest.raises(InputError, match=r"rates\.json"):
        read_rates(path)
    path.write_text(RATES.model_copy(update={"format": 9}).model_dump_json())
    with pytest.raises(InputError, match="format 9"):
        read_rates(path)


def test_the_figures_of_a_job_on_one_core() -> None:
    offer = Offer(core_price=3.6, uplink=1e6, bandwidth=1e12)
    estimate = Forecaster(PLAN, RATES, offer).estimate(distinct_pairs(3), [1])
    (on,) = estimate.on
    assert estimate.pairs == estimate.styles == 3
    assert estimate.work_core_hours == pytest.approx(3 * WORK_S / 3600)
    assert (estimate.wire.up, estimate.wire.down) == (3 * 24_000, 3 * 40_000)
    assert on.job_s == pytest.approx(3 * WORK_S)
    assert on.pair_s == pytest.approx(WORK_S)
    assert on.pair_at_client_s == pytest.approx(WORK_S + (24_000 + 40_000) / 1e6)
    assert on.dollars == pytest.approx(3 * WORK_S / 1000)
    assert on.pairs_a_night == pytest.approx(NIGHT_S / WORK_S, abs=1)
    assert on.utilization == pytest.approx(1)
    assert on.bytes_between_nodes == 0
    assert on.limit == "cores"


def test_a_style_that_several_contents_share_is_paid_and_sent_once() -> None:
    forecaster = Forecaster(PLAN, RATES, Offer())
    estimate = forecaster.estimate(grid_of_pairs(3, 2), [4])
    assert estimate.styles == 2
    assert estimate.work_core_hours == pytest.approx((6 * PAIR_S + 2 * STYLE_S) / 3600)
    assert estimate.wire.up == 3 * 16_000 + 2 * 8_000


def test_what_limits_a_job() -> None:
    def limit(pairs: int, cores: int, dispatch_s: float = 0.0, bandwidth: float = 1e12) -> str:
        # Hardly a byte goes through the store, or it would be the driver who waits.
        plan = replace(PLAN, part_bytes=1, result_bytes=1)
        rates = RATES.model_copy(update={"dispatch_s": dispatch_s})
        forecaster = Forecaster(plan, rates, Offer(cores_per_node=2, bandwidth=bandwidth))
        graph = forecaster.graph(distinct_pairs(pairs))
        return limit_of(forecaster.simulate(graph, cores), cores)

    assert limit(20, 4) == "cores"
    assert limit(1, 40) == "pairs"
    assert limit(10, 20, dispatch_s=1.0) == "driver"
    assert limit(10, 8, bandwidth=100.0) == "network"


def test_cores_that_share_a_memory_slow_each_other_down() -> None:
    rates = RATES.model_copy(update={"streamed_bytes_per_s": 5e9})
    few = Forecaster(PLAN, rates, Offer(cores_per_node=4, bandwidth=1e12, memory_bandwidth=20e9))
    many = Forecaster(PLAN, rates, Offer(cores_per_node=8, bandwidth=1e12, memory_bandwidth=20e9))
    assert few.slowdown(8) == 1 and many.slowdown(4) == 1 and many.slowdown(8) == 2
    pairs = distinct_pairs(8)
    (apart,), (together,) = (f.estimate(pairs, [8]).on for f in (few, many))
    assert together.job_s == pytest.approx(2 * apart.job_s, rel=0.1)
    assert (apart.limit == "memory", together.limit) == (False, "memory")
    # Nothing is bounded of which nothing is known.
    assert Forecaster(PLAN, RATES, Offer(memory_bandwidth=1.0)).slowdown(16) == 1


def test_one_pair_stops_scaling_at_the_tasks_of_its_stages() -> None:
    one = Forecaster(PLAN, RATES, Offer(bandwidth=1e12)).one_pair()
    assert one.critical_path_s == pytest.approx(sum(BARE.values()))
    assert one.tasks == {stage.name: stage.tasks for stage in PLAN.stages}
    assert one.longest == max(one.path_s, key=one.path_s.__getitem__)
    assert one.halved_s == pytest.approx(one.critical_path_s - one.path_s[one.longest] / 2)
    assert 8 <= one.useful_cores <= PLAN.parts
    larger = Forecaster(replace(PLAN, parts=48), RATES, Offer(bandwidth=1e12)).one_pair()
    assert larger.useful_cores > one.useful_cores


def test_more_cores_are_more_pairs_a_night() -> None:
    forecaster = Forecaster(PLAN, RATES, Offer(bandwidth=1e12))
    nights = [forecaster.pairs_a_night(distinct_pairs(1), cores) for cores in (1, 16, 64)]
    assert nights[1] == pytest.approx(16 * nights[0], rel=0.05)
    assert nights[2] == pytest.approx(64 * nights[0], rel=0.05)


def test_a_pair_that_takes_longer_than_a_night() -> None:
    slow = {name: t.model_copy(update={"seconds": 1e5}) for name, t in RATES.stages.items()}
    forecaster = Forecaster(PLAN, RATES.model_copy(update={"stages": slow}), Offer())
    assert forecaster.pairs_a_night(distinct_pairs(1), 2) == 0


def test_pairs_repeat_with_pictures_of_their_own() -> None:
    pairs = [PairRecord(pair_id=p, content=f"c{p}", style="s", result=p) for p in "ab"]
    out = repeated(pairs, 5)
    assert len({p.pair_id for p in out}) == len({p.content for p in out}) == 5
    # Two and two share a style as the originals did; the fifth begins a third turn.
    assert [out[0].style == p.style for p in out] == [True, True, False, False, False]
    assert repeated(pairs, 1) == out[:1]


def test_too_many_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="too many to simulate"):
        distinct_pairs(MOST_PAIRS + 1)
    with pytest.raises(InputError, match="too many to simulate"):
        repeated(grid_of_pairs(1, 1), MOST_PAIRS + 1)


@pytest.mark.parametrize("cores", [2, 48])
def test_a_large_job_is_its_beginning_going_on(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forecaster = Forecaster(PLAN, RATES, Offer(cores_per_node=8, bandwidth=1e7))
    # Most styles of all 400 pairs are among the first, and are not computed again.
    pairs = [
        p.model_copy(update={"style": f"s{i * 7 % 60}"}) for i, p in enumerate(distinct_pairs(400))
    ]
    whole = forecaster.simulate(forecaster.graph(pairs), cores)
    monkeypatch.setattr(forecast, "JOB_TASKS", 1)
    laid_out: list[int] = []
    graph = forecaster.graph

    def counted(some: Sequence[PairRecord]) -> TaskGraph:
        laid_out.append(len(some))
        return graph(some)

    monkeypatch.setattr(forecaster, "graph", counted)
    found = forecaster.job(pairs, cores)
    # However many pairs there are, what is laid out depends on the cores.
    assert laid_out and max(laid_out) < 300
    assert found.busy_s == pytest.approx(whole.busy_s)
    assert found.wall_s == pytest.approx(whole.wall_s, rel=0.02)
    assert found.bytes_between_nodes == pytest.approx(whole.bytes_between_nodes, rel=0.3)


@pytest.mark.parametrize("plan", [PLAN, made_up_plan(), replace(PLAN, pairs_per_result=4)])
def test_core_seconds_are_those_of_the_graph(plan: Plan) -> None:
    seconds = {stage.name: 0.1 + stage.work for stage in plan.stages}
    pairs = sharing(grid_of_pairs(5, 3), plan.pairs_per_result)
    assert core_seconds(plan.stages, seconds, pairs) == pytest.approx(
        plan.graph(pairs, seconds).seconds
    )
