"""How a driver and its actors get their model: the very bytes that the client named, or none."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jobs.storage import layout
from jobs.storage.bounds import MODEL_BYTES
from jobs.storage.records import JobRecord
from jobs.storage.store import Store, open_store
from nst.ciphertext import key_set_id
from nst.cpu import require_features
from nst.engines import get_engine, parse_plan
from nst.engines.base import PLAN_FILE, SERVER_FILE, Evaluator, Plan
from nst.errors import CircuitError, InputError
from nst.pictures.size import Size


@dataclass(frozen=True)
class ModelPin:
    """The model and key set of a job as its client has them: whatever a store says is no code.

    Attributes:
        model_id: The model.
        key_id: The key set.
        plan: SHA-256 of the plan, in hex.
        bundle: SHA-256 of the server bundle, in hex.
        folder: Where the published model is: a folder that the driver's machine has, or the URL of
            a store that is its owner's alone; empty for the job's store.
    """

    model_id: str
    key_id: str
    plan: str
    bundle: str
    folder: str = ""

    @property
    def options(self) -> list[str]:
        """A driver's arguments that name it, all but the folder, which is each machine's own."""
        names = {"--model": self.model_id, "--key": self.key_id}
        digests = {"--plan": self.plan, "--bundle": self.bundle}
        return [word for option in (names | digests).items() for word in option]

    def read_plan(self, store: Store) -> Plan:
        """The plan.

        Raises:
            CircuitError: if it is damaged or not the client's.
            StoreError: if the store does not give it.
        """
        key = layout.model_plan(self.model_id, self.plan)
        return parse_plan(self._read(store, key, PLAN_FILE, self.plan), f"model plan {key}")

    def read_bundle(self, store: Store) -> bytes:
        """The server bundle, which is code; see `read_plan` for errors."""
        key = layout.model_server(self.model_id, self.bundle)
        return self._read(store, key, SERVER_FILE, self.bundle)

    def job_plan(self, store: Store, job: JobRecord) -> Plan:
        """The plan at the size of a job's contents.

        Raises:
            CircuitError: see `read_plan`; also if the job's record names another model or key set.
        """
        if (job.model_id, job.key_id) != (self.model_id, self.key_id):
            raise CircuitError(
                f"job {job.job_id}: its record in the store was changed and names another model or "
                "key set; submit the pairs again"
            )
        return self.read_plan(store).at(Size(job.width, job.height))

    def _read(self, store: Store, key: str, name: str, sha256: str) -> bytes:
        elsewhere = "://" in self.folder
        path = Path(self.folder, name)
        try:
            if self.folder and not elsewhere:
                blob = path.read_bytes()
            else:
                blob = (open_store(self.folder) if elsewhere else store).read(key, MODEL_BYTES)
        except OSError as error:
            raise InputError(
                f"cannot read {path} ({error.strerror}); nst-batch retry JOB starts the job again"
            ) from error
        if hashlib.sha256(blob).hexdigest() != sha256:
            raise CircuitError(
                f"{key if elsewhere or not self.folder else path} is not what this job was "
                "started with, and was not loaded; nst-batch retry JOB starts it again with this "
                "client's own"
            )
        return blob


KEY_SLACK = 2
"""Of evaluation keys' size, which a plan tells to the percent."""


@dataclass(frozen=True)
class EvaluatorLoader:
    """Loads an evaluator in whichever process calls it; small enough to send to any."""

    store_url: str
    pin: ModelPin

    def __call__(self) -> Evaluator:
        """Read model and evaluation keys and load them.

        Raises:
            CircuitError: see `ModelPin.read_plan` and `Engine.load`; also if the keys are not those
                of the key set, with which every result would be noise, or this machine's CPU lacks
                what the model was compiled for.
            StoreError: if the store does not have them.
        """
        store = open_store(self.store_url)
        plan = self.pin.read_plan(store)
        require_features(plan.cpu_features, f"model {plan.model_id}")
        bundle = self.pin.read_bundle(store)
        key = layout.evaluation_keys(self.pin.key_id)
        evaluation_keys = store.read(key, plan.evaluation_key_bytes * KEY_SLACK)
        if key_set_id(evaluation_keys) != self.pin.key_id:
            raise CircuitError(
                f"the evaluation keys {key} are damaged or another key set's; "
                "nst-batch retry JOB uploads them again"
            )
        return get_engine(plan.engine).load(plan, bundle, evaluation_keys)
