"""The task graph of Concrete's circuits: what runs, in which order, on what, and how often."""

from __future__ import annotations

from collections import Counter

import pytest

from nst.engines.tasks import InputPart, Task, TaskGraph
from tests.plans import grid_of_pairs, made_up_plan

PLAN = made_up_plan()
SECONDS = {stage.name: stage.work for stage in PLAN.stages}
ROWS = PLAN.stored.content_parts


@pytest.fixture(scope="module")
def graph() -> TaskGraph:
    return PLAN.graph(grid_of_pairs(3, 2), SECONDS)


def find(graph: TaskGraph, group: str, stage: str) -> list[Task]:
    """Tasks of a stage, top to bottom."""
    found = [t for t in graph.tasks if (t.group, t.stage) == (group, stage)]
    assert [t.part for t in found] == list(range(len(found)))
    return found


def test_a_style_is_computed_once_however_many_contents_it_meets(graph: TaskGraph) -> None:
    calls = Counter((t.group, t.stage, t.part) for t in graph.tasks)
    assert set(calls.values()) == {1}
    for group in ("style:s0", "style:s1"):
        stages = Counter(t.stage for t in graph.tasks if t.group == group)
        assert stages == {s.name: s.tasks for s in PLAN.stages if s.style}
    for pair in grid_of_pairs(3, 2):
        stages = Counter(t.stage for t in graph.tasks if t.group == f"result:{pair.pair_id}")
        assert stages == {s.name: s.tasks for s in PLAN.stages if not s.style}


def test_the_cost_is_that_of_all_pairs_and_of_distinct_styles(graph: TaskGraph) -> None:
    # A PBS of the made-up plan has 1,000 operations, and `SECONDS` counts an operation as one.
    assert graph.seconds == 1000 * (6 * PLAN.pbs_content + 2 * PLAN.pbs_style)


def test_sources_come_before_readers(graph: TaskGraph) -> None:
    for position, task in enumerate(graph.tasks):
        assert task.index == position
        assert all(s < position for s in task.sources if isinstance(s, int))


def test_a_row_reads_its_neighbours_and_the_border_itself(graph: TaskGraph) -> None:
    stem = find(graph, "result:p21", "stem")
    (code,) = find(graph, "style:s1", "style_code")
    last = ROWS - 1
    expected = {0: (0, 0, 1), 5: (4, 5, 6), last: (last - 1, last, last)}
    for row, wanted in expected.items():
        assert stem[row].sources == (*(InputPart("c2", i) for i in wanted), code.index)


def test_sources_keep_the_order_of_the_circuit_and_the_code_is_last(graph: TaskGraph) -> None:
    stem, body1 = find(graph, "result:p00", "stem"), find(graph, "result:p00", "body1")
    (code,) = find(graph, "style:s0", "style_code")
    circuit = next(c for c in PLAN.circuits if c.name == "body2")
    assert circuit.sources == ("body1", "stem", "content")
    near = (0, 0, 1)
    assert find(graph, "result:p00", "body2")[0].sources == (
        *(body1[i].index for i in near),
        *(stem[i].index for i in near),
        *(InputPart("c0", i) for i in near),
        code.index,
    )


def test_a_strided_stage_steps_two_rows(graph: TaskGraph) -> None:
    stem, body = find(graph, "style:s0", "style_stem"), find(graph, "style:s0", "style_body")
    assert len(stem) == ROWS and len(body) == ROWS // 2
    assert [stem[0].sources[i] for i in range(3)] == [InputPart("s0", i) for i in (0, 0, 1)]
    for row, task in enumerate(body):
        wanted = (max(2 * row - 1, 0), 2 * row, 2 * row + 1)
        assert task.sources == tuple(stem[i].index for i in wanted)


def test_pools_read_one_row_or_all(graph: TaskGraph) -> None:
    body, pooled = find(graph, "style:s1", "style_body"), find(graph, "style:s1", "style_rows")
    assert [t.sources for t in pooled] == [(t.index,) for t in body]
    (mixed,), (code,) = (find(graph, "style:s1", name) for name in ("style_mix1", "style_code"))
    assert mixed.sources == tuple(t.index for t in pooled)
    assert code.sources == (mixed.index,)


def test_outputs_are_all_rows_of_the_last_stage(graph: TaskGraph) -> None:
    assert set(graph.outputs) == {p.pair_id for p in grid_of_pairs(3, 2)}
    for pair_id, rows in graph.outputs.items():
        assert rows == tuple(t.index for t in find(graph, f"result:{pair_id}", "up"))
        assert len(rows) == ROWS


def test_no_task_is_computed_for_nothing(graph: TaskGraph) -> None:
    outputs = {i for rows in graph.outputs.values() for i in rows}
    idle = [i for i, readers in enumerate(graph.readers()) if not readers and i not in outputs]
    assert idle == []


def test_readers_are_the_inverse_of_sources(graph: TaskGraph) -> None:
    edges = {(s, t.index) for t in graph.tasks for s in t.sources if isinstance(s, int)}
    listed = [(s, r) for s, readers in enumerate(graph.readers()) for r in readers]
    assert len(listed) == len(edges) and set(listed) == edges


def test_a_pair_fails_alone_and_a_style_with_all_its_pairs(graph: TaskGraph) -> None:
    assert set(graph.pairs_of["style:s1"]) == {"p01", "p11", "p21"}
    assert graph.pairs_of["result:p11"] == ("p11",)


def test_tasks_say_where_they_stand_and_what_they_cost(graph: TaskGraph) -> None:
    depths = {circuit.name: depth for depth, circuit in enumerate(PLAN.circuits)}
    ranks = {pair.pair_id: rank for rank, pair in enumerate(grid_of_pairs(3, 2))}
    for task in graph.tasks:
        assert (task.depth, task.seconds) == (depths[task.stage], SECONDS[task.stage])
        assert task.rank == min(ranks[pair] for pair in graph.pairs_of[task.group])


def test_style_codes_are_the_checkpoints(graph: TaskGraph) -> None:
    """Some 2 MB, behind which lies a whole branch."""
    assert {t.stage for t in graph.tasks if t.checkpoint} == {"style_code"}


def test_no_pairs_make_no_tasks() -> None:
    graph = PLAN.graph([], SECONDS)
    assert graph.tasks == () and graph.seconds == 0
