"""The command line as a user meets it: results, one-line errors, exit codes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.client import drivers
from jobs.storage import layout
from jobs.storage.records import PairEnd, read_job, write_record
from jobs.storage.store import open_store
from nst.network import levels
from nst.network.levels import QualityLevel
from tests.command_line import refused, run
from tests.toy import TOY_SIZE, offer_toy, toy_weights
from tests.user_pairs import folder_of, picture

QUALITY = ["--quality", "toy"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_weights(tmp_path_factory.mktemp("weights") / "toy.safetensors")


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data directory for the module, so that circuits and keys are made once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def toy(weights: Path, shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_toy(monkeypatch, weights, shared_home)


def pixels(folder: Path, name: str) -> np.ndarray:
    with Image.open(folder / f"{name}.png") as png:
        return np.asarray(png, dtype=np.float64)


def test_preview_writes_a_picture_per_pair_and_a_gallery(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pairs", ("sea", "wood"))
    result = run("preview", source, *QUALITY, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for name in ("sea", "wood"):
        with Image.open(tmp_path / "out" / f"{name}.png") as png:
            assert png.size == (TOY_SIZE, TOY_SIZE)
    assert "sea" in (tmp_path / "out" / "gallery.html").read_text()


def test_letterbox_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    picture(tmp_path / "pairs" / "content" / "wide.png", width=80, height=40)
    picture(tmp_path / "pairs" / "style" / "wide.png")
    out = tmp_path / "out"
    result = run("preview", tmp_path / "pairs", *QUALITY, "--fit", "letterbox", "--out", out)
    assert result.exit_code == 0, result.output
    with Image.open(out / "wide.png") as png:
        assert png.size == (TOY_SIZE, TOY_SIZE // 2)


def test_grid_takes_every_content_with_every_style(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pairs", ("a", "b"))
    result = run("preview", source, *QUALITY, "--grid", "--out", tmp_path / "out")
    assert result.exit_code == 0
    made = {p.stem for p in (tmp_path / "out").glob("*--*.png")}
    assert made == {"a--a", "a--b", "b--a", "b--b"}


def test_a_bad_picture_costs_only_its_own_pair(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pairs", ("good", "bad"))
    broken = source / "content" / "bad.png"
    broken.write_bytes(broken.read_bytes()[:60])
    result = run("preview", source, *QUALITY, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "bad.png" in result.output
    assert (tmp_path / "out" / "good.png").exists()
    assert not (tmp_path / "out" / "bad.png").exists()


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pairs", ("sea",))
    kept = tmp_path / "out" / "sea.png"
    kept.parent.mkdir()
    kept.write_bytes(b"mine")
    for command in ("preview", "submit"):
        result = run(command, source, *QUALITY, "--out", tmp_path / "out")
        refused(result, "sea.png", "--force")
    assert kept.read_bytes() == b"mine"
    assert run("preview", source, *QUALITY, "--out", tmp_path / "out", "--force").exit_code == 0
    assert kept.read_bytes() != b"mine"


@pytest.mark.parametrize("command", ["submit", "preview"])
def test_unusable_sources(command: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "lone" / "content" / "x.png")
    picture(tmp_path / "lone" / "style" / "y.png")
    out = ["--out", tmp_path / "out"]
    refused(run(command, tmp_path / "nowhere", *QUALITY, *out), "nowhere")
    refused(run(command, tmp_path / "empty", *QUALITY, *out), "empty")
    refused(run(command, tmp_path / "lone", *QUALITY, *out), "--grid")


def test_unknown_quality_and_untrained_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_of(tmp_path / "pairs", ("sea",))
    out = ["--out", tmp_path / "out"]
    refused(run("preview", source, "--quality", "best", *out), "best", "draft")
    missing = QualityLevel("mid", 128, tmp_path / "none.safetensors")
    monkeypatch.setitem(levels.LEVELS, "mid", missing)
    refused(run("preview", source, "--quality", "mid", *out), "mid", "none.safetensors")


def test_unusable_stores(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pairs", ("sea",))
    (tmp_path / "file").write_text("no folder")
    refused(run("submit", source, *QUALITY, "--store", tmp_path / "file"), "file", code=3)
    other = tmp_path / "other"
    other.mkdir()
    (other / "store.json").write_text('{"format": 99}')
    refused(run("submit", source, *QUALITY, "--store", other), "99")
    refused(run("submit", source, *QUALITY, "--store", "gs://bucket"), "gs://bucket")


@pytest.fixture
def no_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has no credentials, and nothing is waited for."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr("jobs.storage.store.FIRST_PATIENCE", 0.1)


SILENT = "http://127.0.0.1:1"


@pytest.mark.usefixtures("no_aws")
def test_missing_credentials_and_stores_that_do_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_of(tmp_path / "pairs", ("sea",))
    there = ["--store", "s3://bucket/prefix", "--endpoint-url", SILENT, "--region", "r"]
    submit = ["submit", source, *QUALITY, "--yes", *there]
    refused(
        run(*submit), "s3://bucket/prefix", "no complete credentials", "AWS_ACCESS_KEY_ID", code=3
    )
    refused(run(*submit, "--profile", "nosuch"), "nosuch", code=3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    refused(run(*submit), "s3://bucket/prefix", SILENT, code=3)
    assert not (Path(os.environ["NST_BATCH_HOME"]) / "jobs").exists()


def test_a_cluster_that_does_not_answer_is_noticed_before_anything_is_encrypted(
    tmp_path: Path, shared_home: Path
) -> None:
    source = folder_of(tmp_path / "pairs", ("sea",))
    submit = ["submit", source, *QUALITY, "--yes", "--store", tmp_path / "store"]
    refused(run(*submit, "--cluster", SILENT), SILENT, "--cluster", "that it runs", code=3)
    refused(run(*submit, "--cluster", "ftp://x"), "ftp://x", "http://host:8265")
    assert not (shared_home / "jobs").exists() and not (tmp_path / "store" / "jobs").exists()


def test_unknown_job(tmp_path: Path) -> None:
    refused(run("fetch", "abc", "--out", tmp_path), "abc")
    refused(run("status", "abc"), "abc")


def test_keys_and_circuits(shared_home: Path) -> None:
    assert run("keys", "create", *QUALITY).exit_code == 0
    listed = json.loads(run("keys", "list", "--json").output)
    assert listed[-1]["quality"] == "toy"
    inspected = json.loads(run("circuits", "inspect", *QUALITY, "--json").output)
    assert inspected["width"] == inspected["height"] == TOY_SIZE
    assert inspected["pbs_per_pair"] == inspected["pbs_style"] + inspected["pbs_content"]
    assert inspected["pbs_per_pair"] == sum(s["pbs"] for s in inspected["stages"])
    assert inspected["model_id"] == listed[-1]["model_id"]
    for key in ("evaluation_key_bytes", "input_ciphertext_bytes", "output_ciphertext_bytes"):
        assert inspected[key] > 0
    secret = shared_home / "keys" / listed[-1]["key_id"] / "secret.key"
    assert secret.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Submits a pair whose driver does nothing; gives the job's id."""
    monkeypatch.setattr(drivers, "start_here", lambda *_: None)
    source = folder_of(tmp_path / "pairs", ("sea",))

    def submit() -> str:
        call = ["submit", source, *QUALITY, "--no-wait", "--store", tmp_path / "store"]
        result = run(*call)
        assert result.exit_code == 0, result.output
        return json.loads(run("list", "--json").stdout)[-1]["job"]

    return submit


