"""What is stored of a job's state by the rule, and what is left to do with what is stored."""

from __future__ import annotations

import random
import zlib
from dataclasses import replace

import pytest

from jobs.execution.checkpoints import WORTH, StoredRow, boundaries, checkpointed, without_done
from nst.engines.tasks import InputRow, TaskGraph, build_graph
from nst.engines.concrete.plan import CircuitPlan
from tests.plans import grid_of_pairs, made_up_plan

DEEP = {"body": 2, "coarse": 80, "coarse_body": 3, "dense": 9, "reads_pixels": True}
SHALLOW = {"body": 4, "coarse": 0, "dense": 9, "reads_pixels": True}


def priced(plan: CircuitPlan) -> CircuitPlan:
    """With the price and the size of a value that the optimizer gives at the real levels."""
    stages = [
        replace(s, operations=68.6e6 * s.pbs, output_bytes=8 * 2049 * s.pbs_per_row + 290)
        for s in plan.stages
    ]
    return replace(plan, stages=tuple(stages))


def test_a_trunk_that_is_left_behind_is_worth_its_bytes() -> None:
    plan = priced(made_up_plan(**DEEP))
    style, content = boundaries(plan, 2)
    assert style.stages == ("style_code",)
    assert style.worth > 20 * WORTH
    # The first two stages of the coarse trunk are read by the third only.
    assert content.after == "coarse3" and content.stages == ("stem", "coarse3")
    by_name = {s.name: s for s in plan.stages}
    behind = ("stem", "coarse1", "coarse2", "coarse3")
    assert content.pbs == sum(by_name[n].pbs for n in behind)
    assert content.bytes == sum(by_name[n].rows * by_name[n].output_bytes for n in content.stages)
    assert content.worth > WORTH
    assert checkpointed(plan, 2) == {"style_code", "stem", "coarse3"}


def test_a_network_that_reads_all_it_computes_stores_style_codes_only() -> None:
    assert checkpointed(priced(made_up_plan(**SHALLOW)), 2) == {"style_code"}


def test_on_many_actors_computing_is_quicker_than_fetching() -> None:
    plan = priced(made_up_plan(**DEEP))
    assert checkpointed(plan, 60) != checkpointed(plan, 1000) == {"style_code"}


def test_cheaper_values_make_more_boundaries_worth_it() -> None:
    plan = priced(made_up_plan(**SHALLOW))
    small = [replace(s, output_bytes=s.output_bytes // 2) for s in plan.stages]
    chosen = boundaries(replace(plan, stages=tuple(small)), 2)
    # The result's own rows are stored anyway.
    assert {b.after for b in chosen} == {"style_code", "stem", "body1", "body2", "body3", "body4"}
    # Nothing is stored twice, and nothing counts twice.
    stages = [name for boundary in chosen for name in boundary.stages]
    assert len(stages) == len(set(stages))
    assert sum(b.pbs for b in chosen) == sum(s.pbs for s in plan.stages if s.name != "up")


GRAPH = build_graph(made_up_plan(**DEEP), grid_of_pairs(2, 2))
STAGES = sorted({t.stage for t in GRAPH.tasks})


def evaluate(graph: TaskGraph, stored: dict[str, int]) -> dict[str, dict[int, int]]:
    """By pair, the rows of its result: a hash of all that they are made from."""
    values: list[int] = []
    for task in graph.tasks:
        sources = [
            values[s] if isinstance(s, int) else stored.get(s.input_id, hash(s))
            for s in task.sources
        ]
        values.append(zlib.crc32(repr((task.stage, sources)).encode()))
    return {
        pair: {graph.tasks[i].row: values[i] for i in tasks}
        for pair, tasks in graph.outputs.items()
    }


def all_values() -> dict[int, int]:
    values: dict[int, int] = {}
    for task in GRAPH.tasks:
        sources = [values[s] if isinstance(s, int) else hash(s) for s in task.sources]
        values[task.index] = zlib.crc32(repr((task.stage, sources)).encode())
    return values


@pytest.mark.parametrize("seed", range(20))
def test_the_rest_gives_what_the_whole_gives(seed: int) -> None:
    draw, whole, values = random.Random(seed), evaluate(GRAPH, {}), all_values()
    share = draw.choice([0.0, 0.1, 0.5, 0.9])
    some = draw.sample(STAGES, draw.randint(0, len(STAGES)))
    kept = [t for t in GRAPH.tasks if t.stage in some and draw.random() < share]
    stored = {StoredRow(t.group, t.stage, t.row): f"stored {t.index}" for t in kept}
    results = {p: [r for r in rows if draw.random() < share] for p, rows in whole.items()}
    rest = without_done(GRAPH, stored, results)
    given = {f"stored {t.index}": values[t.index] for t in kept}
    again = evaluate(rest, given)
    for pair, rows in whole.items():
        assert again[pair] == {r: v for r, v in rows.items() if r not in results[pair]}
    # Sources before readers, and nothing for nobody.
    for position, task in enumerate(rest.tasks):
        assert task.index == position
        assert all(s < position for s in task.sources if isinstance(s, int))
        assert StoredRow(task.group, task.stage, task.row) not in stored or task.stage == "up"
    outputs = {i for tasks in rest.outputs.values() for i in tasks}
    assert all(readers or i in outputs for i, readers in enumerate(rest.readers()))
    assert rest.pairs_of == GRAPH.pairs_of


def test_with_a_style_code_its_branch_is_not_computed_again() -> None:
    rest = without_done(GRAPH, {StoredRow("style:s0", "style_code", 0): "code of s0"}, {})
    assert {t.group for t in rest.tasks if t.stage.startswith("style_")} == {"style:s1"}
    readers = [t for t in rest.tasks if InputRow("code of s0", 0) in t.sources]
    assert {t.group for t in readers} == {"pair:p00", "pair:p10"}


def test_of_a_half_done_result_only_the_rows_near_the_rest_are_computed_again() -> None:
    rows = range(len(GRAPH.outputs["p00"]))
    half = len(rows) // 2
    done = {pair: rows for pair in GRAPH.outputs} | {"p00": rows[:half]}
    code = {StoredRow("style:s0", "style_code", 0): "code of s0"}
    rest = without_done(GRAPH, code, done)
    assert {t.group for t in rest.tasks} == {"pair:p00"}
    assert sorted(t.row for t in rest.tasks if t.stage == "up") == list(rows[half:])
    # Three stages of 3 x 3, and what those need of the trunk at half the resolution.
    assert min(t.row for t in rest.tasks if t.stage == "body1") == half - 2
    deep = code | {StoredRow("pair:p00", "coarse3", r): f"coarse3 {r}" for r in range(half)}
    fewer = without_done(GRAPH, deep, done)
    assert not [t for t in fewer.tasks if t.stage.startswith("coarse")]
    assert fewer.pbs < rest.pbs


def test_nothing_left() -> None:
    rest = without_done(GRAPH, {}, {p: range(len(tasks)) for p, tasks in GRAPH.outputs.items()})
    assert rest.tasks == () and rest.pbs == 0
    assert set(rest.outputs) == set(GRAPH.outputs)
