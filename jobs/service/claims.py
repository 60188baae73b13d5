"""Which server has which job: claims in the service's store, where customers cannot write.

A claim is made once, by conditional creation, and shows its server's sign of life. When that is
old, another server makes the claim of the next turn; the first one sees it and lets go. Should two
servers have a job at once all the same, its drivers agree as two drivers always do: by the markers
of pairs (see `jobs.execution.recorder`).
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path

from jobs.storage import layout
from jobs.storage.records import Count, Id, Reason, Seconds, StoreRecord, read_record, write_record
from jobs.storage.store import Store, names_below
from nst.errors import StoreContentError
from nst.plain import plain

STALE_AFTER = 60.0
"""Seconds without a sign of life after which a server is taken to be gone."""
MOST_TURNS = 100_000
_TURN = re.compile(r"(\d{6})\.json")


class Claim(StoreRecord):
    """A server's word that it has a job: a process of a host, alive at a time of the store's."""

    server: Id
    host: Reason
    pid: Count
    heartbeat: Seconds
    released: bool = False


@dataclass
class Held:
    """A claim of this server."""

    customer: str
    job_id: str
    turn: int


@dataclass
class Claims:
    """The claims of one server.

    Attributes:
        store: The service's.
        server: This server's id.
    """

    store: Store
    server: str = field(default_factory=lambda: secrets.token_hex(6))

    def take(self, customer: str, job_id: str) -> Held | None:
        """Claim a job; None if another server has it.

        Raises:
            StoreError: if the store does not answer.
        """
        last = self._last_turn(customer, job_id)
        if last and self._lives(customer, job_id, last):
            return None
        held = Held(customer, job_id, last + 1)
        made = self.store.create(self._key(held), self._claim().model_dump_json().encode())
        return held if made else None

    def renew(self, held: Held) -> bool:
        """Show a sign of life; False if another server has taken the job over.

        Raises:
            StoreError: if the store does not answer.
        """
        if self._last_turn(held.customer, held.job_id) != held.turn:
            return False
        write_record(self.store, self._key(held), self._claim())
        return True

    def release(self, held: Held) -> None:
        """Let go of a job that is not at its end: any server may take it."""
        claim = self._claim()
        claim.released = True
        write_record(self.store, self._key(held), claim)
        for turn in range(1, held.turn):
            self.store.delete(layout.claim(held.customer, held.job_id, turn))

    def forget(self, held: Held) -> None:
        """Remove all claims of a job that is at its end."""
        self.store.delete_prefix(layout.claims(held.customer, held.job_id))

    def _claim(self) -> Claim:
        return Claim(
            server=self.server,
            host=plain(socket.gethostname()),
            pid=os.getpid(),
            heartbeat=self.store.clock(),
        )

    @staticmethod
    def _key(held: Held) -> str:
        return layout.claim(held.customer, held.job_id, held.turn)

    def _last_turn(self, customer: str, job_id: str) -> int:
        names = names_below(self.store, layout.claims(customer, job_id), MOST_TURNS)
        found = (_TURN.fullmatch(name) for name in names)
        return max((int(each[1]) for each in found if each), default=0)

    def _lives(self, customer: str, job_id: str, turn: int) -> bool:
        """Whether the server of a claim is at work, as far as can be told."""
        try:
            claim = read_record(self.store, layout.claim(customer, job_id, turn), Claim)
        except StoreContentError:
            return False
        if claim.released or self.store.clock() - claim.heartbeat > STALE_AFTER:
            return False
        here = claim.host == plain(socket.gethostname())
        return not here or Path(f"/proc/{claim.pid}").exists()
