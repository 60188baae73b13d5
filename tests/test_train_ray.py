"""Training on Ray: two workers, one of them killed, a driver that is stopped and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray.train
import torch
from PIL import Image
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from cluster.local import local_ray
from cluster.train import Task, TrainingError, make_trainer, train
from jobs.cli.train import _Follower
from nst.errors import InputError
from nst.network.architecture import Architecture
from nst.training.checkpoint import Checkpoint, RunFolder
from nst.training.engines import TRAINABLE
from nst.training.network import StyleTransfer
from nst.training.options import Workers
from tests.command_line import namesakes, refused, run
from tests.toy import TOY
from tests.training_data import SIZE, make_run

PATIENCE = 480.0
"""Seconds for what takes less than a minute, on machines that are busy otherwise."""
PROGRAM = "from nst_batch import main; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and VGG, made once."""
    path = tmp_path_factory.mktemp("training")
    make_run(path)
    return path


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    """Of the command, for the toy network."""
    return [
        "train",
        *("--content-dir", str(folder / "content"), "--style-dir", str(folder / "style")),
        *("--vgg", str(folder / "vgg.npz"), "--quality", "draft", "--out", str(out)),
        *("--architecture", json.dumps(TOY.to_dict()), "--batch-size", "2"),
        *more,
    ]


def lines_of(out: Path) -> list[dict[str, Any]]:
    """What a run has recorded so far."""
    path = out / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def saved_steps(out: Path) -> list[int]:
    return [line["step"] for line in lines_of(out) if "held_out" in line]


# In one process, without Ray


def test_gpus_that_are_not_there_are_not_waited_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    call = arguments(folder, tmp_path / "run", "--gpu", "--workers", "2")
    refused(run(*call), "error: --gpu wants a GPU for each of 2 workers", "1 here")
    assert not (tmp_path / "run").exists()


def test_help_has_an_example_and_is_fast() -> None:
    code = f"import sys; sys.argv = ['nst-batch', 'train', '--help']; {PROGRAM}"
    began = time.process_time()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.process_time() - began < 5
    assert "Examples:\n    nst-batch train" in run.stdout
    for option in ("--content-dir", "--ssc-weight", "--lr-decay", "--workers", "--resume"):
        assert option in run.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--quality", "best"], "no quality level 'best'"),
        (["--architecture", "{"], "is no JSON"),
        (["--architecture", '{"heads": 8}'], "no architecture"),
        (["--scales", "1.0,big"], "'--scales': '1.0,big' is no list of numbers"),
        (["--scales", "1.0,9"], "between 0.5 and 4"),
        (["--mix", "64x8,36x4"], "multiples of 8"),
        (["--mix", "64"], "no list of sides and pairs"),
        (["--engine", "bfv"], "'bfv'"),
        (["--engine", "ckks"], "no architecture"),
        (["--engine", "ckks", "--architecture", '{"stages": 3}'], "network has 7 levels"),
        (["--warm-up", "6", "--max-iter", "6"], "--warm-up 6 leaves none of 6 steps quantized"),
        (["--cluster", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
        (["--style-dir", "."], "training needs two"),
    ],
)
def test_wrong_input_is_one_line(
    more: list[str], message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run(*arguments(folder, tmp_path / "out", *more)), message)
    assert not (tmp_path / "out").exists()


def test_progress_is_followed_through_restarts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    fresh = _Follower(folder.metrics)
    assert fresh.new() == []
    folder.begin({"step": 0, "options": {}})
    folder.log({"step": 50})
    assert [r["step"] for r in fresh.new()] == [0, 50]
    folder.log({"step": 100})
    # Another driver goes on from step 50: what is there already is not shown again.
    resumed = _Follower(folder.metrics)
    assert resumed.new() == []
    folder.begin({"step": 50, "options": {}})
    folder.log({"step": 60})
    assert [r["step"] for r in resumed.new()] == [50, 60]
    assert [r["step"] for r in lines_of(folder.path)] == [0, 50, 50, 60]
    # A worker is replaced.
    folder.begin({"step": 50, "options": {}})
    assert [r["step"] for r in resumed.new()] == [50]
    with folder.metrics.open("a") as file:
        file.write('{"step": 7')
        file.flush()
        assert resumed.new() == []
        file.write("0}\n")
    assert [r["step"] for r in resumed.new()] == [70]


# On Ray