def test_what_is_damaged_is_named_and_stops_nothing_else(
    submitted: Callable[[], str], shared_home: Path
) -> None:
    key, local = (shared_home / "keys" / "bad", shared_home / "jobs" / "bad")
    for folder, name in ((key, "key.json"), (local, "job.json")):
        folder.mkdir(parents=True)
        (folder / name).write_text("{")
    job = submitted()
    try:
        for command, damaged in (("keys", key / "key.json"), ("list", local / "job.json")):
            result = run(command, *(["list"] if command == "keys" else []))
            assert result.exit_code == 0
            (line,) = result.stderr.splitlines()
            assert line.startswith(f"warning: {damaged} is damaged")
            assert "toy" in result.stdout
    finally:
        shutil.rmtree(key)
        shutil.rmtree(local)
    assert run("delete", job, "--yes").exit_code == 0


def test_a_retry_changes_nothing_if_its_cluster_does_not_answer(
    submitted: Callable[[], str], tmp_path: Path
) -> None:
    job, store = submitted(), open_store(str(tmp_path / "store"))
    (pair,) = read_job(store, job).pairs
    marker = layout.pair_end(job, pair.pair_id)
    write_record(store, marker, PairEnd(pair_id=pair.pair_id, status="failed", reason="boom"))
    refused(run("retry", job, "--failed", "--cluster", SILENT, "--no-wait"), SILENT, code=3)
    assert store.exists(marker)
    assert run("retry", job, "--failed", "--no-wait").exit_code == 0
    assert not store.exists(marker)
    assert run("delete", job, "--yes").exit_code == 0


@pytest.mark.slow
def test_submit_status_fetch(tmp_path: Path, shared_home: Path) -> None:
    """The whole way on a real Ray cluster, with one pair that cannot be read."""
    source = folder_of(tmp_path / "pairs", ("sea", "wood"))
    shutil.copy(__file__, source / "content" / "text.png")
    picture(source / "style" / "text.png")
    store = ["--store", tmp_path / "store"]
    result = run("submit", source, *QUALITY, *store, "--out", tmp_path / "out", "--actors", 2)
    assert result.exit_code == 1, result.output
    assert "text.png" in result.output
    gallery = (tmp_path / "out" / "gallery.html").read_text()
    assert "sea" in gallery and "text" in gallery
    assert run("preview", source, *QUALITY, "--out", tmp_path / "clear").exit_code == 1
    for name in ("sea", "wood"):
        encrypted, clear = pixels(tmp_path / "out", name), pixels(tmp_path / "clear", name)
        assert 10 * np.log10(255**2 / np.mean((encrypted - clear) ** 2)) > 20

    (job,) = json.loads(run("status", "--json").output)
    assert job["status"] == "succeeded" and job["pairs_done"] == 2
    shown = json.loads(run("status", job["job"], "--json").output)
    assert {p["name"]: p["status"] for p in shown["pairs"]} == {
        "sea": "succeeded",
        "wood": "succeeded",
        "text": "skipped",
    }
    logs = run("logs", job["job"]).output
    assert "(wood): succeeded" in logs
    assert "RAY_AUTH_MODE" not in logs, "Ray's advice to do without its token"

    # A result row swapped for one under another key is an error of that pair only.
    rows = sorted((tmp_path / "store" / "jobs" / job["job"] / "results").glob("*/*/000.ct"))
    blob = rows[0].read_bytes()
    key_id = json.loads((shared_home / "jobs" / job["job"] / "job.json").read_text())["key_id"]
    assert key_id.encode() in blob
    rows[0].write_bytes(blob.replace(key_id.encode(), b"0" * len(key_id)))
    result = run("fetch", job["job"], "--out", tmp_path / "again")
    assert result.exit_code == 1
    assert "0" * len(key_id) in result.output and "Traceback" not in result.output
    assert (
        len(list((tmp_path / "again").glob("sea.png")))
        + len(list((tmp_path / "again").glob("wood.png")))
        == 1
    )
