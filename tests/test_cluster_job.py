"""Jobs on a real Ray cluster through its Jobs API, with a store in S3: the client may go away."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.client.home import Home
from jobs.storage import layout
from jobs.storage.records import read_state
from jobs.storage.store import open_store
from tests.command_line import namesakes, run
from tests.conftest import BUCKET
from tests.ray_cluster import ray_cluster
from tests.s3_server import S3Server, free_ports
from tests.toy import offer_toy, toy_weights
from tests.user_pairs import folder_of

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 240.0


@pytest.fixture
def jobs_api(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of the Jobs API of a cluster with a head that drives and one node of two cores."""
    project = namesakes(tmp_path / "project")
    monkeypatch.setenv("PYTHONPATH", f"{project}:{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    port, agent = free_ports(2)
    # Another cluster on this machine may have the usual port of the agent, without which a head
    # takes no job.
    with ray_cluster(
        include_dashboard=True, dashboard_port=port, dashboard_agent_listen_port=agent
    ) as (cluster, _):
        cluster.add_node(num_cpus=2)
        # From here on the client has what no driver must see.
        monkeypatch.setenv("NST_BATCH_PASSPHRASE", "correct horse battery")
        yield f"http://127.0.0.1:{port}"


@pytest.mark.slow
def test_jobs_on_a_cluster(
    jobs_api: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = toy_weights(tmp_path / "toy.safetensors")
    offer_toy(monkeypatch, weights, tmp_path / "home")
    source, out = folder_of(tmp_path / "pairs", ["sea"]), tmp_path / "out"
    prefix = f"s3://{BUCKET}/{secrets.token_hex(4)}"
    submit = (
        *("submit", source, "--quality", "toy", "--no-wait"),
        *("--store", prefix, "--endpoint-url", s3_server.endpoint),
        *("--cluster", jobs_api, "--cluster-python", sys.executable),
    )
    result = run(*submit)
    assert result.exit_code == 0, result.output
    assert f"ok    cluster  {jobs_api} answers" in run("doctor", "--cluster", jobs_api).output
    home = Home(tmp_path / "home")
    (local,) = home.jobs()
    assert local.job_id in result.output and local.driver_pid == 0

    result = run("status", local.job_id, "--watch")
    assert result.exit_code == 0, result.output + run("logs", local.job_id).output
    store = open_store(local.store)
    state = read_state(store, local.job_id)
    assert (state.status, state.actors) == ("succeeded", 2)
    assert run("fetch", local.job_id, "--out", out).exit_code == 0
    assert (out / "sea.png").is_file()
    logs = run("logs", local.job_id)
    assert logs.exit_code == 0 and "Traceback" not in logs.output
    for secret in (s3_server.secret_key, "correct horse battery"):
        assert secret not in logs.output

    # Another one, stopped as soon as it computes.
    assert run(*submit).exit_code == 0
    (second,) = [b for b in home.jobs() if b.job_id != local.job_id]
    deadline = time.monotonic() + PATIENCE
    while not read_state(store, second.job_id).seconds_done:
        assert time.monotonic() < deadline, run("logs", second.job_id).output
        time.sleep(0.5)
    asked = time.monotonic()
    result = run("cancel", second.job_id)
    assert result.exit_code == 0 and "cancelled" in result.output
    assert time.monotonic() - asked < 30
    statuses = {row["job"]: row["status"] for row in json.loads(run("list", "--json").stdout)}
    assert statuses == {local.job_id: "succeeded", second.job_id: "cancelled"}

    for job in statuses:
        assert run("delete", job, "--yes").exit_code == 0
    assert store.list("") == [layout.STORE]
