"""Parameters of leveled CKKS as data: the ring, its chain of primes, the scale of every value.

A ciphertext lives modulo a product of primes, its limbs; each level costs one of them. Values
have no scale of their own in this engine: weights are integers, a ciphertext holds what integers
make of it, and a level divides by exactly the prime that it costs. `value_bits` and its like say
how large integer weights make the values; `nst.engines.ckks.integers` finds such weights.

The longer the modulus, the easier the key is to find: `MAX_BITS` bounds it at 128-bit security.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from nst.errors import CircuitError

MAX_BITS = {4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""By ring degree, bits of the modulus, special prime included, at 128-bit security against
classical attacks (the standard of HomomorphicEncryption.org, which SEAL enforces as well)."""
SHORTEST, LONGEST = 20, 50
"""Bits of a prime: residues times integer weights must be exact in float64."""


@dataclass(frozen=True)
class Parameters:
    """A ring, its primes, and the scales that integer weights aim at.

    Attributes:
        degree: Of the ring, a power of two; half as many values fit a ciphertext.
        first_bits: Prime that is left of a result: it must hold the largest result.
        level_bits: Primes that the squares cost, in order of evaluation; before that of the style
            code one that the mean over a style costs, which divides a sum by it.
        special_bits: Prime of the evaluation keys alone; each bit above the others' halves what a
            rotation adds to the noise, until rounding is all that is left.
        pixel_bits: log2 of the scale of an encrypted content.
        value_bits: Of the values between content stages.
        result_bits: Of a result.
        style_pixel_bits: Of an encrypted style.
        style_bits: Of the squares of the style branch, whose noise the mean over all cells takes
            off, for a style of 16 x 16 cells.
        code_bits: Of the style code.
    """

    degree: int = 2**14
    first_bits: int = 30
    level_bits: tuple[int, ...] = (35, 36, 20, 25, 41, 41, 41, 41, 41, 41)
    special_bits: int = 46
    pixel_bits: float = 22.0
    value_bits: float = 21.0
    result_bits: float = 21.0
    style_pixel_bits: float = 18.5
    style_bits: float = 17.5
    code_bits: float = 23.0

    @property
    def slots(self) -> int:
        """Values of a ciphertext."""
        return self.degree // 2

    @property
    def levels(self) -> int:
        """Primes that can be paid, one after the other."""
        return len(self.level_bits)

    @property
    def bits(self) -> int:
        """Of the modulus, special prime included."""
        return self.first_bits + sum(self.level_bits) + self.special_bits

    @cached_property
    def primes(self) -> tuple[int, ...]:
        """Limbs in order: the first prime, then what levels cost, the last level's prime first.

        The special prime comes after them. A ciphertext of n limbs is modulo the first n, and its
        level costs number n - 1.
        """
        taken: set[int] = set()
        chain = []
        for bits in (self.first_bits, *reversed(self.level_bits), self.special_bits):
            prime = _largest_prime(bits, 2 * self.degree, taken)
            taken.add(prime)
            chain.append(prime)
        return tuple(chain)

    def require(self, levels: int) -> None:
        """Check security, and that a network of so many levels fits.

        Raises:
            CircuitError: if not; before anything is encrypted under such parameters.
        """
        most = MAX_BITS.get(self.degree)
        if most is None:
            raise CircuitError(
                f"CKKS parameters have ring degree {self.degree}; take one of "
                f"{', '.join(map(str, MAX_BITS))}"
            )
        if self.bits > most:
            raise CircuitError(
                f"CKKS parameters have a modulus of {self.bits} bits, and ring degree "
                f"{self.degree} bears {most} at 128-bit security; take shorter primes or a larger "
                "degree"
            )
        if self.levels != levels:
            raise CircuitError(
                f"the network has {levels} levels one after the other, and the CKKS parameters "
                f"primes for {self.levels}; take parameters with one for each"
            )
        every = (self.first_bits, *self.level_bits, self.special_bits)
        if not all(SHORTEST <= bits <= LONGEST for bits in every):
            raise CircuitError(
                f"CKKS primes have {min(every)} to {max(every)} bits; take {SHORTEST} to {LONGEST}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able record."""
        return {**asdict(self), "level_bits": list(self.level_bits)}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Parameters:
        """Inverse of `to_dict`; raises KeyError or TypeError if the record is damaged."""
        return Parameters(**{**record, "level_bits": tuple(record["level_bits"])})


def _largest_prime(bits: int, step: int, taken: set[int]) -> int:
    """The largest prime of so many bits that is 1 modulo `step` and not taken yet."""
    for candidate in range(2**bits - step + 1, 2 ** (bits - 1), -step):
        if candidate not in taken and _is_prime(candidate):
            return candidate
    raise CircuitError(f"there are too few primes of {bits} bits for a ring of degree {step // 2}")


def _is_prime(number: int) -> bool:
    """Miller and Rabin's test with bases that decide every number of 64 bits."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if any(number % base == 0 for base in bases):
        return number in bases
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in bases:
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        if not any((power := power * power % number) == number - 1 for _ in range(twos - 1)):
            return False
    return True
