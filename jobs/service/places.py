"""Where in a store a service's customers are: `STORE/customers/NAME`, a store of its own each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from jobs.storage import layout
from jobs.storage.store import address_of
from nst.errors import InputError
from nst.parsing import is_id

_CUSTOMER = re.compile(rf"(?:(?P<root>.*?)/)?{layout.CUSTOMERS}(?P<name>[^/]+)/?")


@dataclass(frozen=True)
class Place:
    """A store as a customer names it.

    Attributes:
        root: URL of the service's store, which has the offers.
        customer: Whose part of it this is; empty for all of it.
    """

    root: str
    customer: str = ""

    @staticmethod
    def of(url: str) -> Place:
        """What a URL names.

        Raises:
            StoreAddressError: if it is wrong.
            InputError: if there can be no such customer.
        """
        address = address_of(url)
        found = _CUSTOMER.fullmatch(address.path)
        if found is None:
            return Place(address.url)
        require_customer(found["name"])
        root = "." if found["root"] is None else found["root"] or "/"
        return Place(address.at(root).url, found["name"])

    @property
    def store(self) -> str:
        """URL of the customer's store."""
        return self._below(f"{layout.CUSTOMERS}{self.customer}") if self.customer else self.root

    @property
    def offers(self) -> str:
        """URL of the store of offers, which customers may read."""
        return self._below(layout.OFFERS.rstrip("/"))

    def _below(self, path: str) -> str:
        address = address_of(self.root)
        return address.at(f"{address.path.rstrip('/')}/{path}" if address.path else path).url


def require_customer(name: str) -> None:
    """Raise InputError unless a customer can be called that."""
    if not is_id(name):
        raise InputError(
            f"no customer is called {name!r}: small letters, digits and hyphens, at most 64"
        )


def private_place(private: str | None, default: Path, shared: str) -> str:
    """Where server bundles are: a folder's whole path, or a store's URL.

    Args:
        private: As the owner says; None for the default.
        default: The folder of models in the data directory.
        shared: URL of the service's store.

    Raises:
        InputError: if customers could reach it.
    """
    place = private or str(default)
    require_apart(place, shared)
    return place if "://" in place else str(Path(place).expanduser().absolute())


def require_apart(private: str, shared: str) -> None:
    """Raise InputError if customers could reach what only the owner may have.

    Buckets are compared by their names, however they are reached.
    """
    inner, outer = address_of(private), address_of(shared)
    if inner.folder is None or outer.folder is None:
        below = f"{inner.name}/".startswith(f"{outer.name}/")
    else:
        below = inner.folder.resolve().is_relative_to(outer.folder.resolve())
    if below:
        raise InputError(
            f"{inner.name} is below {outer.name}, which customers read; give another --private"
        )
