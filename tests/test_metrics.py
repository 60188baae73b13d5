"""Metrics for Prometheus: what is counted, what labels tell, and that the dashboard fits."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

import cluster
from cluster import metrics
from cluster.local import local_ray
from cluster.metrics import DEFINITIONS, ActorMetrics, DriverMetrics
from cluster.types import Completion
from jobs.execution import recorder as recording
from jobs.execution.driver import walk_job
from jobs.execution.recorder import Recorder
from jobs.storage.store import open_store
from tests.fakes import PLAN, Meddling, fake_job
from tests.plans import grid_of_pairs

DASHBOARD = Path(cluster.__file__).parent / "grafana" / "nst-batch.json"

Values = dict[tuple[str, ...], float]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Values]:
    """By metric, values by labels: what Ray would be told."""
    told: dict[str, Values] = defaultdict(dict)

    class Metric:
        def __init__(self, name: str, description: str, tag_keys: Any, **more: Any) -> None:
            assert description
            self.name, self.keys = name, tag_keys

        def _at(self, tags: dict[str, str]) -> tuple[str, ...]:
            assert set(tags) == set(self.keys)
            return tuple(tags[key] for key in self.keys)

        def set(self, value: float, tags: dict[str, str]) -> None:
            told[self.name][self._at(tags)] = value

        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert value > 0
            told[self.name][self._at(tags)] = told[self.name].get(self._at(tags), 0) + value

        observe = inc

    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(f"ray.util.metrics.{kind}", Metric)
    return told


def test_an_actor_counts_time_and_bytes_by_stage(recorded: dict[str, Values]) -> None:
    actor = ActorMetrics()
    actor.task_done("up", 2.0, 300, 100)
    actor.task_done("stem", 1.0, 100, 50)
    assert recorded["nst_batch_task_seconds"] == {("up",): 2.0, ("stem",): 1.0}
    actor.task_done("up", 0.5, 0, 0)  # Ray's counters would raise
    assert recorded["nst_batch_task_seconds"]["up",] == 2.5
    assert recorded["nst_batch_ciphertext_bytes_total"] == {("in",): 400, ("out",): 150}


def test_a_driver_counts_work_pairs_and_what_was_in_vain(
    recorded: dict[str, Values], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "STATE_EVERY", 0.0)
    monkeypatch.setattr(metrics, "EXPORT_EVERY", 0.0)
    monkeypatch.setattr(metrics, "RATE_SECONDS", 0.0)
    store = open_store(str(tmp_path), create=True)
    job = fake_job(store, poisoned="c0")
    recorder: Recorder[bytes] = Recorder(store, job, 1)
    middle: dict[str, Values] = {}
    executor = Meddling(60, lambda: middle.update({k: dict(v) for k, v in recorded.items()}))
    state = walk_job(recorder, executor, [DriverMetrics(job.job_id, recorder.pair_counts)])
    assert state.pairs_failed == 2
    by_stage = recorded["nst_batch_work_seconds_total"]
    assert sum(by_stage.values()) == state.seconds_done
    whole = PLAN.graph(job.pairs)
    assert by_stage["job", "up"] < sum(t.seconds for t in whole.tasks if t.stage == "up")
    assert recorded["nst_batch_attempts_failed_total"] == {("job",): state.attempts_failed}
    assert state.attempts_failed >= 1
    assert middle["nst_batch_pairs"]["job", "queued"] > 0
    ended = {state: count for (_, state), count in recorded["nst_batch_pairs"].items()}
    assert ended == {"succeeded": 4, "failed": 2, "running": 0, "queued": 0}
    assert 0 < middle["nst_batch_work_seconds_left"]["job",] < whole.seconds
    assert middle["nst_batch_work_rate"]["job",] > 0
    assert middle["nst_batch_live_bytes"]["job",] > 0
    assert middle["nst_batch_tasks_under_way"]["job",] == 1


def test_labels_are_stages_ids_and_states() -> None:
    """No name of a pair or a file could get into one: a label of another kind needs a look."""
    assert {label for d in DEFINITIONS for label in d.labels} == {
        "job_id", "stage", "direction", "state",
    }  # fmt: skip
    for definition in DEFINITIONS:
        assert not {"job", "instance"} & set(definition.labels), "Prometheus's own"
        # Prometheus appends it to counters that lack it, and dashboards would look in vain.
        assert definition.name.endswith("_total") == (definition.kind == "Counter")


def queries_of(board: dict[str, Any]) -> list[str]:
    """What a dashboard asks Prometheus."""
    queries = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
    return queries + [
        v["query"]["query"] for v in board["templating"]["list"] if v["type"] == "query"
    ]


@pytest.mark.slow
def test_ray_exports_what_the_dashboard_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    monkeypatch.setattr(metrics, "RATE_SECONDS", 0.0)
    queries = queries_of(json.loads(DASHBOARD.read_text()))
    asked = {name for query in queries for name in re.findall(r"\bray_\w+", query)}
    with local_ray(1):
        (node,) = ray.nodes()
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        driver: DriverMetrics[bytes] = DriverMetrics("0f3c", lambda: {"running": 1, "failed": 2})
        ActorMetrics().task_done("up", 2.0, 300, 100)
        graph = PLAN.graph(grid_of_pairs(1, 1))
        driver.on_start(graph)
        driver.on_task_end(graph.tasks[-1], Completion(graph.tasks[-1].index, b""), 400)
        driver.on_attempt_failed(graph.tasks[-1], "boom")
        driver.on_tick(1, 1, 400)
        page, deadline = "", time.monotonic() + 60
        while time.monotonic() < deadline and not asked <= set(samples_of(page)):
            time.sleep(0.5)
            with suppress(OSError), urlopen(url, timeout=10) as answer:
                page = answer.read().decode()
    samples = samples_of(page)
    assert asked <= set(samples)
    for definition in DEFINITIONS:
        name = f"ray_{definition.name}"
        assert f"# TYPE {name} {definition.kind.lower()}\n" in page
        first = f"{name}_bucket" if definition.kind == "Histogram" else name
        assert set(definition.labels) <= set(re.findall(r'(\w+)="', samples[first]))
    # Counters count up and keep their names, and names are told apart by their labels.
    assert samples["ray_nst_batch_work_seconds_total"].endswith(" 5.0")
    assert 'job_id="0f3c"' in samples["ray_nst_batch_work_seconds_total"]
    assert 'state="failed"' in page and 'le="2.5"' in page


def samples_of(page: str) -> dict[str, str]:
    """By name, the last sample of each series that Prometheus would read."""
    lines = [line for line in page.splitlines() if line and not line.startswith("#")]
    return {re.split(r"[{ ]", line, maxsplit=1)[0]: line for line in lines}


def test_the_dashboard_shows_all_metrics_and_no_others() -> None:
    board = json.loads(DASHBOARD.read_text())
    queries = queries_of(board)
    known = {f"ray_{d.name}": d for d in DEFINITIONS}
    series = {name: d for name, d in known.items() if d.kind != "Histogram"}
    series |= {
        f"{name}_{part}": d
        for name, d in known.items()
        if d.kind == "Histogram"
        for part in ("bucket", "sum", "count")
    }
    used = set()
    for query in queries:
        named = re.findall(r"\bray_\w+", query)
        assert named and set(named) <= set(series), query
        used |= {series[name].name for name in named}
        labels = {label for name in named for label in series[name].labels} | {"le"}
        grouped = [x.strip() for part in re.findall(r"by \(([^)]*)\)", query)
                   for x in part.split(",")]  # fmt: skip
        matched = re.findall(r"[{,](\w+)=", query)
        assert set(grouped + matched) <= labels, query
    assert used == {d.name for d in DEFINITIONS}
    for panel in board["panels"]:
        for target in panel["targets"]:
            shown = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            assert all(re.search(rf"by \([^)]*\b{x}\b", target["expr"]) for x in shown)
    # What a panel asks of a job it asks of the chosen ones.
    for query in queries:
        named = [n for n in re.findall(r"\bray_\w+", query) if "job_id" in series[n].labels]
        assert query.startswith("label_values") or query.count('job_id=~"$job"') == len(named)
