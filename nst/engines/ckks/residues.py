"""Ciphertexts as arrays of residues, and linear layers as products of integer matrices with them.

A ciphertext is two polynomials, each given by its values (number-theoretic transform) modulo every
prime: `[2, limbs, degree]` integers. Adding ciphertexts and multiplying them by whole numbers is
the same on each of these, so a linear layer over many ciphertexts is one matrix product per prime,
which BLAS does in float64, exactly as long as no sum reaches 2^53.

SEAL's binding lets residues in by a file, here one in memory, and out by a compressed file, which
would be a quarter of a task's time. They are read where they are instead, once it is clear that a
ciphertext in memory is laid out as expected. No other module knows either form. `_sealapi_cpp` is
TenSEAL's binding of SEAL by itself.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Any

import _sealapi_cpp as sealapi
import numpy as np
from numpy.typing import NDArray

from nst.engines.ckks.parameters import Parameters
from nst.errors import CircuitError

Words = NDArray[np.uint64]
Reals = NDArray[np.float64]

EXACT = 2.0**53
"""Whole numbers below it are exact in float64."""
MAGIC = np.float64(2.0**52)
"""Added to a whole number below it, leaves that number in the low 52 bits: a fast conversion."""
MANTISSA = np.uint64(2**52 - 1)
BLOCK = 1024
"""Columns that are multiplied and reduced while they are in the cache."""

_HEADER = struct.Struct("<HBBBBHQ")
"""SEAL's: magic, its own size, version, compression, reserved, size of everything."""
_UNCOMPRESSED = 0
_CIPHERTEXT = struct.Struct("<4Q?QQQdQ")
"""Id of the primes, whether transformed, polynomials, degree, limbs, scale, correction factor."""
_COUNT = struct.Struct("<Q")
_WORDS_AT = _CIPHERTEXT.size + _HEADER.size + _COUNT.size
_POINTER = 16
"""Bytes of an object of the binding before the address of what it wraps."""
_MEMBERS = struct.Struct("<4QQQQQdQ16xQQQ")
"""A ciphertext in memory: as in a file, then capacity, count and address of its words."""


