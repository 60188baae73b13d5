"""Ray actors that hold a model and evaluation keys, one core each."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import ray
from numpy.typing import NDArray

from cluster.metrics import ActorMetrics
from nst.engines.base import Evaluator
from nst.sealing import seal

Blob = NDArray[np.uint8]


@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)
class EvaluatorActor:
    """Runs tasks one at a time.

    Ray neither restarts it nor runs its task again: it would do so for ever with a task that kills
    every actor. `cluster.executor` starts another actor in its place, wherever there is a core.
    """

    def __init__(self, load: Callable[[], Evaluator]) -> None:
        seal()
        self.evaluator = load()
        self.metrics = ActorMetrics()

    def ready(self) -> str:
        """The id of its node; answers once model and keys are loaded."""
        return str(ray.get_runtime_context().get_node_id())

    @ray.method(num_returns=2)
    def run(self, stage: str, *inputs: Blob) -> tuple[Blob, dict[str, float]]:
        """Serialized ciphertexts to one serialized ciphertext, and what it took.

        Blobs are uint8 arrays, which Ray hands over without copying.
        """
        start, cpu = time.time(), time.process_time()
        result = self.evaluator.run(stage, [blob.tobytes() for blob in inputs])
        took = {"start": start, "end": time.time(), "cpu_s": time.process_time() - cpu}
        size = sum(blob.nbytes for blob in inputs)
        self.metrics.task_done(stage, took["end"] - start, size, len(result))
        return np.frombuffer(result, dtype=np.uint8), took


def as_blob(data: bytes) -> Blob:
    """Bytes as the array that actors take."""
    return np.frombuffer(data, dtype=np.uint8)
