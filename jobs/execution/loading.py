"""How a worker gets its circuits: from the store, by id."""

from __future__ import annotations

import json
from dataclasses import dataclass

from jobs.storage import layout
from jobs.storage.records import JobRecord
from jobs.storage.store import Store, open_store
from nst.ciphertext import key_set_id
from nst.errors import CircuitError
from nst.engines.concrete.plan import CircuitPlan
from nst.engines.concrete.server import Evaluator


@dataclass(frozen=True)
class EvaluatorLoader:
    """Loads an evaluator in whichever process calls it; small enough to send to any."""

    store_url: str
    model_id: str
    key_id: str

    def __call__(self) -> Evaluator:
        """Read circuits and evaluation keys and load them.

        Raises:
            CircuitError: see `Evaluator`; also if the keys are not those of the key set. With
                another's, which fit the circuits as well, every result would be noise.
            StoreError: if the store does not have them.
        """
        store = open_store(self.store_url)
        key = layout.evaluation_keys(self.key_id)
        evaluation_keys = store.read(key)
        if key_set_id(evaluation_keys) != self.key_id:
            raise CircuitError(
                f"the evaluation keys {key} are damaged or another key set's; "
                "nst-batch retry JOB uploads them again"
            )
        return Evaluator(
            read_plan(store, self.model_id),
            store.read(layout.server_zip(self.model_id)),
            evaluation_keys,
        )


def read_plan(store: Store, model_id: str) -> CircuitPlan:
    """The plan of circuits in a store; raises CircuitError if it is damaged."""
    try:
        return CircuitPlan.from_dict(json.loads(store.read(layout.circuit_plan(model_id))))
    except ValueError as error:
        raise CircuitError(f"circuit plan {model_id} is damaged; submit again") from error


def job_plan(store: Store, job: JobRecord) -> CircuitPlan:
    """The plan of a job's circuits at the height of its contents; see `read_plan`."""
    plan = read_plan(store, job.model_id)
    return plan.at_height(job.height) if job.height else plan