def train_and_keep(config: dict[str, Any]) -> None:
    """What a worker does, and its weights afterwards."""
    trainer = make_trainer(config["task"])
    trainer.train()
    state = {"network": trainer.network.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    torch.save(state, config["folder"] / f"rank{ray.train.get_context().get_world_rank()}.pt")


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    """A Ray cluster of this process."""
    with local_ray(2):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("engine", TRAINABLE)
def test_workers_train_one_network(engine: str, folder: Path, tmp_path: Path) -> None:
    options = {"engine": engine, "max_iter": 6}
    run = make_run(folder, options, out=tmp_path / "out", save_every=0.0)
    TorchTrainer(
        train_and_keep,
        train_loop_config={"task": Task(run, 1), "folder": tmp_path},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="ray", storage_path=str(run.out)),
    ).fit()

    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    checkpoint = Checkpoint.read(RunFolder(run.out).last)
    assert checkpoint.engine == engine
    assert checkpoint.step == 6 and saved_steps(run.out) == [1, 2, 3, 4, 5, 6]
    for name, tensor in ranks[0]["network"].items():
        assert torch.equal(tensor, ranks[1]["network"][name]), name
        assert torch.equal(tensor, checkpoint.network[name]), name
    for state, other in zip(*(rank["optimizer"]["state"].values() for rank in ranks), strict=True):
        assert all(torch.equal(value, other[key]) for key, value in state.items())
    assert lines_of(run.out)[0]["workers"] == 2
    assert sum("calibration" in line for line in lines_of(run.out)) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_what_a_worker_cannot_do_is_one_line(folder: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    for i in range(20):
        (nothing / f"{i}.jpg").write_bytes(b"")
    # Found out by the worker only; trying again would not help.
    run = make_run(folder, content_dir=nothing, out=tmp_path / "wrong")
    with pytest.raises(InputError, match="no held-out picture") as wrong:
        train(run, Workers())
    assert "\n" not in str(wrong.value)

    run = make_run(folder, out=tmp_path / "broken")
    (run.out / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(TrainingError, match=r"worker 0 failed: .*; .* --resume") as failed:
        train(run, Workers(), max_failures=0)
    assert "\n" not in str(failed.value)


class Command:
    """The command in a process of its own, far from the source tree."""

    def __init__(self, log: Path, cwd: Path, *arguments: str) -> None:
        self.log = log
        environment = {**os.environ, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
        with log.open("wb") as output:
            self.process = psutil.Popen(
                [sys.executable, "-c", PROGRAM, *arguments],
                cwd=cwd,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )
        self.seen: dict[int, psutil.Process] = {}

    def wait_until(self, what: Callable[[], bool]) -> None:
        """Until `what` is true or the process has ended."""
        deadline = time.time() + PATIENCE
        while self.process.poll() is None and not what():
            assert time.time() < deadline, self.log.read_text()
            self.seen |= {p.pid: p for p in self.process.children(recursive=True)}
            time.sleep(0.1)

    def wait(self) -> str:
        """Until it has ended; returns its output."""
        self.wait_until(lambda: False)
        return self.log.read_text()

    def workers(self) -> list[psutil.Process]:
        """Its training workers."""
        return [
            p
            for p in self.process.children(recursive=True)
            if "RayTrainWorker" in " ".join(p.cmdline())
        ]

    def end(self) -> None:
        """Nothing of it is left behind, whatever happened."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        for process in psutil.wait_procs(self.seen.values(), timeout=20)[1]:
            process.kill()


@pytest.mark.slow
def test_a_run_survives_its_driver_and_a_worker(folder: Path, tmp_path: Path) -> None:
    out, steps = tmp_path / "out", 60
    # A user's project, with packages of our names, and paths as they are typed there.
    project = namesakes(tmp_path / "project")
    here, there = (Path(os.path.relpath(path, project)) for path in (folder, out))
    common = arguments(here, there, "--max-iter", str(steps), "--workers", "2", "--save-every", "1")
    first = Command(tmp_path / "first.log", project, *common)
    try:
        first.wait_until(lambda: len(saved_steps(out)) > 0)
        first.process.send_signal(signal.SIGINT)
        output = first.wait()
    finally:
        first.end()
    assert first.process.returncode == 1
    assert "training was stopped" in output and "--resume" in output
    assert "Traceback" not in output
    reached = Checkpoint.read(RunFolder(out).last).step
    assert 0 < reached < steps

    refused = subprocess.run(
        [sys.executable, "-c", PROGRAM, *common], capture_output=True, text=True, cwd=project
    )
    assert refused.returncode == 2 and "--resume" in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("error: ")

    second = Command(tmp_path / "second.log", project, *common, "--resume")
    try:
        second.wait_until(lambda: saved_steps(out)[-1] > reached)
        workers = second.workers()
        assert len(workers) == 2, second.log.read_text()
        workers[1].kill()
        output = second.wait()
    finally:
        second.end()
    assert second.process.returncode == 0, output
    assert "Traceback" not in output
    assert output.count("starting, 2 workers") == 2
    assert f"{steps} steps" in output.splitlines()[-1]

    checkpoint = Checkpoint.read(RunFolder(out).last)
    assert checkpoint.step == steps
    network = StyleTransfer(Architecture(**checkpoint.architecture))
    network.load_state_dict(checkpoint.network)
    # Each start goes on from a checkpoint, and no step is recorded twice.
    starts = [line["step"] for line in lines_of(out) if "options" in line]
    assert starts[:2] == [0, reached] and starts[2] in saved_steps(out)
    assert len(set(saved_steps(out))) == len(saved_steps(out))
    assert saved_steps(out)[-1] == steps
    with Image.open(out / "sample.png") as sheet:
        assert sheet.width > 3 * SIZE
    assert not (out / "ray").exists()
