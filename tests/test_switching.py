"""Results in 16-bit words: levels and phases of real ciphertexts, and what is refused."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import pytest
from concrete import fhe
from concrete.compiler import Value as NativeValue
from numpy.typing import NDArray

from nst.ciphertext import FULL_BITS, Envelope
from nst.engines.base import Cipher, Evaluator, Published
from nst.engines.concrete.client import CircuitCipher
from nst.engines.concrete.plan import CircuitPlan
from nst.engines.concrete.switching import (
    _payload,
    added_error,
    full_rows,
    half_level,
    restore,
    sigma,
    switch,
    switched,
    word_bits,
)
from nst.errors import CircuitError
from nst.keyring import KeyRing
from nst.network.architecture import CONTENT, OUTPUT, PIXEL_MAX, PIXEL_MIN, STYLE, grids
from nst.network.integers import IntegerNetwork, Ints
from tests.toy import TOY_SIZE, encrypt, noise_input

ROWS = 4
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Results:
    """Rows of the last stage with the parts of its key that a measurement needs."""

    rows: tuple[bytes, ...]
    levels: Ints
    key_bits: Words
    plan: CircuitPlan

    @property
    def words(self) -> Words:
        """`[values, n + 1]`."""
        return np.concatenate([words_of(row, self.plan) for row in self.rows])

    def phases(self, words: Words) -> Words:
        """`b - <a, s>` of each value, the torus being all of uint64."""
        masked = (words[:, :-1] * self.key_bits).sum(1, dtype=np.uint64)
        return np.asarray(words[:, -1] - masked)


def words_of(row: bytes, plan: CircuitPlan) -> Words:
    start, stop = _payload(row)
    words = np.frombuffer(row, dtype="<u8", count=(stop - start) // 8, offset=start)
    return words.reshape(-1, plan.lwe_dimension + 1)


def on_torus(difference: Words) -> NDArray[np.float64]:
    """Signed distances as shares of the torus."""
    return difference.astype(np.int64) / 2.0**FULL_BITS


def secret_key_bits(secret: bytes, dimension: int) -> Words:
    keys = fhe.Keys.deserialize(secret)._keyset.get_client_keys().get_secret_keys()
    (key,) = [key.serialize() for key in keys if key.param.dimension() == dimension]
    # A description, the length, the bits as words; what follows is never 2,048 words of 0 and 1.
    at = key.index(struct.pack("<Q", dimension)) + 8
    bits = np.frombuffer(key, dtype="<u8", count=dimension, offset=at)
    assert set(np.unique(bits)) == {0, 1}
    return bits


@pytest.fixture(scope="module")
def results(
    network: IntegerNetwork,
    published: Published,
    key_ring: KeyRing,
    cipher: CircuitCipher,
    evaluator: Evaluator,
) -> Results:
    """Some rows of the last stage, computed from small random activations."""
    plan, stage = published.plan, network.stages[OUTPUT].stage
    assert isinstance(plan, CircuitPlan)
    shapes = grids(network.architecture.stages(), TOY_SIZE)
    draw = np.random.default_rng(5)
    encrypt = cipher._program.get_client_circuit(OUTPUT)

    def encrypted(position: int, *shape: int, pixels: bool = False) -> bytes:
        low, high = (PIXEL_MIN, PIXEL_MAX) if pixels else (0, 3)
        value = draw.integers(low, high + 1, shape, dtype=np.int64)
        return bytes(encrypt.prepare_input(NativeValue(value), position).serialize())

    rows = []
    for _ in range(ROWS):
        arguments: list[bytes] = []
        for source, channels in zip(stage.sources, stage.source_channels, strict=True):
            for _ in range(3):
                shape = (1, channels, 1, shapes[source].width)
                arguments.append(encrypted(len(arguments), *shape, pixels=source == CONTENT))
        arguments.append(encrypted(len(arguments), 1, network.architecture.code, 1, 1))
        rows.append(evaluator.run(OUTPUT, arguments))
    bits = secret_key_bits(key_ring.secret(cipher.key_id), plan.lwe_dimension)
    return Results(tuple(rows), cipher.decrypt_rows(OUTPUT, tuple(rows)), bits, plan)


def test_results_decrypt_to_the_same_levels_in_a_quarter_of_the_bytes(
    results: Results, cipher: CircuitCipher
) -> None:
    assert np.unique(results.levels).size > 4
    assert results.plan.word_bits == 16

    def levels(stored: Envelope) -> Ints:
        return cipher.decrypt_rows(OUTPUT, full_rows(stored))

    small = switched(cipher.key_id, cipher.model_id, results.rows, 16)
    stored = Envelope.unpack(small.pack(), "result")
    assert stored.word_bits == 16
    assert np.array_equal(levels(stored), results.levels)
    assert np.array_equal(
        levels(switched(cipher.key_id, cipher.model_id, results.rows, 32)), results.levels
    )
    # The header of some 300 bytes is not compressed.
    assert sum(map(len, stored.parts)) == pytest.approx(sum(map(len, results.rows)) / 4, rel=0.01)
    rows = full_rows(stored)
    assert [len(row) for row in rows] == [len(row) for row in results.rows]
    for row, original in zip(rows, results.rows, strict=True):
        start, stop = _payload(original)
        assert row[:start] + row[stop:] == original[:start] + original[stop:]


def test_the_last_bootstrapping_leaves_little_noise(results: Results) -> None:
    """What switching adds to; otherwise its room would be taken already."""
    step = np.uint64(2**FULL_BITS * 2 * half_level(results.plan.output_width))
    phases = results.phases(results.words) + step // np.uint64(2)
    noise = (phases % step).astype(np.float64) - float(step) / 2
    spread = noise.std() / 2.0**FULL_BITS
    assert 2**-19 < spread < 2**-14
    levels = (phases // step).astype(np.int64)
    modulus = 2**results.plan.output_width
    expected = np.transpose(results.levels, (1, 0, 2)).reshape(-1)
    assert np.array_equal(levels % modulus, expected % modulus)


def test_the_phase_error_is_the_one_derived(results: Results) -> None:
    bits, ones, dimension = 16, int(results.key_bits.sum()), results.plan.lwe_dimension
    before = results.phases(results.words)
    rows = [restore(switch(row, bits), bits) for row in results.rows]
    after = results.phases(np.concatenate([words_of(row, results.plan) for row in rows]))
    error = on_torus(after - before)
    # More draws: the same values with other masks, as only who has the key can make them.
    draw = np.random.default_rng(6)
    for _ in range(15):
        masks = draw.integers(0, 2**64, (len(before), dimension), dtype=np.uint64)
        bodies = before + (masks * results.key_bits).sum(1, dtype=np.uint64)
        words = np.concatenate([masks, bodies[:, None]], axis=1)
        half = np.uint64(1 << (63 - bits))
        kept = (words + half) >> np.uint64(64 - bits) << np.uint64(64 - bits)
        error = np.concatenate([error, on_torus(results.phases(kept) - before)])
    assert error.std() == pytest.approx(sigma(dimension, bits, ones), rel=0.06)
    assert sigma(dimension, bits, ones) == pytest.approx(2 ** (3.2 - bits), rel=0.05)
    assert abs(error.mean()) < 4 * error.std() / len(error) ** 0.5
    # Of some 2,000 draws one is beyond 5 deviations in a run out of a thousand; 7 are never met.
    assert np.abs(error).max() < 7 * sigma(dimension, bits, ones)
    bound = (ones + 1) * 2.0 ** -(bits + 1)
    assert np.abs(error).max() < bound < half_level(results.plan.output_width)


def test_the_width_decides_on_the_word() -> None:
    assert word_bits(2048, 3) == word_bits(2048, 4) == 16
    assert added_error(2048, 4, 16) < 1e-300
    assert word_bits(2048, 8) == 32
    assert added_error(2048, 8, 32) < 1e-300 < added_error(2048, 8, 16)
    with pytest.raises(CircuitError, match="narrower last stage"):
        word_bits(2048, 24)


def test_switching_rounds_and_wraps_around(results: Results) -> None:
    row = bytearray(results.rows[0])
    start, _ = _payload(results.rows[0])
    for word, kept in (
        (0, 0),
        (2**47 - 1, 0),
        (2**47, 1),
        (2**64 - 2**47 - 1, 2**16 - 1),
        (2**64 - 2**47, 0),
        (2**64 - 1, 0),
    ):
        struct.pack_into("<Q", row, start, word)
        back = restore(switch(bytes(row), 16), 16)
        assert struct.unpack_from("<Q", back, start) == (kept << 48,)


def test_what_is_no_ciphertext_is_refused_in_one_line(results: Results, cipher: Cipher) -> None:
    row = results.rows[0]
    start, stop = _payload(row)
    bad = [b"", b"junk", bytes(64), row[: stop - 8], row + bytes(8), row[8:]]
    # Every byte in front of the words, turned over, is noticed or does no harm.
    bad += [row[:at] + bytes([row[at] ^ 0xFF]) + row[at + 1 :] for at in range(start)]
    refused = 0
    for value in bad:
        try:
            switch(value, 16)
        except CircuitError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 20


def test_damaged_switched_rows_are_refused_in_one_line(results: Results, cipher: Cipher) -> None:
    good = switch(results.rows[0], 16)
    for bad in (
        b"",
        good[:-400],
        struct.pack("<QQ", 2**63, 8) + good[16:],
        struct.pack("<QQ", 64, 2**40) + good[16:],
    ):
        envelope = Envelope(cipher.key_id, cipher.model_id, (bad,), 16)
        with pytest.raises(CircuitError, match=r"^[^\n]+$"):
            cipher.decrypt_result([envelope.pack()], "result")
    for bits in (0, 8, 17, -16):
        with pytest.raises(CircuitError, match="words of"):
            restore(good, bits)


def test_inputs_are_compressed(published: Published, cipher: Cipher) -> None:
    """A seed and a body for a value: 24 bytes, where an uncompressed one takes 16 KB."""
    for role in (CONTENT, STYLE):
        rows = encrypt(cipher, noise_input(role)).parts
        values = 3 * TOY_SIZE**2
        assert sum(len(row) - 300 for row in rows) <= 24 * values
    assert published.plan.evaluation_key_bytes < 25e6
