"""`estimate`, `submit --dry-run` and the limit of `submit`: figures, and nothing done."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from jobs.client.auto import choose
from jobs.client.home import Home, LocalJob
from jobs.execution.forecast import Offer, distinct_pairs
from jobs.storage import layout
from jobs.storage.records import JobRecord, TaskTrace, write_record
from jobs.storage.store import Store, open_store
from nst.engines.base import Plan, Published
from nst.engines.cache import ModelCache
from nst.errors import InputError
from nst.model import Model
from nst.network import levels
from nst.network.levels import QualityLevel, levels_of
from tests.command_line import refused, run
from tests.plans import made_up_plan
from tests.toy import offer_toy, toy_network, toy_weights

QUALITY = ["--quality", "toy"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_weights(tmp_path_factory.mktemp("weights") / "toy.safetensors")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data directory for the module, so that circuits are compiled once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def toy_level(weights: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_toy(monkeypatch, weights, home)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two contents, two styles, and a file that is no picture."""
    folder = tmp_path / "pairs"
    for side in ("content", "style"):
        (folder / side).mkdir(parents=True)
        for seed, name in enumerate(("sea", "wood")):
            small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
            picture = Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC)
            picture.save(folder / side / f"{name}.png")
    return folder


def estimate(*arguments: str | Path) -> dict:
    result = run("estimate", *arguments, *QUALITY, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def plan_of(home: Path) -> Plan:
    return Model.load("toy", home / "models").plan


def untouched(home: Path) -> bool:
    """Whether there is a model and nothing else."""
    return {path.name for path in home.iterdir()} <= {"models"}


def test_an_estimate_without_pairs(home: Path) -> None:
    record = estimate("--pairs", 5, "--cores", "1,3,60", "--core-price", 0.5)
    plan = plan_of(home)
    assert record["pairs"] == record["styles"] == 5
    assert record["wire"]["up"] == 5 * (plan.stored.content + plan.stored.style)
    assert record["wire"]["down"] == 5 * plan.stored.result
    assert [on["cores"] for on in record["on"]] == [1, 3, 60]
    one, three, many = record["on"]
    assert one["job_s"] > three["job_s"] > many["job_s"]
    assert one["job_s"] == pytest.approx(3600 * record["work_core_hours"], rel=0.05)
    assert many["pair_s"] >= record["one_pair"]["critical_path_s"]
    assert one["bytes_between_nodes"] == three["bytes_between_nodes"] == 0
    assert many["bytes_between_nodes"] > 0
    assert one["dollars"] == pytest.approx(0.5 * one["core_hours"])
    assert record["rates"]["machine"] and record["rates"]["date"]
    assert untouched(home)


def test_an_estimate_of_a_folder_knows_its_styles_and_repeats_it(source: Path, home: Path) -> None:
    plan = plan_of(home)
    grid = estimate(source, "--grid", "--cores", "2")
    assert (grid["pairs"], grid["styles"]) == (4, 2)
    assert grid["wire"]["up"] == 2 * (plan.stored.content + plan.stored.style)
    more = estimate(source, "--grid", "--pairs", 10, "--cores", "2")
    assert (more["pairs"], more["styles"]) == (10, 6)


def test_the_text_says_where_one_pair_stops_and_what_limits_a_job() -> None:
    result = run("estimate", *QUALITY, "--pairs", 2, "--cores", "1,64")
    assert result.exit_code == 0, result.output
    assert "critical path" in result.output and "are of no use to it" in result.output
    assert re.search(r"up +\d+\.\d s, 8 tasks at the same time", result.output)
    assert "limited on 1 core by the cores" in result.output
    assert "limited on 64 cores by its few pairs" in result.output


def test_slower_wires_are_felt() -> None:
    arguments = ("--pairs", 2, "--cores", "4", "--cores-per-node", 1)
    fast, slow = estimate(*arguments), estimate(*arguments, "--bandwidth", 2, "--uplink", 0.5)
    assert slow["on"][0]["job_s"] > fast["on"][0]["job_s"]
    added = slow["on"][0]["pair_at_client_s"] - slow["on"][0]["pair_s"]
    assert added > 10 * (fast["on"][0]["pair_at_client_s"] - fast["on"][0]["pair_s"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cores", "16,x"], ["--cores", "'16,x'", "16,96,1024"]),
        (["--cores", "0"], ["--cores", "'0'"]),
        (["--cores", ""], ["--cores"]),
        (["--pairs", "0"], ["--pairs", "0 is less than 1"]),
        (["--bandwidth", "0"], ["--bandwidth", "0.0 is not above 0"]),
        (["--uplink", "nan"], ["--uplink", "nan is not above 0"]),
        (["--like", "nosuchjob"], ["nosuchjob"]),
        (["nosuchfolder"], ["nosuchfolder", "does not exist"]),
        (["--quality", "huge"], ["no quality level 'huge'"]),
    ],
)
def test_what_cannot_be_estimated_is_one_line(arguments: list[str], words: list[str]) -> None:
    refused(run("estimate", *QUALITY, *arguments), *words)


def test_a_dry_run_says_what_a_job_would_take_and_does_nothing(
    source: Path, home: Path, tmp_path: Path
) -> None:
    (source / "content" / "text.png").write_text("no picture")
    (source / "style" / "text.png").write_bytes((source / "style" / "sea.png").read_bytes())
    store = tmp_path / "store"
    result = run(
        "submit", source, *QUALITY, "--dry-run", "--actors", 2, "--store", store, "--core-price", 9
    )
    # As after the job itself: some pairs are not in it.
    assert result.exit_code == 1, result.output
    plan = plan_of(home)
    assert "skipped text: " in result.output and "text.png" in result.output
    lines = {line[:12].strip(): line[12:].strip() for line in result.stdout.splitlines()}
    assert lines["pairs"] == "2 at toy, 2 styles; 1 skipped"
    assert lines["bytes up"].startswith(f"{2 * (plan.stored.content + plan.stored.style):,}, and ")
    assert lines["wall time"].endswith(" on 2 cores")
    assert lines["cost"].endswith("at $9 per core-hour")
    for label in ("core-hours", "bytes down", "memory", "rates"):
        assert lines[label]
    assert untouched(home) and not store.exists()


def test_a_dry_run_decodes_no_picture(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = source / "content" / "sea.png"
    damaged.write_bytes(damaged.read_bytes()[:-300])
    call = ["submit", source, *QUALITY, "--json", "--actors", 2, "--dry-run"]
    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decodes"))
        record = json.loads(run(*call).stdout)
    assert (record["pairs"], record["skipped"]) == (2, [])


def test_a_dry_run_as_json_and_on_a_cluster(source: Path, home: Path, tmp_path: Path) -> None:
    (source / "content" / "lone.png").write_text("no picture")
    (source / "style" / "lone.png").write_text("no picture")
    call = ["submit", source, *QUALITY, "--dry-run", "--json", "--core-price", 2]
    here = json.loads(run(*call, "--actors", 2).stdout)
    plan = plan_of(home)
    assert (here["pairs"], here["cores"], here["upload_s"]) == (2, 2, 0)
    assert [s["name"] for s in here["skipped"]] == ["lone"] and here["skipped"][0]["reason"]
    assert here["bytes_up"] == 2 * (plan.stored.content + plan.stored.style)
    assert here["dollars"] == pytest.approx(2 * here["core_hours"])
    far = ["--store", "s3://bucket/prefix", "--cluster", "http://head:8265"]
    there = json.loads(run(*call, *far, "--actors", 8).stdout)
    assert there["cores"] == 8 and there["wall_s"] < here["wall_s"]
    assert there["upload_s"] == pytest.approx((here["bytes_up"] + here["bytes_up_once"]) / 12.5e6)
    text = run(*[x for x in call if x != "--json"], *far, "--actors", 8).stdout
    assert re.search(r"bytes up .* at 12.5 MB/s", text)
    refused(run(*call, *far), "--actors")
    refused(run("submit", source, *QUALITY, "--json"), "--json needs --dry-run")


@pytest.fixture
def only_toy(some_levels: None) -> None:
    for name in set(levels.LEVELS) - {"toy"}:
        del levels.LEVELS[name]


@pytest.fixture
def some_levels() -> Iterator[None]:
    """Levels may be changed; afterwards they are all there again, in their order."""
    with mock.patch.dict(levels.LEVELS):
        yield


AUTO = ["--quality", "auto", "--actors", 2]


@pytest.mark.usefixtures("only_toy")
def test_auto_takes_what_fits_and_says_why(source: Path) -> None:
    result = run("submit", source, *AUTO, "--dry-run")
    assert result.exit_code == 0, result.output
    assert re.search(r"^quality toy: about \d+ min of 8 h on 2 cores$", result.stderr, re.M)
    assert "2 at toy" in result.stdout
    result = run("estimate", source, "-q", "auto", "--budget", "1h30m", "--cores", 4, "--json")
    assert json.loads(result.stdout)["quality"] == "toy" and "of 1 h 30 min" in result.stderr


@pytest.mark.usefixtures("only_toy")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        ([*AUTO, "--budget", "0.001h"], ["no quality level fits 1 min on 2 cores", "toy takes"]),
        ([*AUTO, "--budget", "soon"], ["'soon' is no span of time such as 8h"]),
        ([*QUALITY, "--budget", "8h"], ["--budget needs --quality auto"]),
        (
            ["-q", "auto", "--cluster", "http://h:1", "--store", "s3://bucket/p"],
            ["how many cores a cluster gives", "--actors"],
        ),
    ],
)
def test_when_there_is_no_best_level(source: Path, call: list[str], words: list[str]) -> None:
    refused(run("submit", source, *call, "--dry-run"), *words)
    if call[0] == "-q":
        refused(run("estimate", source, "-q", "auto"), "one number of --cores")


