"""An executor that runs tasks one after the other where it stands: for tests and comparison."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from cluster.types import Completion
from nst.engines.base import Evaluator
from nst.engines.tasks import Task
from nst.errors import NstBatchError, first_line


class InProcessExecutor:
    """Handles are the ciphertexts themselves."""

    capacity = 1
    memory = math.inf
    nodes = 1

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._ended: list[Completion[bytes]] = []

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
            error = first_line(problem)
        spent = time.process_time() - cpu
        self._ended.append(Completion(task.index, handle, error, start, time.time(), spent))

    def wait(self, timeout: float) -> list[Completion[bytes]]:
        """See `Executor`; never waits."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """See `Executor`; nothing runs between two calls."""
