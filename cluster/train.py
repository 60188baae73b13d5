"""Training on Ray: several workers that average their gradients, restarted when one dies."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer, get_device, prepare_model

from cluster.local import HUGE_PAGES
from cluster.reasons import why
from nst.errors import NstBatchError
from nst.training.checkpoint import Checkpoint, RunFolder
from nst.training.loop import Run, Trainer, Worker
from nst.training.options import Workers

MAX_FAILURES = 3
"""How often workers are started again by default; `--resume` goes on after that."""
KEPT_MEMORY = "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=8589934592"
"""For GLIBC_TUNABLES: `malloc` keeps what a step has freed for the next one. Given back to the
system and asked for again, feature maps cost a third of a step's time on a CPU."""
STORAGE = "ray"
"""Folder in a run's folder where Ray keeps what it needs to restart workers."""


class TrainingError(NstBatchError):
    """Training stopped for a reason that is not in the user's input."""


@dataclass(frozen=True)
class Task:
    """What a worker process is told."""

    run: Run
    threads: int


class _NoRetry(UserCallback):
    """Ends training at once if a worker has met an error that the user must mend."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray's controller, which does not try again after an error of its own."""
        for error in worker_exceptions.values():
            if isinstance(error, NstBatchError):
                raise error


def train(run: Run, workers: Workers, max_failures: int = MAX_FAILURES) -> int:
    """Train on the Ray cluster this process is connected to; returns the steps done.

    If a worker dies, all are started again from the last checkpoint.

    Args:
        run: What to train; its paths must mean the same on all nodes.
        workers: Must fit into the cluster.
        max_failures: Deaths of workers after which to give up.

    Raises:
        InputError: see `nst.training.loop.Trainer`.
        TrainingError: if workers fail again and again, or at Ctrl-C.
    """
    # On a busy machine the imports of several workers alone take longer than Ray's minute.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    storage = run.out / STORAGE
    # Left by a driver that was killed. The run's own files are as new, and they are the truth.
    shutil.rmtree(storage, ignore_errors=True)
    run.out.mkdir(parents=True, exist_ok=True)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"task": Task(run, workers.threads)},
        scaling_config=ScalingConfig(
            num_workers=workers.workers,
            use_gpu=workers.gpu,
            resources_per_worker={"CPU": workers.threads, **({"GPU": 1} if workers.gpu else {})},
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # typed as in Ray Train V1
            name=STORAGE,
            storage_path=str(run.out),
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            worker_runtime_env={"env_vars": {"GLIBC_TUNABLES": f"{HUGE_PAGES}:{KEPT_MEMORY}"}},
            callbacks=[_NoRetry()],  # type: ignore[list-item]  # typed as in Ray Train V1
        ),
    )
    try:
        trainer.fit()
    except ray.train.ControllerError as error:
        if isinstance(error.controller_failure, NstBatchError):
            raise error.controller_failure from error
        raise TrainingError(f"training could not be run: {why(error)}") from error
    except ray.train.WorkerGroupError as error:
        rank, failure = next(iter(error.worker_failures.items()))
        raise TrainingError(f"worker {rank} failed: {why(failure)}; {_go_on(run)}") from error
    except (RayActorError, SystemExit) as error:  # what Ray makes of Ctrl-C
        raise TrainingError(f"training was stopped; {_go_on(run)}") from error
    shutil.rmtree(storage, ignore_errors=True)
    return Checkpoint.read(RunFolder(run.out).last).step


def _work(config: dict[Any, Any]) -> None:
    """A worker process."""
    make_trainer(config["task"]).train()


def make_trainer(task: Task) -> Trainer:
    """In a worker process of Ray Train, its part of the run."""
    context, device = ray.train.get_context(), get_device()
    if device.type == "cpu":
        torch.set_num_threads(task.threads)
    with _last_checkpoint() as start:
        return Trainer(
            task.run,
            Worker(
                rank=context.get_world_rank(),
                world_size=context.get_world_size(),
                device=device,
                wrap=prepare_model,
                report=_report,
                start=start,
            ),
        )


@contextmanager
def _last_checkpoint() -> Iterator[Path | None]:
    """The file that this driver's last checkpoint was, if there has been one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield next(Path(folder).iterdir())


def _report(figures: dict[str, float], checkpoint: Path | None) -> None:
    if checkpoint is None:
        ray.train.report(figures)
        return
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(checkpoint, folder)
        ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _go_on(run: Run) -> str:
    return f"checkpoints are in {run.out}: go on with --resume"
