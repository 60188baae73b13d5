"""The client's side: key sets, encryption and decryption. Never imported by a server process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from concrete import fhe
from concrete.compiler import ClientProgram, TransportValue
from concrete.compiler import Value as NativeValue
from numpy.typing import NDArray

from nst.architecture import CONTENT, STYLE
from nst.ciphertext import Envelope
from nst.circuits import SERVER_FILE, load_plan
from nst.errors import CircuitError, InputError
from nst.integer import space_to_depth

Ints = NDArray[np.int64]

ENTRY = {CONTENT: "stem", STYLE: "style_stem"}
"""Circuit function whose input each kind of picture is."""
ROW_ARGUMENT = 1
"""A row is encrypted as the middle one of three; all three share one encoding."""
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

    def create(self, circuits: Path, quality: str) -> KeyCard:
        """Generate a key set for built circuits (a few seconds).

        Raises:
            CircuitError: if the circuits cannot be loaded.
        """
        plan = load_plan(circuits)
        client = fhe.Client(_specs(circuits))
        client.keygen()
        evaluation = client.evaluation_keys.serialize()
        card = KeyCard(
            key_id=hashlib.sha256(evaluation).hexdigest()[:16],
            circuit_id=plan.circuit_id,
            quality=quality,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = Path(tempfile.mkdtemp(dir=self.folder, prefix=".making-"))
        _write_private(partial / SECRET_FILE, client.keys.serialize())
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

    def cipher(self, key_id: str, circuits: Path) -> Cipher:
        """Encryption and decryption under a key set.

        Raises:
            InputError: if there is no such key set.
            CircuitError: if it was made for other circuits or is damaged.
        """
        card = KeyCard(**json.loads(self._read(key_id, CARD_FILE)))
        plan = load_plan(circuits)
        if card.circuit_id != plan.circuit_id:
            raise CircuitError(
                f"key {key_id} was made for circuits {card.circuit_id}, not {plan.circuit_id}; "
                f"create one: nst-batch keys create --quality {card.quality}"
            )
        return Cipher(key_id, plan.circuit_id, _specs(circuits), self._read(key_id, SECRET_FILE))

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

    def __init__(self, key_id: str, circuit_id: str, specs: fhe.ClientSpecs, secret: bytes) -> None:
        self.key_id, self.circuit_id = key_id, circuit_id
        try:
            keys = fhe.Keys.deserialize(secret)
            program = ClientProgram.create_encrypted(specs.program_info, keys._keyset)
        except (RuntimeError, ValueError) as error:
            raise CircuitError(
                f"secret key {key_id} is damaged ({str(error).splitlines()[0]}); "
                "restore it from your backup"
            ) from error
        self._program = program

    def encrypt(self, pixels: Ints, kind: str) -> Envelope:
        """Quantized pixels `[3, S, S]` of a content or a style, row by row of 4-pixel cells."""
        circuit = self._program.get_client_circuit(ENTRY[kind])
        levels = space_to_depth(pixels)
        rows = []
        for y in range(levels.shape[1]):
            row = np.ascontiguousarray(levels[None, :, y : y + 1, :], dtype=np.int64)
            value = circuit.prepare_input(NativeValue(row), ROW_ARGUMENT)
            rows.append(bytes(value.serialize()))
        return Envelope(self.key_id, self.circuit_id, tuple(rows))

    def decrypt(self, envelope: Envelope, what: str) -> Ints:
        """Levels `[C, H, W]` of the last stage.

        Args:
            envelope: The result.
            what: Name of the result in an error.

        Raises:
            CircuitError: if it was made under another key set or by other circuits.
        """
        envelope.require(self.key_id, self.circuit_id, what)
        return self.decrypt_rows("up", envelope.rows)

    def decrypt_rows(self, stage: str, rows: tuple[bytes, ...]) -> Ints:
        """Levels `[C, H, W]` of the output rows of any stage."""
        circuit = self._program.get_client_circuit(stage)
        out = []
        for row in rows:
            value = circuit.process_output(TransportValue.deserialize(row), 0).to_py_val()
            out.append(np.asarray(value, dtype=np.int64)[0])
        return np.concatenate(out, axis=1)


def _specs(circuits: Path) -> fhe.ClientSpecs:
    """Client specs out of a built circuit's archive."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            shutil.unpack_archive(circuits / SERVER_FILE, folder, "zip")
            return fhe.ClientSpecs.deserialize((Path(folder) / "client.specs.json").read_bytes())
    except (OSError, shutil.ReadError) as error:
        raise CircuitError(f"circuits {circuits} are damaged; build them again") from error


def _write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, never readable in between."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
