"""An executor that runs tasks one after the other where it stands: for tests and comparison."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from jobs.execution.graph import Task
from jobs.execution.scheduler import Completion
from nst.errors import NstBatchError
from nst.engines.concrete.server import Evaluator


class InProcessExecutor:
    """Handles are the ciphertexts themselves."""

    capacity = 1
    memory = math.inf

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._ended: list[Completion] = []

    def put(self, blob: bytes) -> bytes:
        """See `Executor`."""
        return blob

    def get(self, handle: bytes) -> bytes:
        """See `Executor`."""
        return handle

    def submit(self, task: Task, inputs: Sequence[bytes]) -> None:
        """See `Executor`; runs the task at once."""
        start, cpu = time.time(), time.process_time()
        handle, error = None, None
        try:
            handle = self.evaluator.run(task.stage, inputs)
        except NstBatchError as problem:
            error = str(problem)
        spent = time.process_time() - cpu
        self._ended.append(Completion(task.index, handle, error, start, time.time(), spent))

    def wait(self, timeout: float) -> list[Completion]:
        """See `Executor`; never waits."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """See `Executor`; nothing runs between two calls."""