@pytest.mark.usefixtures("some_levels")
def test_the_best_level_is_the_largest_that_fits() -> None:
    sizes = {"s": 32, "m": 64, "l": 128}
    levels.LEVELS.clear()
    for name, size in sizes.items():
        weights = Path(__file__) if name != "l" else Path("nowhere")
        levels.LEVELS[name] = QualityLevel(name, size, weights)
    pairs, bytes_per_s = distinct_pairs(3), 1e4

    def model_of(level: QualityLevel) -> Model:
        model = Model(level, toy_network(), ModelCache(Path("nowhere")))
        model.published = Published(Path("nowhere"), made_up_plan(size=level.side))
        return model

    def pick(budget: float, cores: int = 4, uploads: bool = False) -> tuple[str, float]:
        offer = Offer(4, uplink=bytes_per_s)
        choice = choose(pairs, levels_of(), cores, budget, offer, model_of, uploads)
        assert choice.reason.startswith("about ") and f"on {cores} cores" in choice.reason
        return choice.level.name, choice.seconds

    name, medium = pick(1e9)
    assert name == "m", "l has no weights"
    assert pick(1.001 * medium)[0] == "m" and pick(0.999 * medium)[0] == "s"
    assert pick(0.999 * medium, cores=8)[0] == "m"
    stored = made_up_plan(size=64).stored
    wire = 3 * (stored.content + stored.style + stored.result)
    assert pick(1e9, uploads=True)[1] == pytest.approx(medium + wire / bytes_per_s)
    with pytest.raises(InputError, match="fits 1 min on 4 cores: s takes about"):
        pick(0.001)


