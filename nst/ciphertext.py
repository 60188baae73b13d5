"""Ciphertexts on their way: a self-describing envelope around an engine's serialized ciphertexts.

An envelope names the key set and the model it was made under, so that mixing them up is an
error in one line and not a picture of noise, and carries a checksum. It holds nothing about the
picture: no name, no pixel. That of a result also names its place: job, pair, part. All of it is
what its writer says, and binds no server that lies.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass

from nst.errors import CircuitError
from nst.parsing import is_id, parse_json

MAGIC = b"NSTC"
FORMAT = 4
HEADER_BYTES = 1 << 16
"""Of a packed envelope what is not ciphertexts, at most: twelve bytes a part, and the names."""
PART_BYTES, PART_SHARE = 4 << 10, 16
"""Of a serialized ciphertext what is not words, at most, and the share that plans may miss."""
FULL_BITS = 64
"""Bits of a ciphertext's words as Concrete computes on them."""
_PREFIX = struct.Struct("<4sII")


def key_set_id(evaluation_keys: bytes) -> str:
    """The id of a key set: says nothing of its secret key, and changes with any byte."""
    return hashlib.sha256(evaluation_keys).hexdigest()[:16]


def most_bytes(parts: int, part: int) -> int:
    """Bytes of a packed envelope of so many parts whose words have so many bytes, at most."""
    return HEADER_BYTES + parts * (part + part // PART_SHARE + PART_BYTES)


@dataclass(frozen=True)
class Envelope:
    """Serialized ciphertexts of the parts of one picture, in order.

    Attributes:
        key_id: Key set they are encrypted under.
        model_id: Model they are input or output of.
        parts: Serialized ciphertexts.
        word_bits: Bits that are left of their words: all 64, or fewer in results (see
            `nst.engines.concrete.switching`).
        place: Of a part of a result, what it is; see `jobs.storage.layout.result_place`.
    """

    key_id: str
    model_id: str
    parts: tuple[bytes, ...]
    word_bits: int = FULL_BITS
    place: str = ""

    def pack(self) -> bytes:
        """As bytes: a fixed prefix, a JSON header, the parts."""
        digest = hashlib.sha256(f"{self.word_bits} {self.place} ".encode())
        for part in self.parts:
            digest.update(part)
        header = json.dumps(
            {
                "key_id": self.key_id,
                "model_id": self.model_id,
                "word_bits": self.word_bits,
                "place": self.place,
                "lengths": [len(part) for part in self.parts],
                "sha256": digest.hexdigest(),
            }
        ).encode()
        return b"".join([_PREFIX.pack(MAGIC, FORMAT, len(header)), header, *self.parts])

    @staticmethod
    def unpack(blob: bytes, what: str) -> Envelope:
        """Inverse of `pack`.

        Args:
            blob: The bytes.
            what: Name of the object in an error.

        Raises:
            CircuitError: if it is truncated, damaged or of another format.
        """
        try:
            magic, form, length = _PREFIX.unpack_from(blob)
            if magic != MAGIC:
                raise ValueError("no ciphertext")
            if form != FORMAT:
                raise CircuitError(
                    f"{what} has ciphertext format {form}, this version reads {FORMAT}; "
                    "use the version that wrote it"
                )
            start = _PREFIX.size + length
            header = parse_json(blob[_PREFIX.size : start], HEADER_BYTES)
            if not isinstance(header, dict):
                raise ValueError("no header")
            key_id, model_id, place = (header[name] for name in ("key_id", "model_id", "place"))
            bits, lengths = header["word_bits"], header["lengths"]
            if not (is_id(key_id) and is_id(model_id) and isinstance(lengths, list)):
                raise ValueError("no header")
            parts = []
            digest = hashlib.sha256(f"{bits} {place} ".encode())
            for size in lengths:
                if type(size) is not int or not 0 <= size <= len(blob):
                    raise ValueError("a length is none")
                parts.append(blob[start : start + size])
                digest.update(parts[-1])
                start += size
            if start != len(blob) or digest.hexdigest() != header["sha256"]:
                raise ValueError("checksum does not match")
            if type(bits) is not int or not isinstance(place, str):
                raise ValueError("no header")
            return Envelope(str(key_id), str(model_id), tuple(parts), bits, place)
        except (struct.error, ValueError, KeyError) as error:
            raise CircuitError(f"{what} is damaged ({error}); submit the pair again") from error

    def require_place(self, place: str, what: str) -> None:
        """Raise CircuitError if a part of a result says that it is another one."""
        if self.place != place:
            raise CircuitError(f"{what} is another part, pair or job; submit the pair again")

    def require(self, key_id: str, model_id: str, what: str) -> None:
        """Check that the ciphertexts were made under this key set and by this model.

        Raises:
            CircuitError: if not, saying which of the two differs.
        """
        if self.key_id != key_id:
            raise CircuitError(
                f"{what} was made under key {self.key_id}, not {key_id}; "
                "fetch it with the key it was submitted with"
            )
        if self.model_id != model_id:
            raise CircuitError(
                f"{what} was made by model {self.model_id}, not {model_id}; "
                "submit the pair again, or fetch it with the version that submitted it"
            )
