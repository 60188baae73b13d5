"""Results in the middle of a job that are stored for a driver that resumes it.

Those of a style of the library outlive the job: the next one that uses the style begins with them.

An engine says which tasks are worth it (`Task.checkpoint`). They are written beside the walk, by a
thread of their own: a store that is slow or full costs a checkpoint and nothing else. They keep all
their bits, since they are computed on; another bit would be another picture.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

from cluster.types import Callback, Completion, Handle
from jobs.execution.resume import StoredResult
from jobs.storage import layout
from jobs.storage.records import JobRecord
from jobs.storage.store import Store
from nst.ciphertext import FULL_BITS, Envelope, most_bytes
from nst.engines.tasks import Task, TaskGraph, style_of
from nst.errors import CircuitError

PENDING = 8
"""Results that wait to be written at most; each is kept in memory meanwhile."""
LAST_WRITE = 20.0
"""Seconds that a job which stops waits for a result that is being written."""


class Checkpoints(Callback[Handle]):
    """The checkpoints of a job in the store; as a callback, writes them."""

    def __init__(self, store: Store, job: JobRecord, get: Callable[[Handle], bytes]) -> None:
        """Start the thread that writes.

        Args:
            store: Where the job is.
            job: Its record.
            get: Makes a ciphertext of an executor's handle; called by the thread.
        """
        self.store, self.job, self.get = store, job, get
        self._sizes: dict[str, int] = {}
        self._queue: queue.Queue[tuple[Task, Handle] | None] = queue.Queue(PENDING)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def stored(self, graph: TaskGraph) -> dict[StoredResult, str]:
        """Checkpoints of a graph that are there, and their keys: one listing of the store.

        Of a style of the library whatever job has computed it, which is another listing each.
        """
        tasks = {self._key(task): task for task in graph.tasks if task.checkpoint}
        self._sizes = {key: task.output_bytes for key, task in tasks.items()}
        known = {key: StoredResult(t.group, t.stage, t.part) for key, t in tasks.items()}
        styles = {pair.style for pair in self.job.pairs if layout.in_library(pair.style)}
        prefixes = [layout.checkpoints(self.job.job_id), *map(layout.library_style, styles)]
        listed = (key for prefix in prefixes for key in self.store.list(prefix))
        return {known[key]: key for key in listed if key in known}

    def holds(self, input_id: str) -> bool:
        """Whether the id of an input is that of a checkpoint."""
        return input_id.startswith((layout.checkpoints(self.job.job_id), layout.STYLES))

    def read(self, key: str) -> bytes:
        """A checkpoint; raises CircuitError or StoreError if it is damaged or gone."""
        what = f"checkpoint {key}"
        # What was not listed for this graph has no size that it must have.
        limit = most_bytes(1, self._sizes.get(key, 0))
        envelope = Envelope.unpack(self.store.read(key, limit), what)
        envelope.require(self.job.key_id, self.job.model_id, what)
        if len(envelope.parts) != 1 or envelope.word_bits != FULL_BITS:
            raise CircuitError(f"{what} is none; retry the pair")
        return envelope.parts[0]

    def on_task_end(self, task: Task, completion: Completion[Handle], live_bytes: int) -> None:
        """Store the result of a task, if it is worth it and the thread keeps up."""
        if task.checkpoint and completion.handle is not None:
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait((task, completion.handle))

    def on_end(self) -> None:
        """See `Callback`; a checkpoint that is written later would outlive its job."""
        self.close()

    def close(self) -> None:
        """Stop writing: what waits is forgotten, what is being written is finished if it can be."""
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)
        self._thread.join(LAST_WRITE)

    def _key(self, task: Task) -> str:
        if layout.in_library(style := style_of(task.group)):
            return layout.library_result(style, task.stage, task.part)
        return layout.checkpoint(self.job.job_id, task.group, task.stage, task.part)

    def _write(self) -> None:
        while (item := self._queue.get()) is not None and not self._closed.is_set():
            task, handle = item
            # Whatever happens here, the job itself can go on without.
            with contextlib.suppress(Exception):
                part = self.get(handle)
                envelope = Envelope(self.job.key_id, self.job.model_id, (part,))
                self.store.write(self._key(task), envelope.pack())
            del item, handle
