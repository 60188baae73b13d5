"""Results at rest: words of ciphertexts switched from 64 bits to 16, a quarter of the bytes.

A value is an LWE ciphertext, `n` mask words `a` and one body word `b`, each a multiple of 2**-64
of the torus. Decryption computes the phase `b - sum(a[i] * s[i])` with key bits `s[i]` in {0, 1}
and rounds it to the nearest level. The server may round every word to its top `k` bits without any
key (modulus switching); the client shifts them back before it decrypts.

**Noise.** Rounding moves a word by an error uniform on +-2**-(k+1), of variance 2**-2k / 12. The
phase gathers one error from the body and one from each mask word whose key bit is 1, so with `h`
such bits its error has mean 0 and

    sigma = sqrt((h + 1) / 12) * 2**-k,  h about n / 2,  at most n.

At the parameters that the optimizer chooses here, n = 2048, and at k = 16, that is 2**-12.8, and
2**-12.3 for the worst possible key. Levels of `width` bits, with a bit of padding above them, are
2**-(width + 1) apart, so a level is left behind at half of that: 2**-6 at four bits, 111 sigma
away. The noise that the last bootstrapping leaves, 2**-15.2, hardly adds to it. The errors are
many, independent and bounded, so beyond `t` sigma lies less than 2 * exp(-t**2 / 6) (Hoeffding):
here less than 1 in 10**880. To `p_error`, which is about 1 in 100, that adds nothing. Nor is it
left to chance: all errors at once are at most (h + 1) * 2**-17, half of that distance for a usual
key.
`tests/test_switching.py` measures both noises on real results with the secret key.

**Not for what is computed on.** A value that goes on into a stage is multiplied by weights and
summed before its phase is read: hundreds of terms, weights of an L2 norm of about 110. Errors of
2**-12.8 each come out at 2**-6, almost three times all the noise that circuits are compiled for
(0.19 activation levels, which are 2**-5 of the torus in an accumulator). Checkpoints therefore
keep all their bits.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from nst.ciphertext import FULL_BITS, Envelope
from nst.errors import CircuitError

WORD_BITS = (16, 32)
"""Sizes a word may be switched to, cheapest first."""
NEGLIGIBLE = 1e-30
"""Probability per value that switching may add a wrong level."""
_SWITCHED = struct.Struct("<QQ")
_WORD = 8
_FULL = np.dtype("<u8")
_STRUCT, _LIST, _FAR = 0, 1, 2
_BYTE_LIST, _POINTER_LIST = 2, 6


def sigma(dimension: int, bits: int, ones: int | None = None) -> float:
    """Standard deviation of the phase's error, as a share of the torus.

    Args:
        dimension: Mask words of a value.
        bits: Bits kept of a word.
        ones: Key bits that are 1; `dimension`, the worst key, if None.
    """
    return math.sqrt(((dimension if ones is None else ones) + 1) / 12) * 2.0**-bits


def half_level(width: int) -> float:
    """Distance on the torus from a level to the nearest phase that decrypts to another."""
    return 2.0 ** -(width + 2)


def added_error(dimension: int, width: int, bits: int) -> float:
    """Bound on the probability that switching moves a value to another level, for any key."""
    return 2 * math.exp(-((half_level(width) / sigma(dimension, bits)) ** 2) / 6)


def word_bits(dimension: int, width: int) -> int:
    """Bits to which the words of results may be switched.

    Args:
        dimension: Mask words of a value.
        width: Bits of a level of the result.

    Raises:
        CircuitError: if even the most that is offered would touch the decrypted levels.
    """
    for bits in WORD_BITS:
        if added_error(dimension, width, bits) <= NEGLIGIBLE:
            return bits
    raise CircuitError(
        f"results have {width} bits at dimension {dimension}, too many to be stored in "
        f"{WORD_BITS[-1]}-bit words; "
        "build circuits with a narrower last stage"
    )


def switch(value: bytes, bits: int) -> bytes:
    """A serialized ciphertext tensor with its words rounded to their top bits.

    Nothing else of it changes: what stands before and after the words is kept as it is, and
    before it, where they lie.

    Args:
        value: As Concrete serializes it, not compressed.
        bits: One of `WORD_BITS`.

    Raises:
        CircuitError: if it is no such value.
    """
    start, stop = _payload(value)
    words = np.frombuffer(value, dtype=_FULL, count=(stop - start) // _WORD, offset=start)
    shift = np.uint64(FULL_BITS - bits)
    # The sum wraps around as the torus does.
    rounded = (words + (np.uint64(1) << (shift - np.uint64(1)))) >> shift
    return b"".join(
        [
            _SWITCHED.pack(start, words.size),
            value[:start],
            rounded.astype(_switched_type(bits)).tobytes(),
            value[stop:],
        ]
    )


def restore(switched: bytes, bits: int) -> bytes:
    """A serialized ciphertext tensor out of what `switch` made of it, its lower bits zero.

    Raises:
        CircuitError: if it is damaged.
    """
    if bits not in WORD_BITS:
        raise CircuitError(f"ciphertext words of {bits} bits; use the version that wrote them")
    kind = _switched_type(bits)
    try:
        start, count = _SWITCHED.unpack_from(switched)
        begin = _SWITCHED.size + start
        end = begin + count * kind.itemsize
        if end > len(switched):
            raise ValueError(f"{len(switched)} bytes, not {end}")
        words = np.frombuffer(switched, dtype=kind, count=count, offset=begin)
    except (struct.error, ValueError) as error:
        raise CircuitError(f"a switched ciphertext is damaged ({error})") from error
    full = words.astype(_FULL) << np.uint64(FULL_BITS - bits)
    return b"".join([switched[_SWITCHED.size : begin], full.tobytes(), switched[end:]])


def full_rows(envelope: Envelope) -> tuple[bytes, ...]:
    """Rows of an envelope as Concrete reads them; raises CircuitError if they are damaged."""
    if envelope.word_bits == FULL_BITS:
        return envelope.parts
    return tuple(restore(row, envelope.word_bits) for row in envelope.parts)


def switched(key_id: str, model_id: str, rows: Sequence[bytes], bits: int) -> Envelope:
    """Rows of a result in an envelope, their words switched; see `switch` for errors."""
    return Envelope(key_id, model_id, tuple(switch(row, bits) for row in rows), bits)


def _switched_type(bits: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    return np.dtype("<u2") if bits == 16 else np.dtype("<u4")


def _payload(value: bytes) -> tuple[int, int]:
    """Where the words of a serialized value begin and end.

    Concrete serializes a value as a Cap'n Proto message whose first field is a struct with a list
    of byte strings, here one. Four pointers lead there; a schema compiler would be a dependency of
    the trust boundary for these.
    """
    try:
        (last,) = struct.unpack_from("<I", value)
        if last >= len(value) // _WORD:
            raise ValueError("too many segments")
        sizes = struct.unpack_from(f"<{last + 1}I", value, 4)
        # The table ends at a full word.
        first = 4 * (last + 2 + last % 2)
        segments = list(accumulate((_WORD * size for size in sizes), initial=first))
        if segments[-1] != len(value):
            raise ValueError(f"{len(value)} bytes, not {segments[-1]}")
        root = _follow(value, segments, first, _STRUCT)
        payload = _follow(value, segments, _first_pointer(value, *root), _STRUCT)
        strings = _follow(value, segments, _first_pointer(value, *payload), _LIST)
        if strings[1] != (1 << 3 | _POINTER_LIST):
            raise ValueError("not one payload")
        start, size = _follow(value, segments, strings[0], _LIST)
        if size & 7 != _BYTE_LIST or size >> 3 == 0 or (size >> 3) % _WORD:
            raise ValueError("no words")
        stop = start + (size >> 3)
        if not 0 <= start < stop <= len(value):
            raise ValueError("words outside of it")
        return start, stop
    except (struct.error, ValueError, IndexError) as error:
        raise CircuitError(f"a result is no ciphertext ({error})") from error


def _follow(value: bytes, segments: list[int], at: int, kind: int) -> tuple[int, int]:
    """Where the pointer at a byte leads, and its upper half, which tells a size."""
    (pointer,) = struct.unpack_from("<Q", value, at)
    if pointer & 7 == _FAR:
        # One that leads to another segment, where the real pointer stands.
        at = segments[pointer >> 32] + _WORD * (pointer >> 3 & 0x1FFFFFFF)
        (pointer,) = struct.unpack_from("<Q", value, at)
    if pointer & 3 != kind or pointer == 0:
        raise ValueError("another structure")
    (offset,) = struct.unpack("<i", struct.pack("<I", pointer & 0xFFFFFFFF))
    return at + _WORD * (1 + (offset >> 2)), pointer >> 32


def _first_pointer(value: bytes, at: int, size: int) -> int:
    """Where the first pointer of a struct stands: after its data."""
    data, pointers = size & 0xFFFF, size >> 16
    if not pointers or at < 0:
        raise ValueError("another structure")
    return at + _WORD * data
