"""Jobs in virtual time: makespans that can be worked out by hand, and bounds that always hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster import executor
from jobs.execution import simulation
from jobs.execution.simulation import (
    LeastLoaded,
    Machines,
    critical_path,
    simulate,
)
from nst.engines.base import StoredBytes
from nst.engines.tasks import InputPart, Source, Task, TaskGraph
from tests.fakes import PLAN
from tests.plans import grid_of_pairs

MB = 1_000_000
NOTHING = StoredBytes(0, 0, 0, content_parts=1, style_parts=1, result_parts=1)
ONE_NODE = Machines(cores=1, cores_per_node=1000, bandwidth=MB, latency_s=0)
FREE = replace(PLAN, part_bytes=0, result_bytes=0).stored


def graph_of(sources: Sequence[Sequence[Source]], long: Sequence[int] = ()) -> TaskGraph:
    """Tasks of 1 MB each that read these sources; the last one makes the result of a pair."""
    tasks = tuple(
        Task(
            index=index,
            stage="work",
            group="result:p",
            part=index,
            sources=tuple(each),
            seconds=5.0 if index in long else 1.0,
            output_bytes=MB,
            rank=0,
            depth=0,
        )
        for index, each in enumerate(sources)
    )
    return TaskGraph(tasks, {"p": (len(tasks) - 1,)}, {"result:p": ("p",)})


@pytest.mark.parametrize("cores", [1, 3, 50])
def test_a_chain_takes_the_sum_of_its_tasks(cores: int) -> None:
    chain = graph_of([[], [0], [1], [2]], long=[2])
    report = simulate(chain, replace(ONE_NODE, cores=cores), NOTHING)
    assert report.wall_s == pytest.approx(1 + 1 + 5 + 1)
    assert report.busy_s == pytest.approx(8)
    assert report.pair_done_s == [report.wall_s]


@pytest.mark.parametrize(("cores", "wall"), [(1, 11), (2, 6), (4, 4), (5, 3), (10, 2), (99, 2)])
def test_independent_tasks_run_in_waves(cores: int, wall: float) -> None:
    # Ten tasks, and one that reads them all.
    wide = graph_of([[]] * 10 + [list(range(10))])
    assert simulate(wide, replace(ONE_NODE, cores=cores), NOTHING).wall_s == pytest.approx(wall)


def test_a_task_waits_behind_a_long_one_no_longer_than_another_worker_has_less_to_do() -> None:
    # The long one is first; the other worker takes what is ready meanwhile, one by one.
    graph = graph_of([[], [], [], [], [], [0, 1, 2, 3, 4]], long=[0])
    report = simulate(graph, replace(ONE_NODE, cores=2), NOTHING)
    # 5 s for the long one, then one short that had been queued behind it, then the last.
    assert report.wall_s == pytest.approx(5 + 1 + 1)


def test_a_driver_that_hands_out_slowly_is_what_many_cores_wait_for() -> None:
    wide = graph_of([[]] * 1000 + [list(range(1000))])
    report = simulate(wide, replace(ONE_NODE, cores=1000, dispatch_s=0.01), NOTHING)
    assert report.wall_s == pytest.approx(1000 * 0.01 + 1 + 0.01 + 1)
    assert report.driver_s == pytest.approx(1001 * 0.01)
    few = simulate(wide, replace(ONE_NODE, cores=10, dispatch_s=0.01), NOTHING)
    # Beside a hundred tasks per core, handing them out is as good as free.
    assert few.wall_s == pytest.approx(101, rel=0.01)


def test_a_worker_rests_between_two_tasks() -> None:
    chain = graph_of([[], [], []])
    report = simulate(chain, replace(ONE_NODE, overhead_s=0.25), NOTHING)
    assert report.wall_s == pytest.approx(3 + 2 * 0.25)


def test_ciphertexts_travel_between_nodes_once_each() -> None:
    # Tasks 0 and 1 on one node each; 2 and 3 read both; 4 reads these.
    graph = graph_of([[], [], [0, 1], [0, 1], [2, 3]])
    machines = replace(ONE_NODE, cores=2, cores_per_node=1)
    report = simulate(graph, machines, replace(NOTHING, result_part=2 * MB))
    # Each node fetches the other's, one fetches the other's second, the driver the result.
    assert report.bytes_between_nodes == (1 + 1 + 1 + 1) * MB
    assert report.bytes_written == 2 * MB
    # Compute, fetch (a second a MB), compute, fetch, compute, fetch, write.
    assert report.wall_s == pytest.approx(1 + 1 + 1 + 1 + 1 + 1 + 2)
    # In the first fetch both workers waited, in the second one.
    assert report.waited_s == pytest.approx(3)
    together = simulate(graph, replace(machines, cores_per_node=2), NOTHING)
    assert together.bytes_between_nodes == 0
    assert together.wall_s == pytest.approx(3)


def test_a_wire_passes_one_ciphertext_after_the_other() -> None:
    # One node made what three others read at the same time: its own wire is what they share.
    graph = graph_of([[], [0], [0], [0], [0], [1, 2, 3, 4]])
    machines = replace(ONE_NODE, cores=4, cores_per_node=1)
    # Compute, send three times, compute, receive three times, compute, send the result.
    assert simulate(graph, machines, NOTHING).wall_s == pytest.approx(1 + 3 + 1 + 3 + 1 + 1)


def test_inputs_are_read_once_by_the_driver() -> None:
    parts: list[Source] = [InputPart("c", 0)]
    graph = graph_of([parts, parts, [0, 1]])
    report = simulate(graph, replace(ONE_NODE, cores=2), replace(NOTHING, content_part=3 * MB))
    assert report.bytes_read == 3 * MB
    assert report.wall_s == pytest.approx(3 + 1 + 1)


@pytest.mark.parametrize("cores", [1, 2, 7, 16, 64])
@pytest.mark.parametrize("pairs", [(1, 1), (3, 2), (8, 1)])
def test_no_job_beats_its_critical_path_or_its_work(cores: int, pairs: tuple[int, int]) -> None:
    graph = PLAN.graph(grid_of_pairs(*pairs))
    path = critical_path(graph).seconds
    machines = replace(ONE_NODE, cores=cores)
    report = simulate(graph, machines, FREE)
    assert report.busy_s == pytest.approx(graph.seconds)
    assert report.wall_s >= max(path, graph.seconds / cores) * (1 - 1e-9)
    # Nor does a scheduler that never lets a core rest take longer than both together.
    assert report.wall_s <= path + graph.seconds / cores + max(t.seconds for t in graph.tasks)
    assert len(report.pair_done_s) == pairs[0] * pairs[1]
    if cores == 1:
        assert report.wall_s == pytest.approx(graph.seconds)


def test_with_cores_enough_one_pair_takes_its_critical_path() -> None:
    graph = PLAN.graph(grid_of_pairs(1, 1))
    machines = replace(ONE_NODE, cores=len(graph.tasks))
    report = simulate(graph, machines, FREE)
    path = critical_path(graph)
    assert report.wall_s == pytest.approx(path.seconds)
    stages = [graph.tasks[i].stage for i in path.tasks]
    assert stages == ["look", "code", "stem", "blur", "detail", "up"]


def test_the_critical_path_takes_the_longer_way() -> None:
    diamond = graph_of([[], [0], [0], [1, 2]], long=[2])
    path = critical_path(diamond)
    assert path.tasks == (0, 2, 3)
    assert path.seconds == pytest.approx(7)
    assert critical_path(TaskGraph((), {}, {})).tasks == ()


def test_workers_queue_as_many_tasks_as_real_ones() -> None:
    assert executor.tasks_per_worker is simulation.tasks_per_worker


def test_the_least_loaded_worker_is_taken_and_ties_go_to_the_first() -> None:
    workers = LeastLoaded(3)
    assert [workers.take() for _ in range(5)] == [0, 1, 2, 0, 1]
    workers.done(1)
    workers.done(1)
    assert [workers.take() for _ in range(4)] == [1, 1, 2, 0]
    workers.done(2)
    workers.done(2)
    assert workers.take() == 2
