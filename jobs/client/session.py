"""What a command works with: the user's data directory, an open store, and the passphrase."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.client.home import Home
from jobs.storage.store import FIRST_PATIENCE, Store, open_store
from nst.keyring import AskPassphrase, KeyRing


@dataclass(frozen=True)
class Session:
    """Everything between a user and the jobs of one store.

    Attributes:
        home: Keys, models, names of pairs.
        store: Where the jobs are.
        ask: Asked for the passphrase of a key set that has one; None refuses such keys.
    """

    home: Home
    store: Store
    ask: AskPassphrase | None = None

    @staticmethod
    def open(
        home: Home, url: str, ask: AskPassphrase | None = None, *, create: bool = False
    ) -> Session:
        """Open a store for a user who waits; see `open_store`."""
        return Session(home, open_store(url, FIRST_PATIENCE, create=create), ask)

    @property
    def ring(self) -> KeyRing:
        """The user's key sets."""
        return KeyRing(self.home.keys)