class Ring:
    """SEAL's context for some parameters, and the way in and out of its objects.

    One process and thread at a time: the file in memory through which objects pass has one place.
    """

    def __init__(self, parameters: Parameters) -> None:
        """Set SEAL up.

        Raises:
            CircuitError: if SEAL refuses the parameters as insecure or wrong.
        """
        self.parameters = parameters
        chosen = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        chosen.set_poly_modulus_degree(parameters.degree)
        chosen.set_coeff_modulus([sealapi.Modulus(prime) for prime in parameters.primes])
        self.context = sealapi.SEALContext(chosen, True, sealapi.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise CircuitError(
                f"SEAL refuses the CKKS parameters ({self.context.parameters_error_message()})"
            )
        self._ids = [[0] * 4]
        level = self.context.last_context_data()
        while level is not None and len(self._ids) <= parameters.levels + 1:
            self._ids.append(level.parms_id())
            level = level.prev_context_data()
        # The imaginary unit as a polynomial: its values are one root of -1 and then the other.
        turning = 1j * (1 - 2 * (np.arange(parameters.slots) % 2))
        self._units = {}
        encoder = sealapi.CKKSEncoder(self.context)
        for limbs in range(1, parameters.levels + 2):
            self._units[limbs] = sealapi.Plaintext()
            encoder.encode(turning, self.level(limbs), 1.0, self._units[limbs])
        self._file = os.memfd_create("ciphertext", os.MFD_CLOEXEC)
        self._path = f"/proc/self/fd/{self._file}"
        blank = sealapi.Ciphertext(self.context)
        self._version = _HEADER.unpack_from(self.dump(blank))
        self._check_memory()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def level(self, limbs: int) -> list[int]:
        """SEAL's id of the first so many primes."""
        return self._ids[limbs]

    def limbs(self, ciphertext: Any) -> int:
        """How many primes a ciphertext is modulo."""
        return self._ids.index(ciphertext.parms_id())

    def dump(self, thing: Any) -> bytes:
        """A SEAL object as its file's bytes."""
        thing.save(self._path)
        return os.pread(self._file, os.fstat(self._file).st_size, 0)

    def load(self, kind: type[Any], data: bytes | memoryview, what: str) -> Any:
        """Inverse of `dump`.

        Args:
            kind: Class of the object.
            data: The bytes.
            what: What they are, in an error.

        Raises:
            CircuitError: if they are damaged or of other parameters.
        """
        self._write(data)
        thing = kind()
        try:
            thing.load(self.context, self._path)
        except (RuntimeError, ValueError) as error:
            raise CircuitError(f"{what} cannot be read ({error}); submit the job again") from error
        return thing

    def unit(self, limbs: int) -> Any:
        """The imaginary unit, see `nst.engines.ckks.packing`, as a plaintext."""
        return self._units[limbs]

    def root(self, limb: int) -> int:
        """Value of the imaginary unit modulo a prime, in the first half of a polynomial's residues.

        In the second half it is the negative.
        """
        return int(self._units[limb + 1][limb * self.parameters.degree])

    def residues(self, ciphertext: Any) -> Words:
        """Residues `[2, limbs, degree]` of a ciphertext, where they are: read only while it lives.

        Raises:
            CircuitError: if a ciphertext is laid out in another way than TenSEAL 0.3.18 does.
        """
        address = ctypes.c_void_p.from_address(id(ciphertext) + _POINTER).value
        assert address is not None
        members = _MEMBERS.unpack((ctypes.c_char * _MEMBERS.size).from_address(address).raw)
        size, degree, limbs = members[5:8]
        *_, count, words = members
        shape = ciphertext.size(), ciphertext.coeff_modulus_size(), self.parameters.degree
        known = list(members[:4]) == ciphertext.parms_id() and (size, limbs, degree) == shape
        if not known or count != size * limbs * degree:
            raise CircuitError(
                "this version of TenSEAL keeps ciphertexts in another form; install tenseal 0.3.18"
            )
        array = (ctypes.c_uint64 * count).from_address(words)
        return np.frombuffer(array, np.uint64).reshape(shape)

    def _check_memory(self) -> None:
        """Raises CircuitError unless what is read is what was written."""
        written = np.arange(4 * self.parameters.degree, dtype=np.uint64).reshape(2, 2, -1)
        written %= np.uint64(min(self.parameters.primes))
        made = self.ciphertext(written)
        if not np.array_equal(self.residues(made), written):
            raise CircuitError("SEAL's memory is not laid out as expected; install tenseal 0.3.18")

    def ciphertext(self, residues: Words) -> Any:
        """A ciphertext of residues `[2, limbs, degree]`; inverse of `residues`.

        Raises:
            CircuitError: if a residue is not smaller than its prime.
        """
        polynomials, limbs, degree = residues.shape
        body = _CIPHERTEXT.pack(*self._ids[limbs], True, polynomials, degree, limbs, 1.0, 1)
        array = _COUNT.pack(residues.size)
        words = np.ascontiguousarray(residues)
        head = self._header(_HEADER.size + _WORDS_AT + words.nbytes) + body
        head += self._header(_HEADER.size + _COUNT.size + words.nbytes) + array
        self._write(head, words.data.cast("B"))
        out = sealapi.Ciphertext()
        try:
            out.load(self.context, self._path)
        except (RuntimeError, ValueError) as error:
            raise CircuitError(f"residues make no ciphertext ({error})") from error
        return out

    def _header(self, size: int) -> bytes:
        magic, own, major, minor, _, reserved, _ = self._version
        return _HEADER.pack(magic, own, major, minor, _UNCOMPRESSED, reserved, size)

    def _write(self, *parts: bytes | memoryview) -> None:
        size = sum(len(part) for part in parts)
        os.ftruncate(self._file, size)
        if os.pwritev(self._file, parts, 0) != size:
            raise CircuitError("memory for ciphertexts is full; give the process more")


class Stack:
    """Rows of residues of many ciphertexts, ready to be multiplied: one matrix per prime.

    A row holds the residues less half the prime, as float64, first polynomial first.
    """

    def __init__(self, ring: Ring, rows: int, limbs: int) -> None:
        """Room for so many rows; memory is taken as they are put in."""
        self._ring = ring
        columns = 2 * ring.parameters.degree
        self._matrices = [np.empty((rows, columns)) for _ in range(limbs)]

    @property
    def limbs(self) -> int:
        """Primes that are left."""
        return len(self._matrices)

    def put(self, row: int, ciphertext: Any) -> None:
        """A ciphertext, in the first primes that both it and the stack have.

        Dropping a ciphertext's last limbs changes no value.
        """
        words = self._ring.residues(ciphertext)
        for limb, matrix in enumerate(self._matrices[: words.shape[1]]):
            target = matrix[row].reshape(2, -1)
            np.bitwise_or(words[:, limb], MAGIC.view(np.uint64), out=target.view(np.uint64))
            target -= MAGIC + half(self._ring.parameters.primes[limb])

    def drop(self) -> None:
        """Forget the last prime."""
        self._matrices.pop()

    def multiplied(self, weight: Reals, bias: Reals) -> Words:
        """Linear layer of the first rows: residues `[out, 2, limbs, degree]`.

        Args:
            weight: Whole numbers `[out, rows]`.
            bias: Whole numbers `[out]`, added to both parts of every slot.
        """
        degree = self._ring.parameters.degree
        out = np.empty((len(weight), 2, self.limbs, degree), dtype=np.uint64)
        for limb, matrix in enumerate(self._matrices):
            prime, root = self._ring.parameters.primes[limb], self._ring.root(limb)
            # Rows are short of half the prime.
            short = [int(total) * half(prime) for total in weight.sum(1)]
            # A constant has the same residue everywhere, and the unit one in each half.
            for part, unit in enumerate((1 + root, 1 - root, 0, 0)):
                added = [(a + int(b) * unit) % prime for a, b in zip(short, bias, strict=True)]
                columns = slice(part * degree // 2, (part + 1) * degree // 2)
                polynomial, start = divmod(columns.start, degree)
                into = out[:, polynomial, limb, start : start + degree // 2]
                multiply(weight, matrix[: weight.shape[1], columns], added, prime, into)
        return out


def multiply(weight: Reals, rows: Reals, added: list[int], prime: int, out: Words) -> None:
    """`weight @ rows + added` modulo a prime, exactly.

    Args:
        weight: Whole numbers `[out, in]`.
        rows: Whole numbers `[in, n]` of at most half the prime, either sign.
        added: Residues, one per output.
        prime: Of at most 50 bits.
        out: Receives the residues `[out, n]`.
    """
    inverse, size = 1.0 / prime, np.float64(prime)
    groups = list(exact_groups(weight, prime))
    start = np.array(added, dtype=np.float64)[:, None]
    for first in range(0, rows.shape[1], BLOCK):
        block = slice(first, min(first + BLOCK, rows.shape[1]))
        total = start
        for group in groups:
            product = weight[:, group] @ rows[group, block]
            product += total
            quotient = product * inverse
            np.rint(quotient, out=quotient)
            quotient *= size
            product -= quotient
            total = product
        # From -prime / 2 .. prime / 2 to 0 .. prime - 1: the sign bit says where to add the prime.
        sign = total.view(np.int64) >> 63
        sign &= size.view(np.int64)
        total += sign.view(np.float64)
        total += MAGIC
        np.bitwise_and(total.view(np.uint64), MANTISSA, out=out[:, block])


def exact_groups(weight: Reals, prime: int) -> Iterator[slice]:
    """Columns of a matrix in groups whose sums with residues are exact in float64.

    Args:
        weight: Whole numbers `[out, in]`.
        prime: Of the residues, which are at most half of it, either sign.

    Raises:
        CircuitError: if a single product may not be exact.
    """
    most = (EXACT - 2.0 * prime) / half(prime)
    if (largest := np.abs(weight).max()) > most:
        raise CircuitError(
            f"a weight of {largest:.0f} is too large for a prime of {prime.bit_length()} bits; "
            "take shorter primes or smaller scales"
        )
    first, sums = 0, np.zeros(len(weight))
    for column, sizes in enumerate(np.abs(weight).T):
        if (sums + sizes).max() > most:
            yield slice(first, column)
            first, sums = column, np.zeros(len(weight))
        sums = sums + sizes
    yield slice(first, weight.shape[1])


def half(prime: int) -> int:
    """Half a prime, rounded down."""
    return prime // 2


_LENGTHS = struct.Struct("<I")


def join(ciphertexts: list[bytes]) -> bytes:
    """Serialized ciphertexts as one blob."""
    lengths = [_LENGTHS.pack(len(each)) for each in ciphertexts]
    return b"".join([_LENGTHS.pack(len(ciphertexts)), *lengths, *ciphertexts])


def split(blob: bytes, count: int, what: str) -> Iterator[memoryview]:
    """Inverse of `join`.

    Raises:
        CircuitError: if the blob does not hold exactly so many.
    """
    try:
        lengths = [n for (n,) in _LENGTHS.iter_unpack(blob[: _LENGTHS.size * (count + 1)])]
    except struct.error:
        lengths = []
    start = _LENGTHS.size * (count + 1)
    if len(lengths) != count + 1 or lengths[0] != count or start + sum(lengths[1:]) != len(blob):
        raise CircuitError(f"{what} does not hold {count} ciphertexts; submit the pair again")
    view = memoryview(blob)
    for length in lengths[1:]:
        yield view[start : start + length]
        start += length
