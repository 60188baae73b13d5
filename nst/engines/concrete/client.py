"""The client's side of Concrete: key generation, encryption and decryption.

Uses Concrete's runtime as `concrete.fhe` does, without importing that: it brings PyTorch along,
seconds for every command that encrypts or decrypts.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from concrete.compiler import ClientProgram, Keyset, ProgramInfo, TransportValue
from concrete.compiler import Value as NativeValue
from numpy.typing import NDArray

from nst.ciphertext import Envelope
from nst.engines.base import Features, KeyPair, PreparedInput, Published, Role
from nst.engines.concrete.plan import CircuitPlan
from nst.engines.concrete.preparation import quantized
from nst.engines.concrete.publish import SPECS_FILE
from nst.engines.concrete.security import require_secure
from nst.engines.concrete.switching import Frame, full_rows
from nst.errors import CircuitError, first_line
from nst.forking import spread
from nst.machine import cores
from nst.network.architecture import CELL, CONTENT, OUTPUT, STYLE
from nst.network.integers import space_to_depth

Ints = NDArray[np.int64]

SPECS_BYTES = 16 << 20
"""Of Concrete's description of circuits, unpacked: ours have some hundred kilobytes."""
ROW_ARGUMENT = 0
"""A row is encrypted as the first argument of the stage that reads it; all share one encoding."""


def make_keys(client_bundle: Path) -> KeyPair:
    """A new key set (a few seconds); see `nst.engines.base.Engine.make_keys`."""
    # No cache, and no seeds of ours: zeros stand for the system's randomness.
    keys = Keyset(_program_info(client_bundle), None, 0, 0, 0, 0, None)
    return KeyPair(bytes(keys.serialize()), bytes(keys.get_server_keys().serialize()))


