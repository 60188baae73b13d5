"""The task graph: what runs, in which order, on what, and how often."""

from __future__ import annotations

from collections import Counter

import pytest

from nst.engines.tasks import InputRow, Task, TaskGraph, build_graph
from tests.plans import grid_of_pairs, made_up_plan

PLAN = made_up_plan()
ROWS = PLAN.size // 4


@pytest.fixture(scope="module")
def graph() -> TaskGraph:
    return build_graph(PLAN, grid_of_pairs(3, 2))


def find(graph: TaskGraph, group: str, stage: str) -> list[Task]:
    """Tasks of a stage, top to bottom."""
    found = [t for t in graph.tasks if (t.group, t.stage) == (group, stage)]
    assert [t.row for t in found] == list(range(len(found)))
    return found


def test_a_style_is_computed_once_however_many_contents_it_meets(graph: TaskGraph) -> None:
    calls = Counter((t.group, t.stage, t.row) for t in graph.tasks)
    assert set(calls.values()) == {1}
    rows_of = {s.name: s.rows for s in PLAN.stages}
    for group in ("style:s0", "style:s1"):
        stages = Counter(t.stage for t in graph.tasks if t.group == group)
        assert stages == {n: rows for n, rows in rows_of.items() if n.startswith("style_")}
    for pair in grid_of_pairs(3, 2):
        stages = Counter(t.stage for t in graph.tasks if t.group == f"pair:{pair.pair_id}")
        assert stages == {n: rows for n, rows in rows_of.items() if not n.startswith("style_")}


def test_the_cost_is_that_of_all_pairs_and_of_distinct_styles(graph: TaskGraph) -> None:
    assert graph.pbs == 6 * PLAN.pbs_content + 2 * PLAN.pbs_style


def test_sources_come_before_readers(graph: TaskGraph) -> None:
    for position, task in enumerate(graph.tasks):
        assert task.index == position
        assert all(s < position for s in task.sources if isinstance(s, int))


def test_a_row_reads_its_neighbours_and_the_border_itself(graph: TaskGraph) -> None:
    stem = find(graph, "pair:p21", "stem")
    (code,) = find(graph, "style:s1", "style_code")
    last = ROWS - 1
    expected = {0: (0, 0, 1), 5: (4, 5, 6), last: (last - 1, last, last)}
    for row, wanted in expected.items():
        assert stem[row].sources == (*(InputRow("c2", i) for i in wanted), code.index)
    body = find(graph, "pair:p21", "body1")
    for row, wanted in expected.items():
        assert body[row].sources == (*(stem[i].index for i in wanted), code.index)


def test_two_sources_keep_the_order_of_the_circuit(graph: TaskGraph) -> None:
    stem, body1 = find(graph, "pair:p00", "stem"), find(graph, "pair:p00", "body1")
    (code,) = find(graph, "style:s0", "style_code")
    stage = next(s for s in PLAN.stages if s.name == "body2")
    assert stage.sources == ("body1", "stem")
    task = find(graph, "pair:p00", "body2")[0]
    wanted = (0, 0, 1)
    expected = [body1[i].index for i in wanted] + [stem[i].index for i in wanted]
    assert task.sources == (*expected, code.index)


def test_a_strided_stage_steps_two_rows(graph: TaskGraph) -> None:
    stem, body = find(graph, "style:s0", "style_stem"), find(graph, "style:s0", "style_body")
    assert len(stem) == ROWS and len(body) == ROWS // 2
    assert [stem[0].sources[i] for i in range(3)] == [InputRow("s0", i) for i in (0, 0, 1)]
    for row, task in enumerate(body):
        wanted = (max(2 * row - 1, 0), 2 * row, 2 * row + 1)
        assert task.sources == tuple(stem[i].index for i in wanted)


def test_a_coarse_source_is_enlarged_and_pixels_are_read_again() -> None:
    plan = made_up_plan(coarse=4, coarse_body=2, dense=9, reads_pixels=True)
    graph = build_graph(plan, grid_of_pairs(1, 1))
    stem, coarse1, coarse2, body1 = (
        find(graph, "pair:p00", name) for name in ("stem", "coarse1", "coarse2", "body1")
    )
    assert len(stem) == ROWS and len(coarse1) == len(coarse2) == ROWS // 2
    stage = next(s for s in plan.stages if s.name == "body1")
    assert stage.sources == ("stem", "coarse2", "content")
    (code,) = find(graph, "style:s0", "style_code")
    for row in (0, 5, ROWS - 1):
        wanted = [max(row - 1, 0), row, min(row + 1, ROWS - 1)]
        assert body1[row].sources == (
            *(stem[i].index for i in wanted),
            *(coarse2[i // 2].index for i in wanted),
            *(InputRow("c0", i) for i in wanted),
            code.index,
        )
    assert coarse1[3].sources == (*(stem[i].index for i in (5, 6, 7)), code.index)
    assert coarse2[3].sources == (*(coarse1[i].index for i in (2, 3, 4)), code.index)


def test_pools_read_one_row_or_all(graph: TaskGraph) -> None:
    body, pooled = find(graph, "style:s1", "style_body"), find(graph, "style:s1", "style_rows")
    assert [t.sources for t in pooled] == [(t.index,) for t in body]
    (code,) = find(graph, "style:s1", "style_code")
    assert code.sources == tuple(t.index for t in pooled)


def test_outputs_are_all_rows_of_the_last_stage(graph: TaskGraph) -> None:
    assert set(graph.outputs) == {p.pair_id for p in grid_of_pairs(3, 2)}
    for pair_id, rows in graph.outputs.items():
        assert rows == tuple(t.index for t in find(graph, f"pair:{pair_id}", "up"))
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
    assert graph.pairs_of["pair:p11"] == ("p11",)


def test_earlier_pairs_and_deeper_stages_go_first(graph: TaskGraph) -> None:
    def first(group: str, stage: str) -> tuple[int, int, int]:
        return find(graph, group, stage)[0].priority

    assert first("pair:p00", "up") < first("pair:p00", "stem") < first("pair:p01", "up")
    assert first("style:s0", "style_stem") < first("style:s1", "style_stem")


def test_no_pairs_make_no_tasks() -> None:
    graph = build_graph(PLAN, [])
    assert graph.tasks == () and graph.pbs == 0
