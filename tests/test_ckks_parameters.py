"""Parameters: secure or refused, with the primes that SEAL itself would take."""

from __future__ import annotations

from dataclasses import replace

import _sealapi_cpp as sealapi
import pytest

from nst.engines.ckks.network import LeveledArchitecture
from nst.engines.ckks.parameters import MAX_BITS, Parameters
from nst.engines.ckks.residues import Ring
from nst.errors import CircuitError

SHIPPED = Parameters()
LEVELS = LeveledArchitecture().levels


def test_those_that_ship_fit_the_network_and_seal_takes_them() -> None:
    SHIPPED.require(LEVELS)
    assert SHIPPED.bits <= MAX_BITS[SHIPPED.degree]
    assert Parameters.from_dict(SHIPPED.to_dict()) == SHIPPED
    ring = Ring(SHIPPED)
    for limbs in range(1, SHIPPED.levels + 2):
        chosen = ring.context.get_context_data(ring.level(limbs)).parms().coeff_modulus()
        assert tuple(prime.value() for prime in chosen) == SHIPPED.primes[:limbs]


def test_bounds_are_those_of_seal() -> None:
    for degree, most in MAX_BITS.items():
        assert sealapi.CoeffModulus.MaxBitCount(degree, sealapi.SEC_LEVEL_TYPE.TC128) == most


def test_primes_are_as_long_as_asked_for_and_fit_the_ring() -> None:
    bits = (SHIPPED.first_bits, *reversed(SHIPPED.level_bits), SHIPPED.special_bits)
    assert tuple(prime.bit_length() for prime in SHIPPED.primes) == bits
    assert len(set(SHIPPED.primes)) == len(SHIPPED.primes)
    for prime in SHIPPED.primes:
        assert prime % (2 * SHIPPED.degree) == 1
        assert sealapi.Modulus(prime).is_prime()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"special_bits": 47}, "modulus of 439 bits, and ring degree 16384 bears 438"),
        ({"degree": 8192}, "modulus of 438 bits, and ring degree 8192 bears 218"),
        ({"degree": 2048}, "ring degree 2048; take one of 4096, 8192, 16384, 32768"),
        ({"level_bits": (41,) * 8}, "10 levels one after the other, .* primes for 8"),
        ({"level_bits": (19, *SHIPPED.level_bits[1:])}, "19 to 46 bits; take 20 to 50"),
    ],
)
def test_others_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        replace(SHIPPED, **changed).require(LEVELS)


def test_seal_refuses_what_is_not_secure_as_well() -> None:
    with pytest.raises(CircuitError, match=r"SEAL refuses the CKKS parameters .*security"):
        Ring(replace(SHIPPED, special_bits=47))


def test_there_are_only_so_many_primes() -> None:
    with pytest.raises(CircuitError, match="too few primes of 20 bits"):
        _ = replace(SHIPPED, level_bits=(20,) * 20).primes
