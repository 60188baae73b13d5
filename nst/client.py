"""The client's side: key sets, encryption and decryption. Never imported by a server process.

Uses Concrete's runtime as `concrete.fhe` does, without importing that: it brings PyTorch along,
seconds for every command that encrypts or decrypts.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np
from concrete.compiler import ClientProgram, Keyset, ProgramInfo, TransportValue
from concrete.compiler import Value as NativeValue
from numpy.typing import NDArray

from nst.architecture import CONTENT, STYLE
from nst.ciphertext import Envelope, key_set_id
from nst.circuits import SERVER_FILE, load_plan
from nst.errors import CircuitError, InputError
from nst.forking import cores, spread
from nst.integer import space_to_depth
from nst.secret_box import is_box, lock, unlock
from nst.switching import full_rows

Ints = NDArray[np.int64]
Pixels = NDArray[np.int8]
AskPassphrase = Callable[[str], str]
"""Gives the passphrase of the key set with an id; called only if it has one."""

ENTRY = {CONTENT: "stem", STYLE: "style_stem"}
"""Circuit function whose input each kind of picture is."""
ROW_ARGUMENT = 1
"""A row is encrypted as the middle one of three; all three share one encoding."""
SPECS_FILE = "client.specs.json"
"""Concrete's description of inputs and outputs, in the circuits' archive."""
SECRET_FILE, EVALUATION_FILE, CARD_FILE = "secret.key", "evaluation.key", "key.json"


@dataclass(frozen=True)
class KeyCard:
    """What may be known of a key set: its id, its circuits, its level and its day of making."""

    key_id: str
    circuit_id: str
    quality: str
    created: str


class KeyRing:
    """Key sets in the user's data directory: folders 0700, secret keys 0600."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, circuits: Path, quality: str, passphrase: str | None = None) -> KeyCard:
        """Generate a key set for built circuits (a few seconds).

        Args:
            circuits: Folder of the circuits.
            quality: Level they are of.
            passphrase: Encrypts the secret key at rest; None leaves that to the file's mode.

        Raises:
            CircuitError: if the circuits cannot be loaded.
            InputError: if the passphrase is too short.
        """
        plan = load_plan(circuits)
        # No cache, and no seeds of ours: zeros stand for the system's randomness.
        keys = Keyset(_program_info(circuits), None, 0, 0, 0, 0, None)
        evaluation = bytes(keys.get_server_keys().serialize())
        card = KeyCard(
            key_id=key_set_id(evaluation),
            circuit_id=plan.circuit_id,
            quality=quality,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        secret = bytes(keys.serialize())
        if passphrase is not None:
            secret = lock(secret, passphrase, _label(card.key_id))
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = Path(tempfile.mkdtemp(dir=self.folder, prefix=".making-"))
        _write_private(partial / SECRET_FILE, secret)
        _write_private(partial / EVALUATION_FILE, evaluation)
        _write_private(partial / CARD_FILE, json.dumps(card.__dict__).encode())
        partial.replace(self.folder / card.key_id)
        return card

    def list(self) -> list[KeyCard]:
        """All key sets, oldest first."""
        cards = []
        for path in self.folder.glob(f"*/{CARD_FILE}"):
            if not path.parent.name.startswith("."):
                cards.append(KeyCard(**json.loads(path.read_text())))
        return sorted(cards, key=lambda card: card.created)

    def find(self, circuit_id: str) -> KeyCard | None:
        """The newest key set for these circuits, if there is one."""
        fitting = [card for card in self.list() if card.circuit_id == circuit_id]
        return fitting[-1] if fitting else None

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

    def cipher(self, key_id: str, circuits: Path, ask: AskPassphrase | None = None) -> Cipher:
        """Encryption and decryption under a key set.

        Args:
            key_id: Key set.
            circuits: Folder of the circuits it was made for.
            ask: See `secret`.

        Raises:
            InputError: if there is no such key set, or its passphrase is wrong or missing.
            CircuitError: if it was made for other circuits or is damaged.
        """
        card = KeyCard(**json.loads(self._read(key_id, CARD_FILE)))
        plan = load_plan(circuits)
        if card.circuit_id != plan.circuit_id:
            raise CircuitError(
                f"key {key_id} was made for circuits {card.circuit_id}, not {plan.circuit_id}; "
                f"create one: nst-batch keys create --quality {card.quality}"
            )
        return Cipher(key_id, plan.circuit_id, _program_info(circuits), self.secret(key_id, ask))

    def _replace_secret(self, key_id: str, stored: bytes) -> None:
        target = self.folder / key_id / SECRET_FILE
        partial = target.with_suffix(".partial")
        try:
            # Left by a process that was killed; it may hold a key in the clear.
            partial.unlink(missing_ok=True)
            try:
                _write_private(partial, stored)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
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


class Cipher:
    """Encrypts pictures and decrypts results under one key set."""

    def __init__(self, key_id: str, circuit_id: str, program: ProgramInfo, secret: bytes) -> None:
        self.key_id, self.circuit_id = key_id, circuit_id
        try:
            keys = Keyset.deserialize(secret)
            self._program = ClientProgram.create_encrypted(program, keys)
        except (RuntimeError, ValueError) as error:
            raise CircuitError(
                f"secret key {key_id} is damaged ({str(error).splitlines()[0]}); "
                "restore it from your backup"
            ) from error
        self._description, self._keys = program, keys

    def encrypt(self, pixels: Ints, kind: str) -> Envelope:
        """Quantized pixels `[3, H, W]` of a content or a style, row by row of 4-pixel cells."""
        (envelope,) = self.encrypt_all([(pixels, kind)])
        return envelope

    def encrypt_all(self, pictures: Iterable[tuple[Ints, str]]) -> Generator[Envelope, None, None]:
        """Many pictures, see `encrypt`; each as soon as it is there, while others follow.

        All cores are used: Concrete takes a sixth of a millisecond of one for every value, most of
        it in the generator of the masks.
        """
        rows: list[tuple[str, Pixels]] = []
        counts: list[int] = []
        for pixels, kind in pictures:
            # All wait here until their turn, and have 4 bits.
            levels = space_to_depth(pixels).astype(np.int8)
            counts.append(levels.shape[1])
            rows += [(kind, levels[None, :, y : y + 1, :]) for y in range(counts[-1])]
        with closing(spread(rows, self._row_encryption, cores())) as sealed:
            for count in counts:
                yield Envelope(self.key_id, self.circuit_id, tuple(islice(sealed, count)))

    def _row_encryption(self) -> Callable[[tuple[str, Pixels]], bytes]:
        """Encryption of rows `[1, C, 1, W]` of a kind of picture, with randomness of its own.

        Two processes that shared the state of one generator would give the same noise to
        different pixels, and so give them away: the generator is part of the program made here.
        """
        program = ClientProgram.create_encrypted(self._description, self._keys)
        circuits = {kind: program.get_client_circuit(entry) for kind, entry in ENTRY.items()}

        def encrypt_row(row: tuple[str, Pixels]) -> bytes:
            kind, levels = row
            value = NativeValue(np.ascontiguousarray(levels, dtype=np.int64))
            return bytes(circuits[kind].prepare_input(value, ROW_ARGUMENT).serialize())

        return encrypt_row

    def decrypt(self, envelope: Envelope, what: str) -> Ints:
        """Levels `[C, H, W]` of the last stage.

        Args:
            envelope: The result.
            what: Name of the result in an error.

        Raises:
            CircuitError: if it was made under another key set or by other circuits, or is no
                result at all.
        """
        envelope.require(self.key_id, self.circuit_id, what)
        try:
            return self.decrypt_rows("up", full_rows(envelope))
        except (RuntimeError, ValueError) as error:
            # Its checksum is right: whoever made it meant it so, or stored another thing.
            raise CircuitError(
                f"{what} is no result ({str(error).splitlines()[0]}); submit the pair again"
            ) from error

    def decrypt_result(self, blobs: Iterable[bytes], what: str) -> Ints:
        """Levels `[C, H, W]` of the last stage, from packed envelopes of its rows.

        Args:
            blobs: Envelopes with the rows from top to bottom, one or more in each. They are taken
                one after the other: a large result has more bytes than memory.
            what: Name of the result in an error.

        Raises:
            CircuitError: See `decrypt`; also if an envelope is damaged.
        """
        parts = []
        for number, blob in enumerate(blobs):
            part = f"row {number} of {what}"
            parts.append(self.decrypt(Envelope.unpack(blob, part), part))
        try:
            return np.concatenate(parts, axis=1)
        except ValueError as error:
            raise CircuitError(f"{what} is no result ({error}); submit the pair again") from error

    def decrypt_rows(self, stage: str, rows: tuple[bytes, ...]) -> Ints:
        """Levels `[C, H, W]` of the output rows of any stage."""
        circuit = self._program.get_client_circuit(stage)
        out = []
        for row in rows:
            value = circuit.process_output(TransportValue.deserialize(row), 0).to_py_val()
            out.append(np.asarray(value, dtype=np.int64)[0])
        return np.concatenate(out, axis=1)


def _label(key_id: str) -> str:
    return f"secret key {key_id}"


def _program_info(circuits: Path) -> ProgramInfo:
    """What a client must know of built circuits, out of their archive."""
    try:
        with zipfile.ZipFile(circuits / SERVER_FILE) as archive:
            return ProgramInfo.deserialize(archive.read(SPECS_FILE))
    except (OSError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise CircuitError(f"circuits {circuits} are damaged; build them again") from error


def _write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, never readable in between."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
