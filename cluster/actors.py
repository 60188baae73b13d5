"""Ray actors that hold the circuits and evaluation keys of a quality level, one core each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from nst.server import Evaluator, seal

Blob = NDArray[np.uint8]


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)
class RowActor:
    """Runs row tasks one at a time.

    Ray restarts an actor that dies and runs its task again; a row task has no side effect, so
    running it twice is harmless.
    """

    def __init__(self, load: Callable[[], Evaluator]) -> None:
        seal()
        self.evaluator = load()

    def ready(self) -> bool:
        """Whether circuits and keys are loaded: answers once they are."""
        return True

    @ray.method(num_returns=2)
    def run(self, stage: str, *rows: Blob) -> tuple[Blob, dict[str, float]]:
        """Serialized ciphertexts to one serialized ciphertext, and what it took.

        Blobs are uint8 arrays, which Ray hands over without copying.
        """
        start, cpu = time.time(), time.process_time()
        result = self.evaluator.run(stage, [row.tobytes() for row in rows])
        took = {"start": start, "end": time.time(), "cpu_s": time.process_time() - cpu}
        return np.frombuffer(result, dtype=np.uint8), took


def as_blob(data: bytes) -> Blob:
    """Bytes as the array that actors take."""
    return np.frombuffer(data, dtype=np.uint8)


def start_actors(count: int, load: Callable[[], Evaluator]) -> list[Any]:
    """Start actors and wait until all have loaded their circuits and keys."""
    actors = [RowActor.remote(load) for _ in range(count)]  # type: ignore[attr-defined]
    ray.get([actor.ready.remote() for actor in actors])
    return actors
