"""What customers may use, and what they have used."""

from __future__ import annotations

import time
from dataclasses import dataclass

from jobs.storage import layout
from jobs.storage.records import Seconds, StoreRecord, read_record, write_record
from jobs.storage.store import Store, names_below
from nst.errors import StoreContentError

MOST_USAGES = 1_000_000


class Usage(StoreRecord):
    """Core-seconds of a customer's jobs on one server and day (UTC)."""

    core_s: Seconds = 0.0


@dataclass(frozen=True)
class Quota:
    """What each customer may use.

    Attributes:
        pairs: Of a job, at most.
        core_hours: Of a day, at most; a job that would use more waits for the next.
    """

    pairs: int
    core_hours: float


@dataclass(frozen=True)
class Accounts:
    """Usage by customer, day and server, in the service's store: customers cannot write there."""

    store: Store
    server: str

    def add(self, customer: str, core_s: float) -> None:
        """Write down what a customer's job took here just now; raises StoreError."""
        key = self._key(customer, self.server)
        write_record(self.store, key, Usage(core_s=self._read(key) + core_s))

    def today(self, customer: str) -> float:
        """Core-seconds of a customer's jobs on all servers today; raises StoreError."""
        prefix = self._key(customer, "").removesuffix(".json")
        folder, _, begin = prefix.rpartition("/")
        names = names_below(self.store, f"{folder}/", MOST_USAGES)
        return sum(self._read(f"{folder}/{name}") for name in names if name.startswith(begin))

    @staticmethod
    def _key(customer: str, server: str) -> str:
        return layout.usage(customer, time.strftime(f"%Y-%m-%d-{server}", time.gmtime()))

    def _read(self, key: str) -> float:
        try:
            return read_record(self.store, key, Usage).core_s
        except StoreContentError:
            return 0.0
