"""A customer's side of a service: which models it offers, and who offers them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.client.home import Home
from jobs.service.offers import (
    File,
    Offered,
    SignedOffer,
    read_file,
    read_offer,
    read_offers,
    verified,
)
from jobs.service.places import Place
from jobs.storage.bounds import SMALL_BYTES
from jobs.storage.store import FIRST_PATIENCE, address_of, open_store
from nst.engines import get_engine, parse_plan
from nst.engines.base import CLIENT_FILE, PLAN_FILE, Plan, Published
from nst.errors import CircuitError, InputError, StoreContentError
from nst.folders import explaining, make_private
from nst.network.last_layer import LastLayer
from nst.offered import OfferedModel
from nst.parsing import parse_json
from nst.pictures.size import Size
from nst.private import private_folder, sweep, write_private

OFFER_FILE, LAST_FILE = "offer.json", "last.safetensors"
FILES: dict[str, File] = {PLAN_FILE: "plan", CLIENT_FILE: "client", LAST_FILE: "last"}
"""By its name in the folder of an offer, what a file is."""
WRONG_PLAN = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What a plan raises whose numbers are none."""
MOST_BYTES = 1 << 50

Say = Callable[[str], None]


@dataclass(frozen=True)
class Service:
    """A service as a customer meets it.

    Attributes:
        home: Where offers and their owners are remembered.
        place: The service's store, and the customer's part of it.
    """

    home: Home
    place: Place

    @staticmethod
    def of(home: Home, url: str) -> Service:
        """That of a store, or of a customer's part of it; see `Place.of` for errors."""
        return Service(home, Place.of(url))

    def offers(self, owner: str = "", say: Say = lambda text: None) -> list[Offered]:
        """All that is offered, by its owner; what cannot be read or is of another owner is said.

        Args:
            owner: Fingerprint of the owner, if the customer has it from elsewhere.
            say: Told what is left out.

        Raises:
            InputError: if the owner is not the one that this user knows.
            StoreError: if the store does not answer.
        """
        found, problems = read_offers(open_store(self.place.offers, FIRST_PATIENCE))
        for problem in problems:
            say(problem)
        known = self._known_owner(owner) or next((each.owner for each in found), "")
        foreign = [each for each in found if each.owner != known]
        if found and len(foreign) == len(found):
            self._refuse(found[0])
        for each in foreign:
            say(f"{each.offer.name} is offered by another owner, {each.owner}: left out")
        if found:
            self._remember(known)
        return [each for each in found if each.owner == known]

    def smallest(self, owner: str = "") -> str:
        """The name of the model that computes the smallest results; see `offers` for errors."""
        found = self.offers(owner)
        if not found:
            raise InputError(f"nothing is offered in {self.place.root} yet")
        return min(found, key=lambda each: each.offer.width * each.offer.height).offer.name

    def model(self, name: str, size: Size | None = None, owner: str = "") -> OfferedModel:
        """A model that is offered, with its files on this machine.

        Args:
            name: Of the offer.
            size: Of contents and results; None for the offer's own.
            owner: See `offers`.

        Raises:
            InputError: if the owner is not the one that this user knows, or the size is wrong.
            CircuitError: if the offer's parameters are insecure, or its files do not fit together.
            StoreError: if the store does not answer, or has no such offer.
        """
        store = open_store(self.place.offers, FIRST_PATIENCE)
        offered = read_offer(store, name)
        known = self._known_owner(owner) or offered.owner
        if known != offered.owner:
            self._refuse(offered)
        folder = self.home.offered / offered.offer_id
        if not folder.exists():
            sweep(self.home.offered)
            blobs = {n: read_file(store, offered.offer, kind) for n, kind in FILES.items()}
            blobs[OFFER_FILE] = offered.signed.model_dump_json().encode()
            with explaining(folder), private_folder(folder) as partial:
                for file, blob in blobs.items():
                    write_private(partial / file, blob)
        self._remember(offered.owner)
        return open_offered(self.home, offered.offer_id, size)

    def _known_owner(self, given: str) -> str:
        """The owner that a customer names, or met first here; empty if there is none yet."""
        if given:
            return given
        try:
            return self._owner_file.read_text().strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise InputError(f"cannot read {self._owner_file} ({error.strerror})") from error

    def _remember(self, owner: str) -> None:
        if self._known_owner("") != owner:
            with explaining(self._owner_file):
                make_private(self._owner_file.parent)
                write_private(self._owner_file, owner.encode())

    def _refuse(self, offered: Offered) -> None:
        raise InputError(
            f"model {offered.offer.name!r} is offered by owner {offered.owner}, not by the one "
            f"that you know; if the owner tells you that this is right: --owner {offered.owner}"
        )

    @property
    def _owner_file(self) -> Path:
        return self.home.owner(address_of(self.place.root).name)


def open_offered(home: Home, offer_id: str, size: Size | None = None) -> OfferedModel:
    """An offered model that has been taken before.

    Args:
        home: Where it is.
        offer_id: Of the offer.
        size: Of contents and results; None for the offer's own.

    Raises:
        InputError: if the size is too small or too large.
        CircuitError: if its files are missing or damaged, its parameters are insecure, or it does
            not compute that size.
    """
    folder = home.offered / offer_id
    try:
        blob = (folder / OFFER_FILE).read_bytes()
        signed = SignedOffer.model_validate(parse_json(blob, 2 * SMALL_BYTES))
        offered = verified(signed, f"offer {folder}")
        if offered.offer_id != offer_id:
            raise ValueError("another offer")
        blobs = {name: (folder / name).read_bytes() for name in FILES}
        for name, kind in FILES.items():
            if hashlib.sha256(blobs[name]).hexdigest() != getattr(offered.offer, kind):
                raise ValueError(f"{name} was changed")
    except (OSError, ValueError, StoreContentError) as error:
        raise CircuitError(
            f"offer {folder} is missing or damaged ({error}); remove the folder and submit again"
        ) from error
    offer = offered.offer
    plan = _plan_of(blobs[PLAN_FILE], offered)
    last = LastLayer.from_bytes(blobs[LAST_FILE], f"offer {offer.name}")
    own = Size(offer.width, offer.height)
    wanted = (size or own).checked(get_engine(plan.engine).widest)
    published = Published(folder, plan)
    return OfferedModel(offer_id, offer.quality, published, last, wanted, offer.contrast)


def _plan_of(blob: bytes, offered: Offered) -> Plan:
    """A plan that somebody else wrote; raises CircuitError unless it is that of an offer."""
    offer = offered.offer
    try:
        plan = parse_plan(blob, f"plan of offer {offer.name}")
        sizes = plan.stored.content, plan.stored.style, plan.stored.result
        counts = (*sizes, plan.evaluation_key_bytes, plan.pairs_per_result)
        whole = all(type(count) is int and 0 < count < MOST_BYTES for count in counts)
        same = (plan.model_id, plan.engine) == (offer.model_id, offer.engine)
        if whole and same and plan.style_size == Size.square(offer.style_side):
            return plan
    except WRONG_PLAN as error:
        raise CircuitError(f"plan of offer {offer.name} is damaged; ask its owner") from error
    raise CircuitError(f"plan of offer {offer.name} is of another model; ask its owner")