def test_a_job_over_the_limit_is_asked_about(source: Path, home: Path, tmp_path: Path) -> None:
    arguments = ["submit", source, *QUALITY, "--store", tmp_path / "store", "--limit", 0.001]
    # There is no answer.
    refused(run(*arguments), "2 pairs at toy: about 0.0", "--yes", alone=False)
    refused(run(*arguments, typed="n\n"), "nothing was submitted", alone=False)
    assert untouched(home) and not (tmp_path / "store").exists()


def test_the_limit_may_stand_in_the_environment(
    source: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NST_BATCH_LIMIT", "0.001")
    refused(run("submit", source, *QUALITY), "limit of 0.001", alone=False)
    assert untouched(home)


@pytest.mark.parametrize("how", ["yes", "answer", "within"])
def test_a_job_that_is_allowed_goes_on(
    how: str, source: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = []
    monkeypatch.setattr("jobs.cli.submit._submit", lambda *a: submitted.append(a))
    limit = ["--limit", "0.001"] if how != "within" else []
    arguments = [source, *QUALITY, *limit, "--store", tmp_path / "store"]
    yes = ["--yes"] if how == "yes" else []
    result = run("submit", *arguments, *yes, typed="y\n" if how == "answer" else "")
    assert result.exit_code == 0, result.output
    assert len(submitted) == 1
    assert untouched(home)


@pytest.fixture
def traced(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of a job, j1, each of whose tasks took two seconds."""
    plan = plan_of(home)
    own = Home(tmp_path / "own")
    monkeypatch.setenv("NST_BATCH_HOME", str(own.root))
    own.root.mkdir()
    (own.root / "models").symlink_to(home / "models")
    store = open_store(str(own.store), create=True)
    ids = {"job_id": "j1", "created": "2026-01-01", "quality": "toy", "key_id": "k"}
    sides = {"width": plan.size.width, "height": plan.size.height, "model_id": plan.model_id}
    write_record(store, layout.job("j1"), JobRecord(**ids, **sides, pairs=[]))
    rest = {"store": store.url, "engine": plan.engine, "skipped": []}
    own.save_job(LocalJob(**ids, **sides, **rest, pairs=[]))
    tasks = [
        TaskTrace(stage=s.name, group="g", part=0, seconds=1, start=5, end=7, cpu_s=2)
        for s in plan.stages
    ]
    lines = ",".join(task.model_dump_json() for task in tasks)
    store.write(layout.trace("j1"), f"[{lines}]".encode())
    return store


def test_rates_of_a_job_that_has_run(traced: Store, home: Path) -> None:
    record = estimate("--pairs", 1, "--cores", "1", "--like", "j1")
    assert record["rates"]["machine"] == "job j1"
    tasks = sum(stage.tasks for stage in plan_of(home).stages)
    assert record["work_core_hours"] == pytest.approx(2 * tasks / 3600)


@pytest.mark.parametrize("trace", [b"[", b'{"a": 1}', b'[{"stage": 1}]'])
def test_a_damaged_trace_is_one_line(traced: Store, trace: bytes) -> None:
    traced.write(layout.trace("j1"), trace)
    refused(run("estimate", *QUALITY, "--like", "j1"), "trace.json is damaged")
