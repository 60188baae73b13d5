"""What a service offers: signed records in its store, and the files that a customer needs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError

from jobs.storage import layout
from jobs.storage.bounds import SMALL_BYTES
from jobs.storage.records import (
    Id,
    Name,
    Reason,
    Seconds,
    StoreRecord,
    read_record,
    write_record,
)
from jobs.storage.store import Store, names_below
from nst.errors import StoreContentError
from nst.parsing import ID, is_id, parse_json

MOST_OFFERS = 10_000
PLAN_BYTES, CLIENT_BYTES, LAST_BYTES = 1 << 20, 4 << 20, 1 << 20
"""What a customer reads of a plan, a client bundle, a last layer: ours have a tenth of it."""
FINGERPRINT = 32
"""Hex digits of an owner's name: half of the SHA-256 of the public key."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Pixels = Annotated[int, Field(ge=1, le=1 << 20)]


class Offer(StoreRecord):
    """A model that a service computes.

    `width` and `height` are those of results in pixels; a model may compute other sizes as well.
    `core_s` are core-seconds per pair, its style included, at measured rates; `price` is the
    owner's word on what a pair costs. `contrast` is that of every encrypted picture. `plan`,
    `client` and `last` are files that customers read, `server` is one that they do not: a driver
    loads no other bundle.
    """

    name: Annotated[str, Field(pattern=ID)]
    created: Reason
    engine: Name
    quality: Name
    width: Pixels
    height: Pixels
    style_side: Pixels
    model_id: Id
    contrast: Annotated[float, Field(gt=0, le=1)] = 1.0
    core_s: Seconds
    pairs_together: Pixels = 1
    price: Reason = ""
    plan: Sha256
    client: Sha256
    last: Sha256
    server: Sha256


class SignedOffer(StoreRecord):
    """An offer as JSON, its owner's public key, and the signature (Ed25519) of that JSON."""

    payload: Annotated[str, Field(max_length=SMALL_BYTES)]
    owner: Sha256
    signature: Annotated[str, Field(pattern="^[0-9a-f]{128}$")]


@dataclass(frozen=True)
class Offered:
    """An offer whose signature is right.

    Attributes:
        offer: What is offered.
        owner: Fingerprint of who signed it.
        signed: As it stands in the store.
    """

    offer: Offer
    owner: str
    signed: SignedOffer

    @property
    def offer_id(self) -> str:
        """Of this very offer: another one of the same name has another."""
        return hashlib.sha256(self.signed.payload.encode()).hexdigest()[:16]


def sign(offer: Offer, key: Ed25519PrivateKey) -> SignedOffer:
    """An offer with its owner's signature."""
    payload = offer.model_dump_json()
    return SignedOffer(
        payload=payload,
        owner=key.public_key().public_bytes_raw().hex(),
        signature=key.sign(payload.encode()).hex(),
    )


def verified(signed: SignedOffer, what: str) -> Offered:
    """An offer out of its signed form.

    Raises:
        StoreContentError: if the signature is wrong, or what is signed is damaged.
    """
    try:
        public = bytes.fromhex(signed.owner)
        key = Ed25519PublicKey.from_public_bytes(public)
        key.verify(bytes.fromhex(signed.signature), signed.payload.encode())
        offer = Offer.model_validate(parse_json(signed.payload.encode(), SMALL_BYTES))
    except InvalidSignature as error:
        raise StoreContentError(
            f"{what} is not signed by the owner that it names: it was changed; do not use it"
        ) from error
    except (ValueError, ValidationError) as error:
        raise StoreContentError(f"{what} is damaged; ask its owner to publish it again") from error
    return Offered(offer, fingerprint(public), signed)


def fingerprint(public: bytes) -> str:
    """Of an owner, by their raw public key."""
    return hashlib.sha256(public).hexdigest()[:FINGERPRINT]


def read_offer(store: Store, name: str) -> Offered:
    """An offer of a service.

    Raises:
        StoreContentError: if it is missing, damaged or wrongly signed.
        StoreError: if the store does not answer.
    """
    key = layout.offer(name)
    what = f"store {store.url}: {key}"
    if not is_id(name) or not store.exists(key):
        raise StoreContentError(
            f"store {store.url} offers no model {name!r}; see: nst-batch models --store STORE"
        )
    offered = verified(read_record(store, key, SignedOffer), what)
    if offered.offer.name != name:
        raise StoreContentError(f"{what} is the offer of another name; do not use it")
    return offered


def read_offers(store: Store) -> tuple[list[Offered], list[str]]:
    """All offers of a service by name, and what is wrong with those that cannot be read.

    Raises:
        StoreError: if the store does not answer.
    """
    found, problems = [], []
    for key in names_below(store, layout.NAMED_OFFERS, MOST_OFFERS):
        name = key.removesuffix(".json")
        if name == key or not is_id(name):
            continue
        try:
            found.append(read_offer(store, name))
        except StoreContentError as error:
            problems.append(str(error))
    return found, problems


File = Literal["plan", "client", "last"]
BYTES: dict[File, int] = {"plan": PLAN_BYTES, "client": CLIENT_BYTES, "last": LAST_BYTES}


def read_file(store: Store, offer: Offer, kind: File) -> bytes:
    """A file of an offer.

    Raises:
        StoreContentError: if it is missing, too large, or not the one that was signed.
        StoreError: if the store does not answer.
    """
    sha256 = str(getattr(offer, kind))
    blob = store.read(layout.offer_file(sha256), BYTES[kind])
    if hashlib.sha256(blob).hexdigest() != sha256:
        raise StoreContentError(
            f"store {store.url}: {layout.offer_file(sha256)} is not what its owner signed; "
            "do not use it"
        )
    return blob


def write_offer(store: Store, signed: SignedOffer, files: dict[str, bytes]) -> None:
    """Put an offer into a store, its files first; one of the same name is replaced.

    Raises:
        StoreError: if the store cannot be written.
    """
    offer = verified(signed, "the offer").offer
    for sha256, blob in files.items():
        store.write(layout.offer_file(sha256), blob)
    write_record(store, layout.offered_model(offer.model_id), signed)
    write_record(store, layout.offer(offer.name), signed)


def offer_of_model(store: Store, model_id: str) -> Offered | None:
    """The offer that a model was published with; None if it was not, or was withdrawn.

    Raises:
        StoreContentError: if it is damaged, wrongly signed, or another model's.
        StoreError: if the store does not answer.
    """
    key = layout.offered_model(model_id)
    if not store.exists(key):
        return None
    what = f"store {store.url}: {key}"
    offered = verified(read_record(store, key, SignedOffer), what)
    if offered.offer.model_id != model_id:
        raise StoreContentError(f"{what} is the offer of another model; publish it again")
    return offered


def withdraw(store: Store, name: str) -> None:
    """Take an offer and its model out of a store, with the files that no other offer has.

    Jobs of that model that still wait will fail.

    Raises:
        StoreContentError: if there is none.
        StoreError: if the store cannot be written.
    """
    gone = read_offer(store, name).offer
    others, problems = read_offers(store)
    store.delete(layout.offer(name))
    if all(each.offer.model_id != gone.model_id for each in others if each.offer.name != name):
        store.delete(layout.offered_model(gone.model_id))
    kept = {sha for each in others if each.offer.name != name for sha in files_of(each.offer)}
    if problems:
        return  # What they need is not known.
    for sha256 in set(files_of(gone)) - kept:
        store.delete(layout.offer_file(sha256))


def files_of(offer: Offer) -> tuple[str, ...]:
    """SHA-256 of the files that customers read."""
    return offer.plan, offer.client, offer.last