class CircuitCipher:
    """Encrypts pictures and decrypts results under one key set; a `Cipher`."""

    def __init__(self, published: Published, key_id: str, secret: bytes) -> None:
        """Load a key.

        Raises:
            CircuitError: if the key or the bundle is damaged.
        """
        self.key_id, self.model_id = key_id, published.plan.model_id
        size = published.plan.size
        self._cells = size.height // CELL, size.width // CELL
        self._style_rows = published.plan.style_size.height // CELL
        assert isinstance(published.plan, CircuitPlan)
        self._word_bits = published.plan.word_bits
        self._entries: dict[Role, str] = {b: published.plan.entry(b) for b in (CONTENT, STYLE)}
        program = _program_info(published.client_bundle)
        try:
            keys = Keyset.deserialize(secret)
            self._program = ClientProgram.create_encrypted(program, keys)
        except (RuntimeError, ValueError) as error:
            raise CircuitError(
                f"secret key {key_id} is damaged ({first_line(error)}); restore it from your backup"
            ) from error
        self._description, self._keys = program, keys

    def encrypt_all(
        self, inputs: Iterable[Sequence[PreparedInput]]
    ) -> Generator[Envelope, None, None]:
        """See `Cipher`; a part is a row of 4-pixel cells, top to bottom.

        All cores are used: Concrete takes a sixth of a millisecond of one per value, most of it in
        the generator of the masks.
        """
        pictures = [prepared for (prepared,) in inputs]
        sizes = [self._cells[0] if p.role == CONTENT else self._style_rows for p in pictures]
        rows = [(number, y) for number, count in enumerate(sizes) for y in range(count)]

        def make() -> Callable[[tuple[int, int]], bytes]:
            return self._row_encryption(pictures)

        with closing(spread(rows, make, cores())) as sealed:
            for count in sizes:
                yield Envelope(self.key_id, self.model_id, tuple(islice(sealed, count)))

    def _row_encryption(
        self, pictures: Sequence[PreparedInput]
    ) -> Callable[[tuple[int, int]], bytes]:
        """Encryption of rows, each by its picture and number, with randomness of its own.

        Two processes that shared the state of one generator would give the same noise to
        different pixels, and so give them away: the generator is part of the program made here.
        """
        program = ClientProgram.create_encrypted(self._description, self._keys)
        circuits = {
            role: program.get_client_circuit(entry) for role, entry in self._entries.items()
        }

        @lru_cache(maxsize=1)
        def levels_of(number: int) -> Ints:
            return space_to_depth(quantized(pictures[number]))

        def encrypt_row(row: tuple[int, int]) -> bytes:
            number, y = row
            levels = levels_of(number)[None, :, y : y + 1, :]
            value = NativeValue(np.ascontiguousarray(levels, dtype=np.int64))
            circuit = circuits[pictures[number].role]
            return bytes(circuit.prepare_input(value, ROW_ARGUMENT).serialize())

        return encrypt_row

    def decrypt_result(self, parts: Iterable[bytes], what: str) -> list[Features]:
        """See `Cipher`; a part holds one row or more, from top to bottom."""
        out, frame = [], self._frame
        for number, blob in enumerate(parts):
            part = f"row {number} of {what}"
            envelope = Envelope.unpack(blob, part)
            envelope.require(self.key_id, self.model_id, part)
            try:
                if envelope.word_bits != self._word_bits:
                    raise CircuitError(f"words of {envelope.word_bits} bits")
                out.append(self.decrypt_rows(OUTPUT, full_rows(envelope, frame)))
            except (CircuitError, RuntimeError, ValueError) as error:
                # Its checksum is right: it was made so, or it is another object of the store.
                raise CircuitError(
                    f"{part} is no result ({first_line(error)}); submit the pair again"
                ) from error
        try:
            levels = np.concatenate(out, axis=1)
        except ValueError as error:
            raise CircuitError(f"{what} is no result ({error}); submit the pair again") from error
        if levels.shape[1:] != self._cells:
            raise CircuitError(
                f"{what} has {levels.shape[1]} rows of {levels.shape[2]} cells, not "
                f"{self._cells[0]} of {self._cells[1]}; submit the pair again"
            )
        return [levels.astype(np.float32)]

    @cached_property
    def _frame(self) -> Frame:
        """What surrounds the words of a row of a result: Concrete writes it here, for zeros.

        As a client encrypts nothing but inputs, a circuit is described whose input is of that kind.
        """
        try:
            specs = json.loads(self._description.serialize())
            circuit = next(c for c in specs["circuits"] if c["name"] == OUTPUT)
            (kind,) = circuit["inputs"] = circuit["outputs"]
            shape = kind["typeInfo"]["lweCiphertext"]["abstractShape"]["dimensions"]
            specs["circuits"] = [circuit]
            info = ProgramInfo.deserialize(json.dumps(specs).encode())
            program = ClientProgram.create_encrypted(info, self._keys)
            zeros = NativeValue(np.zeros(shape, np.int64))
            value = program.get_client_circuit(OUTPUT).prepare_input(zeros, 0)
            return Frame.of(bytes(value.serialize()))
        except (KeyError, StopIteration, TypeError, RuntimeError, ValueError) as error:
            raise CircuitError(
                f"model {self.model_id} does not say what its results look like "
                f"({first_line(error)}); build it again"
            ) from error

    def decrypt_rows(self, stage: str, rows: tuple[bytes, ...]) -> Ints:
        """Levels `[C, H, W]` of the output rows of any stage, as Concrete serializes them."""
        circuit = self._program.get_client_circuit(stage)
        out = []
        for row in rows:
            value = circuit.process_output(TransportValue.deserialize(row), 0).to_py_val()
            out.append(np.asarray(value, dtype=np.int64)[0])
        return np.concatenate(out, axis=1)


def _program_info(client_bundle: Path) -> ProgramInfo:
    """What a client must know of built circuits."""
    try:
        with zipfile.ZipFile(client_bundle) as archive, archive.open(SPECS_FILE) as file:
            specs = file.read(SPECS_BYTES)
        require_secure(specs, f"model {client_bundle.parent.name}")
        return ProgramInfo.deserialize(specs)
    except (OSError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise CircuitError(f"model {client_bundle.parent} is damaged; build it again") from error
