"""Residues against SEAL: what goes in comes out, and matrix products are SEAL's own sums."""

from __future__ import annotations

import _sealapi_cpp as sealapi
import numpy as np
import pytest

from nst.engines.ckks.parameters import Parameters
from nst.engines.ckks.residues import Reals, Ring, Stack, exact_groups, half, join, multiply, split
from nst.errors import CircuitError

SMALL = Parameters(degree=8192, first_bits=33, level_bits=(44, 41), special_bits=47)


@pytest.fixture(scope="module")
def ring() -> Ring:
    return Ring(SMALL)


@pytest.fixture(scope="module")
def encryptor(ring: Ring) -> sealapi.Encryptor:
    return sealapi.Encryptor(ring.context, sealapi.KeyGenerator(ring.context).secret_key())


def encrypted(
    ring: Ring, encryptor: sealapi.Encryptor, values: Reals, limbs: int
) -> sealapi.Ciphertext:
    plain, out = sealapi.Plaintext(), sealapi.Ciphertext()
    sealapi.CKKSEncoder(ring.context).encode(values, ring.level(limbs), 2.0**20, plain)
    encryptor.encrypt_symmetric(plain, out)
    out.scale = 1.0
    return out


def test_residues_go_through_seal_unchanged(ring: Ring, encryptor: sealapi.Encryptor) -> None:
    rng = np.random.default_rng(0)
    for limbs in (3, 1):
        made = encrypted(ring, encryptor, rng.normal(size=SMALL.slots), limbs)
        residues = ring.residues(made)
        assert residues.shape == (2, limbs, SMALL.degree)
        for limb in range(limbs):
            assert residues[:, limb].max() < SMALL.primes[limb]
            assert residues[:, limb].max() > SMALL.primes[limb] * 0.99
        again = ring.ciphertext(residues)
        assert ring.limbs(again) == limbs
        assert ring.dump(again) == ring.dump(made)


def test_a_matrix_product_is_what_seal_adds_up(ring: Ring, encryptor: sealapi.Encryptor) -> None:
    """The slow route: one `multiply_plain` per weight, one `add` per term."""
    rng = np.random.default_rng(1)
    sources = [encrypted(ring, encryptor, rng.normal(size=SMALL.slots), 3) for _ in range(5)]
    # Of sizes for which the 44-bit prime needs several groups, and the others one.
    weight = rng.integers(-400, 400, (3, 5)).astype(np.float64)
    bias = np.array([0.0, 2.0**35 + 7, -(2.0**45) - 3])
    stack = Stack(ring, 5, 3)
    for row, source in enumerate(sources):
        stack.put(row, source)
    result = stack.multiplied(weight, bias)

    evaluator, encoder = sealapi.Evaluator(ring.context), sealapi.CKKSEncoder(ring.context)
    for out in range(3):
        total = sealapi.Ciphertext()
        for source, factor in zip(sources, weight[out], strict=True):
            plain, term = sealapi.Plaintext(), sealapi.Ciphertext()
            encoder.encode(float(factor), ring.level(3), 1.0, plain)
            evaluator.multiply_plain(source, plain, term)
            total = term if source is sources[0] else _sum(evaluator, total, term)
        if bias[out]:
            # In both parts of a slot; SEAL's slots have the second one's sign by turns.
            turning = bias[out] * (1 + 1j * (1 - 2 * (np.arange(SMALL.slots) % 2)))
            encoder.encode(turning, ring.level(3), 1.0, plain)
            evaluator.add_plain_inplace(total, plain)
        assert ring.dump(ring.ciphertext(result[out])) == ring.dump(total)


def _sum(
    evaluator: sealapi.Evaluator, one: sealapi.Ciphertext, other: sealapi.Ciphertext
) -> sealapi.Ciphertext:
    out = sealapi.Ciphertext()
    evaluator.add(one, other, out)
    return out


