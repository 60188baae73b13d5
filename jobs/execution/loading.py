"""How an actor gets its model: from the store, by id."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.storage import layout
from jobs.storage.records import JobRecord
from jobs.storage.store import Store, open_store
from nst.ciphertext import key_set_id
from nst.engines import get_engine, parse_plan
from nst.engines.base import Evaluator, Plan
from nst.errors import CircuitError
from nst.pictures.size import Size


@dataclass(frozen=True)
class EvaluatorLoader:
    """Loads an evaluator in whichever process calls it; small enough to send to any."""

    store_url: str
    model_id: str
    key_id: str

    def __call__(self) -> Evaluator:
        """Read model and evaluation keys and load them.

        Raises:
            CircuitError: see `Engine.load`; also if the keys are not those of the key set. With
                another's, which fit the model as well, every result would be noise.
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
        plan = read_plan(store, self.model_id)
        bundle = store.read(layout.model_server(self.model_id))
        return get_engine(plan.engine).load(plan, bundle, evaluation_keys)


def read_plan(store: Store, model_id: str) -> Plan:
    """The plan of a model in a store; raises CircuitError if it is damaged."""
    key = layout.model_plan(model_id)
    return parse_plan(store.read(key), f"model plan {key}")


def job_plan(store: Store, job: JobRecord) -> Plan:
    """The plan of a job's model at the size of its contents; see `read_plan`."""
    return read_plan(store, job.model_id).at(Size(job.width, job.height))
