"""What an earlier driver of a job left in the store, and what this one leaves for the next.

Rows of boundary stages are written beside the walk, by a thread of their own: a store that is
slow or full costs a checkpoint and nothing else. They keep all their bits, since they are computed
on (see `nst.engines.concrete.switching`); another bit would be another picture.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

from jobs.execution.checkpoints import StoredRow
from jobs.execution.graph import Task, TaskGraph
from jobs.storage import layout
from jobs.storage.records import JobRecord
from jobs.storage.store import Store
from nst.ciphertext import FULL_BITS, Envelope
from nst.errors import CircuitError, NstBatchError

PENDING = 8
"""Rows that wait to be written at most; each is kept in memory meanwhile, 10 to 25 MB at
the levels' own widths."""
LAST_WRITE = 20.0
"""Seconds that a job which stops waits for a row that is being written."""


class Checkpoints:
    """Rows of a job's boundary stages in the store."""

    def __init__(
        self, store: Store, job: JobRecord, stages: frozenset[str], get: Callable[[Any], bytes]
    ) -> None:
        """Start the thread that writes.

        Args:
            store: Where the job is.
            job: Its record.
            stages: The stages whose rows are stored.
            get: Makes a ciphertext of an executor's handle; called by the thread.
        """
        self.store, self.job, self.stages, self.get = store, job, stages, get
        self._over: set[str] = set()
        self._queue: queue.Queue[tuple[Task, Any] | None] = queue.Queue(PENDING)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def stored(self, graph: TaskGraph) -> dict[StoredRow, str]:
        """Rows of a graph's stages that are there, and their keys: one listing of the store."""
        known = {
            self._key(task): StoredRow(task.group, task.stage, task.row)
            for task in graph.tasks
            if task.stage in self.stages
        }
        listed = self.store.list(layout.checkpoints(self.job.job_id))
        return {known[key]: key for key in listed if key in known}

    def read(self, key: str) -> bytes:
        """A row; raises CircuitError or StoreError if it is damaged or gone."""
        what = f"stored row {key}"
        envelope = Envelope.unpack(self.store.read(key), what)
        envelope.require(self.job.key_id, self.job.model_id, what)
        if len(envelope.rows) != 1 or envelope.word_bits != FULL_BITS:
            raise CircuitError(f"{what} is none; retry the pair")
        return envelope.rows[0]

    def offer(self, task: Task, handle: Any) -> None:
        """Store the result of a task, if it is worth it and the thread keeps up."""
        if task.stage in self.stages:
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait((task, handle))

    def drop(self, group: str) -> None:
        """Delete the rows of a pair that has ended."""
        self._over.add(group)
        self.store.delete_prefix(layout.checkpoints_of(self.job.job_id, group))

    def drop_all(self) -> None:
        """Delete all rows of a job that has ended; call `close` first."""
        self.store.delete_prefix(layout.checkpoints(self.job.job_id))

    def close(self) -> None:
        """Stop writing: what waits is forgotten, what is being written is finished if it can be."""
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)
        self._thread.join(LAST_WRITE)

    def _key(self, task: Task) -> str:
        return layout.checkpoint(self.job.job_id, task.group, task.stage, task.row)

    def _write(self) -> None:
        while (item := self._queue.get()) is not None and not self._closed.is_set():
            task, handle = item
            if task.group in self._over:
                continue
            # Whatever happens here, the job itself can go on without.
            with contextlib.suppress(Exception):
                row = self.get(handle)
                envelope = Envelope(self.job.key_id, self.job.model_id, (row,))
                self.store.write(self._key(task), envelope.pack())
            del item, handle


def take_over_results(
    store: Store, job: JobRecord, attempt: str, pairs: set[str], word_bits: int, rows: int
) -> dict[str, set[int]]:
    """Copy the rows of unfinished results that other drivers have left, as one's own.

    Copies, because a driver that is alive after all deletes its own if it comes second.

    Args:
        store: Where the job is.
        job: Its record.
        attempt: This driver's.
        pairs: Pairs that have not ended.
        word_bits: See `nst.engines.concrete.switching`.
        rows: Of a result.

    Returns:
        By pair id, the rows that are there now. Damaged ones are not.
    """
    wanted = {
        layout.row_in_attempt(pair, row): (pair, row) for pair in pairs for row in range(rows)
    }
    there: dict[str, set[int]] = {}
    prefix = layout.results(job.job_id)
    for key in store.list(prefix):
        other, _, name = key.removeprefix(prefix).partition("/")
        if other == attempt or name not in wanted:
            continue
        pair, row = wanted[name]
        if row in there.get(pair, ()):
            continue
        with contextlib.suppress(NstBatchError):
            envelope = Envelope.unpack(blob := store.read(key), key)
            envelope.require(job.key_id, job.model_id, key)
            if envelope.word_bits == word_bits and len(envelope.rows) == 1:
                store.write(layout.result_row(job.job_id, attempt, pair, row), blob)
                there.setdefault(pair, set()).add(row)
    return there