def test_fewer_limbs_are_the_first_ones(ring: Ring, encryptor: sealapi.Encryptor) -> None:
    source = encrypted(ring, encryptor, np.ones(SMALL.slots), 3)
    stack = Stack(ring, 1, 2)
    stack.put(0, source)
    dropped = sealapi.Ciphertext()
    sealapi.Evaluator(ring.context).mod_switch_to_next(source, dropped)
    same = stack.multiplied(np.ones((1, 1)), np.zeros(1))[0]
    assert np.array_equal(same, ring.residues(dropped))
    stack.drop()
    assert np.array_equal(stack.multiplied(np.ones((1, 1)), np.zeros(1))[0], same[:, :1])


@pytest.mark.parametrize("prime", [2**20 - 3, SMALL.primes[0], SMALL.primes[2], 2**50 - 27])
def test_products_are_exact_at_every_edge(prime: int) -> None:
    rng = np.random.default_rng(2)
    rows = rng.integers(-half(prime), half(prime) + 1, (40, 3000)).astype(np.float64)
    edges = [0, 1, -1, half(prime), -half(prime), half(prime) - 1]
    rows[:, : len(edges)] = edges
    weight = rng.integers(-7, 8, (6, 40)).astype(np.float64)
    weight[0], weight[1], weight[2] = 0, 7, -7
    added = [0, 0, prime - 1, 1, half(prime), 12345 % prime]
    out = np.empty((6, 3000), dtype=np.uint64)
    multiply(weight, rows, added, prime, out)
    whole = weight.astype(int).astype(object) @ rows.astype(int).astype(object)
    expected = (whole + np.array(added, dtype=object)[:, None]) % prime
    assert np.array_equal(out.astype(object), expected)


def test_sums_that_would_not_be_exact_are_cut() -> None:
    prime, weight = 2**44 - 3, np.full((2, 1000), 5.0)
    groups = list(exact_groups(weight, prime))
    assert len(groups) > 4
    assert [g.start for g in groups[1:]] == [g.stop for g in groups[:-1]]
    assert (groups[0].start, groups[-1].stop) == (0, 1000)
    with pytest.raises(CircuitError, match="a weight of 8192 is too large for a prime of 41 bits"):
        list(exact_groups(np.full((1, 1), 8192.0), SMALL.primes[1]))
    for group in groups:
        assert 5 * (group.stop - group.start) * half(prime) + 2 * prime <= 2**53


def test_a_residue_beyond_its_prime_is_refused(ring: Ring) -> None:
    residues = np.zeros((2, 1, SMALL.degree), dtype=np.uint64)
    residues[0, 0, 5] = SMALL.primes[0]
    with pytest.raises(CircuitError, match="residues make no ciphertext"):
        ring.ciphertext(residues)


def test_blobs_say_how_much_they_hold() -> None:
    blob = join([b"one", b"", b"three"])
    assert [bytes(part) for part in split(blob, 3, "it")] == [b"one", b"", b"three"]
    for bad, count in ((blob[:-1], 3), (blob + b"x", 3), (blob, 2), (b"", 1), (b"abc", 0)):
        with pytest.raises(CircuitError, match="it does not hold"):
            list(split(bad, count, "it"))


def test_other_bytes_are_no_ciphertext(ring: Ring, encryptor: sealapi.Encryptor) -> None:
    good = ring.dump(encrypted(ring, encryptor, np.ones(SMALL.slots), 3))
    other = Ring(Parameters(degree=8192, first_bits=33, level_bits=(43, 41), special_bits=47))
    for bad in (b"", good[:100], good[:-5], b"\0" * 200, good[:200] + b"\0" * (len(good) - 200)):
        with pytest.raises(CircuitError, match="the input cannot be read"):
            ring.load(sealapi.Ciphertext, bad, "the input")
    with pytest.raises(CircuitError, match="the input cannot be read"):
        other.load(sealapi.Ciphertext, good, "the input")
