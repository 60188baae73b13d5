"""Actors and nodes of a real Ray cluster that die under a job without cryptography."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.executor import Held, RayExecutor
from cluster.types import LONG_S, QUEUED_AHEAD, Completion
from jobs.execution.recorder import log
from jobs.storage import layout
from jobs.storage.records import (
    Cancellation,
    JobRecord,
    JobState,
    read_marks,
    read_trace,
    write_record,
)
from jobs.storage.store import Store, open_store
from nst.engines.tasks import Task
from nst.errors import StoreError, last_line
from tests.fakes import PLAN, FakeEvaluator, fake_executor, fake_job, run_job
from tests.plans import grid_of_pairs
from tests.ray_cluster import ray_cluster
from tests.test_lifecycle import results

BIG = 200_000
"""Bytes of a result that Ray keeps on its node and not with its owner."""
DEADLY = b"kills the actor that takes it"
pytestmark = pytest.mark.slow


class SlowEvaluator(FakeEvaluator):
    """Takes its time, gives big results, and dies of some parts."""

    def run(self, stage: str, inputs: Sequence[bytes]) -> bytes:
        """See `Evaluator`."""
        time.sleep(0.05)
        if DEADLY in inputs:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(stage, [each[:32] for each in inputs]) + bytes(BIG)


class ShortEvaluator(FakeEvaluator):
    """The same results, in this process."""

    def run(self, stage: str, inputs: Sequence[bytes]) -> bytes:
        """See `Evaluator`."""
        return super().run(stage, [each[:32] for each in inputs]) + bytes(BIG)


@dataclass
class Nodes:
    """A head that drives and nodes with two actors' cores each."""

    cluster: Cluster
    workers: list[Any]

    def add(self) -> None:
        self.workers.append(self.cluster.add_node(num_cpus=2))

    def kill(self) -> None:
        self.cluster.remove_node(self.workers.pop(0), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    # A node that is gone is noticed in seconds and not in half a minute.
    health = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    with ray_cluster(_system_config=health) as (cluster, _):
        made = Nodes(cluster, [])
        made.add()
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        yield made
        ray.shutdown()


class Watched(RayExecutor):
    """Does something after so many tasks have ended."""

    after, meddle, ended = 10**9, staticmethod(lambda: None), 0

    def submit(self, task: Task, inputs: Sequence[Held]) -> None:
        if self.ended >= self.after:
            self.after = 10**9
            self.meddle()
        super().submit(task, inputs)

    def wait(self, timeout: float) -> list[Completion[Held]]:
        found = super().wait(timeout)
        self.ended += len(found)
        return found

    def actors(self) -> list[Any]:
        return [slot.actor for slot in self._slots if slot.up]


def all_work_is_done(state: JobState) -> bool:
    return state.status == "succeeded" and state.seconds_done == pytest.approx(state.seconds_total)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    store = open_store(str(tmp_path_factory.mktemp("undisturbed")), create=True)
    job = fake_job(store)
    calm = fake_executor()
    calm.evaluator = ShortEvaluator()
    assert run_job(store, job, calm, 1).status == "succeeded"
    return results(store, job)


def no_actor_left() -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        free, whole = ray.available_resources(), ray.cluster_resources()
        if free.get("CPU") == whole.get("CPU"):
            return True
        time.sleep(0.2)
    return False


def test_a_killed_actor_costs_a_task(
    nodes: Nodes, store: Store, undisturbed: dict[str, list[bytes]]
) -> None:
    job, hands = fake_job(store), Watched(2, SlowEvaluator)
    hands.after = 20
    hands.meddle = lambda: ray.kill(hands.actors()[0])  # type: ignore[method-assign]
    state = run_job(store, job, hands, 2)
    assert all_work_is_done(state)
    assert results(store, job) == undisturbed
    assert no_actor_left()


def test_a_killed_node_costs_what_it_held(
    nodes: Nodes,
    store: Store,
    undisturbed: dict[str, list[bytes]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, log.name)
    nodes.add()
    job, hands = fake_job(store), Watched(4, SlowEvaluator)
    hands.after = 60
    hands.meddle = nodes.kill  # type: ignore[method-assign]
    state = run_job(store, job, hands, 4)
    assert all_work_is_done(state)
    # Results that were there already were lost, and made again.
    ran = [(task.group, task.stage, task.part) for task in read_trace(store, "job")]
    assert len(ran) > len(set(ran))
    # The log says so in a line per task, without Ray's traces of results that are not asked for.
    assert "lost with a node" in caplog.text
    assert "Unhandled error" not in caplog.text and "Traceback" not in caplog.text
    assert results(store, job) == undisturbed
    assert no_actor_left()


def test_a_pair_that_kills_its_actors_fails_alone(
    nodes: Nodes,
    store: Store,
    undisturbed: dict[str, list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.fakes.POISON", DEADLY)
    job = fake_job(store, pairs=grid_of_pairs(3, 1), poisoned="c1")
    state = run_job(store, job, Watched(2, SlowEvaluator), 2)
    assert (state.status, state.pairs_done, state.pairs_failed) == ("failed", 2, 1)
    assert read_marks(store, job).ended["p10"].reason == "its worker died"
    assert results(store, job) == {p: undisturbed[p] for p in ("p00", "p20")}
    assert no_actor_left()


def test_a_cancelled_job_gives_its_actors_back(nodes: Nodes, store: Store) -> None:
    job, hands = fake_job(store), Watched(2, SlowEvaluator)
    hands.after = 20
    asked: list[float] = []

    def cancel() -> None:
        asked.append(time.monotonic())
        write_record(store, layout.cancellation(job.job_id), Cancellation(asked=time.time()))

    hands.meddle = cancel  # type: ignore[method-assign]
    assert run_job(store, job, hands, 2).status == "cancelled"
    assert time.monotonic() - asked[0] < 30
    assert no_actor_left()


def test_no_task_waits_at_an_actor_behind_a_long_one(nodes: Nodes) -> None:
    hands = RayExecutor(2, FakeEvaluator)
    while hands.capacity < 2 * QUEUED_AHEAD:
        hands.wait(1)
    (task, *_) = PLAN.graph(
        grid_of_pairs(1, 1), {stage.name: LONG_S + 1 for stage in PLAN.stages}
    ).tasks
    hands.submit(task, [hands.put(b"a part")])
    # The other actor's, and not the next of this one's.
    assert hands.capacity == 2
    hands.close()
    assert no_actor_left()


def no_keys() -> FakeEvaluator:
    raise StoreError("store s has no keys")


def test_actors_that_cannot_load_end_the_job(nodes: Nodes, store: Store) -> None:
    job: JobRecord = fake_job(store)
    hands = RayExecutor(2, no_keys)
    with pytest.raises(ray.exceptions.RayError) as caught:
        run_job(store, job, hands, 2)
    assert last_line(caught.value) == "nst.errors.StoreError: store s has no keys"
    hands.close()
    assert no_actor_left()
