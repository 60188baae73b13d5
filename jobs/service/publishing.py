"""The owner's side of an offer: build a model, keep its server bundle, publish the rest."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobs.execution.forecast import core_seconds, distinct_pairs
from jobs.service.offers import Offer, Offered, sign, verified, write_offer
from jobs.storage import layout
from jobs.storage.store import Store, open_store
from nst.engines.base import PLAN_FILE, Plan
from nst.errors import InputError
from nst.model import Model
from nst.network.last_layer import Finishing, LastLayer
from nst.parsing import is_id


def offer_name(model: Model) -> str:
    """What a model is called if its owner does not say: engine, level, size."""
    size = model.size
    own = "" if size == model.level.square else f"-{size.width}x{size.height}"
    return f"{model.engine.name}-{model.level.name}{own}"


def core_seconds_per_pair(plan: Plan, seconds: dict[str, float]) -> float:
    """Its style included, where results are as full as they can be."""
    count = plan.pairs_per_result
    return core_seconds(plan.stages, seconds, distinct_pairs(count, count)) / count


def publish(
    model: Model, offers: Store, key: Ed25519PrivateKey, private: str, name: str, price: str
) -> Offered:
    """Build a model and offer it; its server bundle and weights stay where only the owner is.

    Args:
        model: What is offered; its circuits are built, if they are not.
        offers: The service's store of offers.
        key: Signs the offer.
        private: Where drivers find the server bundle: the folder that the model's cache is, or a
            store's URL.
        name: Of the offer; an older one of this name is replaced.
        price: The owner's word on what a pair costs; may be empty.

    Raises:
        InputError: if the name is none.
        CircuitError: if the model cannot be built.
        StoreError: if a store cannot be written.
    """
    if not is_id(name):
        raise InputError(f"{name!r} is no name: small letters, digits and hyphens, at most 64")
    published, network = model.published, model.network
    plan = published.plan
    assert isinstance(network, Finishing)
    files = {
        "plan": (published.folder / PLAN_FILE).read_bytes(),
        "client": published.client_bundle.read_bytes(),
        "last": LastLayer.of(network).to_bytes(),
    }
    bundle = published.server_bundle.read_bytes()
    digests = {kind: hashlib.sha256(blob).hexdigest() for kind, blob in files.items()}
    server = hashlib.sha256(bundle).hexdigest()
    if "://" in private:
        shelf = open_store(private, create=True)
        shelf.write(layout.model_server(plan.model_id, server), bundle)
        shelf.write(layout.model_plan(plan.model_id, digests["plan"]), files["plan"])
    offer = Offer(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        engine=plan.engine,
        quality=model.level.name,
        width=model.size.width,
        height=model.size.height,
        style_side=plan.style_size.width,
        model_id=plan.model_id,
        contrast=model.engine.unseen_contrast,
        core_s=core_seconds_per_pair(plan, model.seconds),
        pairs_together=plan.pairs_per_result,
        price=price,
        plan=digests["plan"],
        client=digests["client"],
        last=digests["last"],
        server=server,
    )
    signed = sign(offer, key)
    write_offer(offers, signed, {digests[kind]: blob for kind, blob in files.items()})
    return verified(signed, f"offer {name}")
