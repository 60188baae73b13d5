"""Ciphertexts on their way: a self-describing envelope around an engine's serialized ciphertexts.

An envelope names the key set and the model it was made under, so that mixing them up is an
error in one line and not a picture of noise, and carries a checksum. It holds nothing about the
picture: no name, no pixel.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass

from nst.errors import CircuitError

MAGIC = b"NSTC"
FORMAT = 3
FULL_BITS = 64
"""Bits of a ciphertext's words as Concrete computes on them."""
_PREFIX = struct.Struct("<4sII")


def key_set_id(evaluation_keys: bytes) -> str:
    """The id of a key set: says nothing of its secret key, and changes with any byte."""
    return hashlib.sha256(evaluation_keys).hexdigest()[:16]


@dataclass(frozen=True)
class Envelope:
    """Serialized ciphertexts of the parts of one picture, in order.

    Attributes:
        key_id: Key set they are encrypted under.
        model_id: Model they are input or output of.
        parts: Serialized ciphertexts.
        word_bits: Bits that are left of their words: all 64, or fewer in results (see
            `nst.engines.concrete.switching`).
    """

    key_id: str
    model_id: str
    parts: tuple[bytes, ...]
    word_bits: int = FULL_BITS

    def pack(self) -> bytes:
        """As bytes: a fixed prefix, a JSON header, the parts."""
        digest = hashlib.sha256(f"{self.word_bits} ".encode())
        for part in self.parts:
            digest.update(part)
        header = json.dumps(
            {
                "key_id": self.key_id,
                "model_id": self.model_id,
                "word_bits": self.word_bits,
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
            header = json.loads(blob[_PREFIX.size : start])
            bits = int(header["word_bits"])
            parts = []
            digest = hashlib.sha256(f"{bits} ".encode())
            for size in header["lengths"]:
                parts.append(blob[start : start + size])
                digest.update(parts[-1])
                start += size
            if start != len(blob) or digest.hexdigest() != header["sha256"]:
                raise ValueError("checksum does not match")
            return Envelope(header["key_id"], header["model_id"], tuple(parts), bits)
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise CircuitError(f"{what} is damaged ({error}); submit the pair again") from error

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
