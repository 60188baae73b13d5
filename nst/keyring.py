"""Key sets in the user's data directory; never imported by a server process."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from nst.ciphertext import key_set_id
from nst.engines import get_engine
from nst.engines.base import Cipher, Published
from nst.errors import CircuitError, InputError
from nst.folders import explaining, subfolders
from nst.private import private_folder, sweep, write_private
from nst.secret_box import is_box, lock, unlock

AskPassphrase = Callable[[str], str]
"""Gives the passphrase of the key set with an id; called only if it has one."""
SECRET_FILE, EVALUATION_FILE, CARD_FILE = "secret.key", "evaluation.key", "key.json"

log = logging.getLogger("nst-batch")


@dataclass(frozen=True)
class KeyCard:
    """What may be known of a key set: its id, its model, its level and its day of making.

    `job_id` is the only job that it is for, empty if it is for any.
    """

    key_id: str
    engine: str
    model_id: str
    quality: str
    created: str
    job_id: str = ""

    @staticmethod
    def parse(text: bytes) -> KeyCard:
        """Out of its JSON record; raises ValueError if it is damaged."""
        record = json.loads(text)
        if not isinstance(record, dict) or not all(isinstance(v, str) for v in record.values()):
            raise ValueError("no record of texts")
        try:
            return KeyCard(**record)
        except TypeError as error:
            raise ValueError(str(error)) from error


class KeyRing:
    """Key sets in a folder: folders 0700, secret keys 0600."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(
        self, published: Published, quality: str, passphrase: str | None = None, job_id: str = ""
    ) -> KeyCard:
        """Generate a key set for a model (a few seconds).

        Args:
            published: The model.
            quality: Level it is of.
            passphrase: Encrypts the secret key at rest; None leaves that to the file's mode.
            job_id: The only job that it is for; empty for any.

        Raises:
            CircuitError: if the model's client bundle cannot be read.
            InputError: if the passphrase is too short, or the folder cannot be written.
        """
        plan = published.plan
        keys = get_engine(plan.engine).make_keys(published.client_bundle)
        card = KeyCard(
            key_id=key_set_id(keys.evaluation),
            engine=plan.engine,
            model_id=plan.model_id,
            quality=quality,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            job_id=job_id,
        )
        secret = keys.secret
        if passphrase is not None:
            secret = lock(secret, passphrase, _label(card.key_id))
        sweep(self.folder)
        with (
            explaining(self.folder / card.key_id),
            private_folder(self.folder / card.key_id) as partial,
        ):
            write_private(partial / SECRET_FILE, secret)
            write_private(partial / EVALUATION_FILE, keys.evaluation)
            write_private(partial / CARD_FILE, json.dumps(asdict(card)).encode())
        return card

    def list(self) -> list[KeyCard]:
        """All key sets, oldest first; one that is damaged is named in a warning and left out.

        What a killed process left of a secret key is removed.

        Raises:
            InputError: if the folder cannot be read.
        """
        cards = []
        sweep(self.folder)
        for folder in subfolders(self.folder):
            sweep(folder)
            path = folder / CARD_FILE
            try:
                cards.append(KeyCard.parse(path.read_bytes()))
            except (OSError, ValueError) as error:
                log.warning("%s is damaged (%s); restore it from your backup", path, error)
        return sorted(cards, key=lambda card: card.created)

    def find(self, model_id: str) -> KeyCard | None:
        """The newest key set for any job of this model, if there is one."""
        fitting = [c for c in self.list() if c.model_id == model_id and not c.job_id]
        return fitting[-1] if fitting else None

    def remove_own(self, key_id: str, job_id: str) -> bool:
        """Remove a key set if it is for this job alone; says whether it was.

        Raises:
            InputError: if it cannot be removed.
        """
        if not any(card.key_id == key_id and card.job_id == job_id for card in self.list()):
            return False
        try:
            shutil.rmtree(self.folder / key_id)
        except OSError as error:
            raise InputError(
                f"cannot delete {self.folder / key_id} ({error.strerror}); remove it by hand"
            ) from error
        return True

    def evaluation_keys(self, key_id: str) -> bytes:
        """Serialized evaluation keys: all that a server may have.

        Raises:
            InputError: if there is no such key set.
        """
        return self._read(key_id, EVALUATION_FILE)

    def is_protected(self, key_id: str) -> bool:
        """Whether a key set's secret key is under a passphrase.

        Raises:
            InputError: if there is no such key set.
        """
        return is_box(self._read(key_id, SECRET_FILE))

    def protect(self, key_id: str, passphrase: str) -> None:
        """Put a secret key under a passphrase, in one step: it is never missing or half written.

        Copies that a backup or the disk has of the plain file stay as they are.

        Raises:
            InputError: if there is no such key set, it has a passphrase already, the passphrase
                is too short, or the file cannot be replaced.
        """
        self.require_unprotected(key_id)
        secret = self._read(key_id, SECRET_FILE)
        self._replace_secret(key_id, lock(secret, passphrase, _label(key_id)))

    def require_unprotected(self, key_id: str) -> None:
        """Raise InputError if a key set is missing or its secret key has a passphrase."""
        if self.is_protected(key_id):
            raise InputError(
                f"key {key_id} has a passphrase already; to change it, first: "
                f"nst-batch keys unprotect {key_id}"
            )

    def unprotect(self, key_id: str, ask: AskPassphrase) -> None:
        """Store a secret key without a passphrase again, in one step.

        Raises:
            InputError: if there is no such key set, it has no passphrase, the passphrase is
                wrong, or the file cannot be replaced.
        """
        if not self.is_protected(key_id):
            raise InputError(f"key {key_id} has no passphrase; nst-batch keys list shows which do")
        self._replace_secret(key_id, self.secret(key_id, ask))

    def secret(self, key_id: str, ask: AskPassphrase | None = None) -> bytes:
        """The serialized secret key, in the clear.

        Args:
            key_id: Key set.
            ask: Asked if the key has a passphrase; None refuses such keys.

        Raises:
            InputError: if there is no such key set, or its passphrase is wrong or missing.
        """
        stored = self._read(key_id, SECRET_FILE)
        if not is_box(stored):
            return stored
        if ask is None:
            raise InputError(f"key {key_id} has a passphrase; give it")
        return unlock(stored, ask(key_id), _label(key_id))

    def cipher(self, key_id: str, published: Published, ask: AskPassphrase | None = None) -> Cipher:
        """Encryption and decryption under a key set.

        Args:
            key_id: Key set.
            published: The model that it was made for.
            ask: See `secret`.

        Raises:
            InputError: if there is no such key set, or its passphrase is wrong or missing.
            CircuitError: if it was made for another model or is damaged.
        """
        plan = published.plan
        try:
            card = KeyCard.parse(self._read(key_id, CARD_FILE))
        except ValueError as error:
            raise CircuitError(
                f"key {key_id} is damaged ({error}); restore it from your backup"
            ) from error
        if card.model_id != plan.model_id:
            raise CircuitError(
                f"key {key_id} was made for model {card.model_id}, not {plan.model_id}; "
                f"create one: nst-batch keys create --quality {card.quality}"
            )
        return get_engine(plan.engine).cipher(published, key_id, self.secret(key_id, ask))

    def _replace_secret(self, key_id: str, stored: bytes) -> None:
        target = self.folder / key_id / SECRET_FILE
        try:
            sweep(target.parent)
            write_private(target, stored)
        except OSError as error:
            raise InputError(
                f"cannot replace {target} ({error.strerror}); it is as it was"
            ) from error

    def _read(self, key_id: str, name: str) -> bytes:
        try:
            return (self.folder / key_id / name).read_bytes()
        except OSError as error:
            raise InputError(
                f"key set {key_id} is not in {self.folder} ({error.strerror}); "
                "without its secret key nothing made under it can be decrypted"
            ) from error


def _label(key_id: str) -> str:
    return f"secret key {key_id}"
