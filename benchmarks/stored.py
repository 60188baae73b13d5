"""The model of a job in a store of our own making, where no client has to be protected."""

from __future__ import annotations

from pathlib import PurePath

from jobs.execution.loading import ModelPin
from jobs.storage import layout
from jobs.storage.records import JobRecord
from jobs.storage.store import Store


def pin_in_store(store: Store, job: JobRecord) -> ModelPin:
    """The only build of a job's model that is in its store, whoever put it there."""
    digests = {
        PurePath(key).suffix: PurePath(key).stem for key in store.list(layout.model(job.model_id))
    }
    return ModelPin(job.model_id, job.key_id, digests[".json"], digests[".zip"])
