"""Encrypted stages against the integers they stand for; keys, ciphertexts and their files.

Approximate rounding and `p_error` move an activation by one level now and then, so encrypted
values are compared up to one level and up to a share of the values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concrete import fhe
from mlir._mlir_libs._concretelang._compiler import RangeRestriction

from nst.ciphertext import Envelope
from nst.engines import parse_plan
from nst.engines.base import PLAN_FILE, Cipher, Evaluator, Published
from nst.engines.cache import FILES, MANIFEST, ModelCache
from nst.engines.concrete import compilation, publish
from nst.engines.concrete.client import CircuitCipher
from nst.engines.concrete.plan import CircuitPlan
from nst.engines.concrete.preparation import quantized
from nst.engines.concrete.publish import model_id
from nst.engines.concrete.switching import switch
from nst.errors import CircuitError, InputError
from nst.keyring import EVALUATION_FILE, SECRET_FILE, KeyCard, KeyRing
from nst.network.architecture import ACCUMULATOR_MAX, CONTENT, LEVEL, STYLE, grids
from nst.network.integers import (
    AccumulatorRange,
    IntegerNetwork,
    IntegerStage,
    Ints,
    space_to_depth,
)
from nst.network.levels import LEVELS, P_ERROR
from nst.network.weights import load_weights
from nst.pictures.size import Size
from tests.toy import (
    ENGINE,
    TOY,
    TOY_P_ERROR,
    TOY_SIZE,
    assert_close_levels,
    encrypt,
    load_evaluator,
    noise_input,
    publish_toy,
    random_network,
    run_stage,
    toy_level,
    toy_network,
)

INPUTS = [noise_input(STYLE, 1), noise_input(CONTENT, 2)]


@dataclasses.dataclass(frozen=True)
class EncryptedRun:
    """One pair through all stages: ciphertext rows and decrypted levels of each."""

    rows: dict[str, list[bytes]]
    levels: dict[str, Ints]


def input_levels() -> dict[str, Ints]:
    """Levels of the pair that is encrypted."""
    return {each.role: space_to_depth(quantized(each)) for each in INPUTS}


@pytest.fixture(scope="module")
def encrypted_run(
    network: IntegerNetwork, cipher: CircuitCipher, evaluator: Evaluator
) -> EncryptedRun:
    """The toy network on one pair, no decryption between its stages."""
    rows = {each.role: list(encrypt(cipher, each).parts) for each in INPUTS}
    levels = input_levels()
    for name, layer in network.stages.items():
        code = rows["style_code"][0] if layer.stage.modulated else None
        rows[name] = run_stage(evaluator, layer.stage, [rows[s] for s in layer.stage.sources], code)
        levels[name] = cipher.decrypt_rows(name, tuple(rows[name]))
    return EncryptedRun(rows, levels)


@pytest.fixture(scope="module")
def clear_run(network: IntegerNetwork) -> dict[str, Ints]:
    """The same pair in the clear, and a proof that it stays within the accumulators."""
    seen = AccumulatorRange()
    levels = input_levels()
    for name, layer in network.stages.items():
        acc = layer.accumulate(
            np.concatenate([levels[s] for s in layer.stage.sources]), _code(levels)
        )
        seen.include(acc)
        levels[name] = layer.activate(acc)
    assert seen.safe
    return levels


def _code(levels: dict[str, Ints]) -> Ints | None:
    return levels["style_code"][:, 0, 0] if "style_code" in levels else None


@pytest.mark.parametrize("name", [stage.name for stage in TOY.stages()])
def test_each_stage_computes_its_integers(
    name: str, network: IntegerNetwork, encrypted_run: EncryptedRun
) -> None:
    levels, layer = encrypted_run.levels, network.stages[name]
    sources = np.concatenate([levels[s] for s in layer.stage.sources])
    expected = layer.activate(layer.accumulate(sources, _code(levels)))
    assert np.unique(expected).size > 1, "a constant stage would prove nothing"
    assert_close_levels(levels[name], expected)


def test_stages_chain_without_decryption(
    network: IntegerNetwork, encrypted_run: EncryptedRun, clear_run: dict[str, Ints]
) -> None:
    for name in network.stages:
        difference = np.abs(encrypted_run.levels[name] - clear_run[name])
        assert difference.max() <= 2, name
        # A mean over the few values of the style code says nothing.
        assert difference.size < 100 or difference.mean() < 0.4, name
    # The picture, not something near its mean: far closer than the features of another picture.
    code = clear_run["style_code"][:, 0, 0]
    other = network.content_features(quantized(noise_input(CONTENT, 3)), code)
    ours = np.abs(encrypted_run.levels["up"] - clear_run["up"]).mean()
    assert ours < 0.7 * np.abs(other - clear_run["up"]).mean()


def test_the_style_code_steers_the_content(
    network: IntegerNetwork,
    cipher: CircuitCipher,
    evaluator: Evaluator,
    encrypted_run: EncryptedRun,
) -> None:
    # Another style: every row is the first one's top row.
    rows = encrypted_run.rows["style_rows"]
    mixed = run_stage(evaluator, network.stages["style_mix1"].stage, [[rows[0]] * len(rows)])
    levels = np.repeat(encrypted_run.levels["style_rows"][:, :1], len(rows), axis=1)
    layer = network.stages["style_mix1"]
    mix = cipher.decrypt_rows("style_mix1", tuple(mixed))
    assert_close_levels(mix, layer.activate(layer.accumulate(levels, None)))
    other = run_stage(evaluator, network.stages["style_code"].stage, [mixed])
    code = cipher.decrypt_rows("style_code", tuple(other))

    stem = network.stages["stem"]
    sources = [encrypted_run.rows[CONTENT]]
    out = run_stage(evaluator, stem.stage, sources, other[0], only=[3])
    expected = stem.activate(stem.accumulate(encrypted_run.levels[CONTENT], code[:, 0, 0]))[:, 3:4]
    assert_close_levels(cipher.decrypt_rows("stem", tuple(out)), expected)


@pytest.mark.parametrize("stride", [2, 3])
def test_a_strided_style_stem_reads_every_pixel_once(stride: int, tmp_path: Path) -> None:
    side = TOY_SIZE * stride
    network = random_network(dataclasses.replace(TOY, style_stride=stride))
    models, ring = ModelCache(tmp_path / "models"), KeyRing(tmp_path / "keys")
    published = publish_toy(models, network, side)
    key_id = ring.create(published, "toy").key_id
    cipher = ring.cipher(key_id, published)
    assert isinstance(cipher, CircuitCipher)
    evaluator = load_evaluator(published, ring.evaluation_keys(key_id))
    style = noise_input(STYLE, size=Size.square(side))
    rows, wanted = encrypt(cipher, style).parts, [0, 5]
    stem = network.stages["style_stem"]
    out = cipher.decrypt_rows(
        "style_stem", tuple(run_stage(evaluator, stem.stage, [rows], only=wanted))
    )
    expected = stem.activate(stem.accumulate(space_to_depth(quantized(style)), None))
    assert_close_levels(out, expected[:, wanted])
    # The style branch costs what it costs at the size for which no stride is needed.
    plain = publish_toy(models, random_network(TOY))
    assert circuit_plan(published).pbs_style == circuit_plan(plain).pbs_style


def circuit_plan(published: Published) -> CircuitPlan:
    assert isinstance(published.plan, CircuitPlan)
    return published.plan


def test_the_real_network_keeps_its_budget(tmp_path: Path) -> None:
    level = LEVELS["low"]
    network = load_weights(level.weights)
    architecture = network.architecture
    plan = circuit_plan(ModelCache(tmp_path).publish(ENGINE, network, level, level.square))
    assert plan.pbs_style <= 15_000
    assert plan.pbs_style + plan.pbs_content <= 60_000
    assert plan.operations_per_pair <= 4.5e12
    # One PBS per activation, no other: no stage requantizes, pads or adds by bootstrapping.
    shapes = grids(architecture.stages(), 64)
    for stage, planned in zip(architecture.stages(), plan.circuits, strict=True):
        grid = shapes[stage.name]
        assert (planned.name, planned.rows) == (stage.name, grid.rows)
        assert planned.pbs == grid.rows * grid.width * stage.out_channels
    assert 0 < plan.p_error <= P_ERROR
    # 24 bytes per pixel level and some header, where an uncompressed value takes 16 KB.
    assert plan.input_ciphertext_bytes <= 64 * 64 * 3 * 26


def rings_of(module: fhe.FheModule) -> set[tuple[int, int]]:
    """GLWE dimension and polynomial size of all bootstrapping keys."""
    info = json.loads(module.server.client_specs.program_info.serialize())
    keys = [key["params"] for key in info["keyset"]["lweBootstrapKeys"]]
    return {(key["glweDimension"], key["polynomialSize"]) for key in keys}


def test_parameters_are_those_that_take_the_least_time(
    network: IntegerNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = compilation.compile_module(network, TOY_SIZE, TOY_P_ERROR, TOY_SIZE)
    assert rings_of(module) == {(2, 1024)}

    def too_small() -> RangeRestriction:
        restriction = RangeRestriction()
        restriction.add_available_glwe_log_polynomial_size(8)
        return restriction

    # Where they are not precise enough, the optimizer has its own way.
    monkeypatch.setattr("nst.engines.concrete.compilation.fastest_parameters", too_small)
    module, _ = compilation.compile_module(network, TOY_SIZE, TOY_P_ERROR, TOY_SIZE)
    assert 2**8 not in {size for _, size in rings_of(module)}


def test_sizes_in_the_plan_are_the_sizes_met(
    published: Published, cipher: Cipher, key_ring: KeyRing, encrypted_run: EncryptedRun
) -> None:
    plan = circuit_plan(published)
    assert plan.size == plan.style_size == Size.square(TOY_SIZE)
    keys = key_ring.evaluation_keys(cipher.key_id)
    assert len(keys) == pytest.approx(plan.evaluation_key_bytes, rel=0.01)
    rows, stored = encrypted_run.rows, plan.stored
    assert sum(map(len, rows[CONTENT])) == pytest.approx(stored.content, rel=0.05)
    assert sum(map(len, rows[STYLE])) == pytest.approx(stored.style, rel=0.05)
    small = [len(plan.pack_result(cipher.key_id, row).parts[0]) for row in rows["up"]]
    assert sum(small) == pytest.approx(stored.result, rel=0.05)
    counts = (stored.content_parts, stored.style_parts, stored.result_parts)
    assert counts == (len(rows[CONTENT]), len(rows[STYLE]), len(rows["up"]))
    for circuit in plan.circuits:
        assert len(rows[circuit.name]) == circuit.rows
        assert len(rows[circuit.name][0]) == pytest.approx(circuit.output_bytes, rel=0.05)


def changed(network: IntegerNetwork, name: str, **changes: Ints) -> IntegerNetwork:
    """A network with other weights in one stage."""
    stage = dataclasses.replace(network.stages[name], **changes)
    return dataclasses.replace(network, stages={**network.stages, name: stage})


def test_the_model_id_follows_all_that_is_compiled(
    network: IntegerNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem = network.stages["stem"]
    assert stem.modulation is not None

    def nudged(array: Ints) -> Ints:
        out = array.copy()
        out.flat[-1] += 1
        return out

    def identity(
        of: IntegerNetwork, side: int = 32, width: int = 32, p_error: float = 0.02, **more: Any
    ) -> str:
        return model_id(of, side, width, p_error, **more)

    first = identity(network)
    assert first == identity(toy_network())
    ids = [
        first,
        identity(network, side=64),
        identity(network, width=64),
        identity(network, p_error=0.01),
        identity(network, security=132),
        identity(network, exact=True),
        identity(toy_network(1)),
        identity(changed(network, "stem", weight=nudged(stem.weight))),
        identity(changed(network, "stem", bias=nudged(stem.bias))),
        identity(changed(network, "stem", modulation=nudged(stem.modulation))),
    ]
    monkeypatch.setattr(publish, "COMPILER_REVISION", publish.COMPILER_REVISION + 1)
    ids.append(identity(network))
    assert len(set(ids)) == len(ids)
    monkeypatch.undo()
    # The client's last layer is no part of the circuits.
    assert identity(dataclasses.replace(network, head_bias=network.head_bias + 1)) == first


def test_a_model_is_published_once(
    network: IntegerNetwork,
    models: ModelCache,
    published: Published,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compile_again(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compilation, "compile_module", compile_again)
    assert publish_toy(models, network) == published == models.open(published.plan.model_id)
    # A content of another height goes through the same circuits.
    tall = models.publish(ENGINE, network, toy_level(), Size(TOY_SIZE, 90))
    assert tall.folder == published.folder
    assert tall.plan == published.plan.at(Size(TOY_SIZE, 96))
    with pytest.raises(AssertionError, match="compiled again"):
        models.publish(ENGINE, network, toy_level(), Size(TOY_SIZE + 8, TOY_SIZE))


def test_nothing_half_built_is_left_or_found(
    network: IntegerNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compilation, "compile_module", lambda *_: (None, {}))
    monkeypatch.setattr(compilation, "make_plan", disk_full)
    with pytest.raises(InputError, match="make room"):
        publish_toy(ModelCache(tmp_path), network)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_model_is_noticed_and_built_again(
    name: str,
    damage: str,
    network: IntegerNetwork,
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = ModelCache(tmp_path)
    folder = tmp_path / published.plan.model_id
    shutil.copytree(published.folder, folder)
    path = folder / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CircuitError, match=published.plan.model_id) as caught:
        models.open(published.plan.model_id)
    assert "\n" not in str(caught.value)

    def build(*arguments: Any) -> None:
        shutil.copytree(published.folder, arguments[-1], dirs_exist_ok=True)

    monkeypatch.setattr(type(ENGINE), "publish", build)
    assert publish_toy(models, network).plan == published.plan
    assert models.open(published.plan.model_id).plan == published.plan


@pytest.mark.parametrize("name", ["style_stem", "style_rows", "up"])
def test_weights_too_small_for_the_accumulators_are_refused(
    name: str, network: IntegerNetwork, tmp_path: Path
) -> None:
    stage = network.stages[name]
    faint = stage.weight * 0
    faint[:, 0, 0, 0] = 1
    network = changed(network, name, weight=faint)
    with pytest.raises(CircuitError, match=name) as caught:
        publish_toy(ModelCache(tmp_path), network)
    assert "\n" not in str(caught.value)


def test_a_damaged_plan_is_refused(published: Published) -> None:
    written = (published.folder / PLAN_FILE).read_bytes()
    assert parse_plan(written, "it") == published.plan
    record = json.loads(written)
    wrong: list[Any] = [
        {},
        [],
        {**record, "engine": "abacus"},
        {**record, "format": 99},
        {**record, "x": 1},
        {**record, "circuits": 3},
        {**record, "circuits": [{"name": "stem"}]},
    ]
    for text in ["{", *map(json.dumps, wrong)]:
        with pytest.raises(CircuitError):
            parse_plan(text.encode(), "it")


def test_rounding_agrees_with_its_definition() -> None:
    (stage,) = [s for s in TOY.stages() if s.name == "stem"]
    layer = IntegerStage(stage, np.zeros(0), np.zeros(0), None)
    acc = np.array([-512, -33, -32, 0, 31, 32, 95, 96, ACCUMULATOR_MAX])
    assert layer.activate(acc).tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 7]
    assert (ACCUMULATOR_MAX + LEVEL // 2) // LEVEL == 7


# Keys and ciphertexts


@pytest.fixture(scope="module")
def other_cipher(key_ring: KeyRing, published: Published, key_card: KeyCard) -> CircuitCipher:
    """A second key set for the same model, made under a careless umask."""
    before = os.umask(0)
    try:
        card = key_ring.create(published, "toy")
    finally:
        os.umask(before)
    cipher = key_ring.cipher(card.key_id, published)
    assert isinstance(cipher, CircuitCipher)
    return cipher


def test_key_files_are_their_owner_s(key_ring: KeyRing, other_cipher: Cipher) -> None:
    assert key_ring.folder.stat().st_mode & 0o777 == 0o700
    for folder in key_ring.folder.iterdir():
        assert folder.stat().st_mode & 0o777 == 0o700
        for path in folder.iterdir():
            assert path.stat().st_mode & 0o777 == 0o600, path.name
    assert (key_ring.folder / other_cipher.key_id / SECRET_FILE).exists()


@pytest.mark.parametrize("kind", ["truncated", "empty", "evaluation keys"])
def test_only_the_secret_key_makes_a_cipher(
    kind: str, key_ring: KeyRing, key_card: KeyCard, published: Published, tmp_path: Path
) -> None:
    folder = tmp_path / key_card.key_id
    shutil.copytree(key_ring.folder / key_card.key_id, folder)
    secret = (folder / SECRET_FILE).read_bytes()
    KeyRing(tmp_path).cipher(key_card.key_id, published)
    wrong = {
        "truncated": secret[: len(secret) // 2],
        "empty": b"",
        # All that a server has.
        "evaluation keys": (folder / EVALUATION_FILE).read_bytes(),
    }
    (folder / SECRET_FILE).write_bytes(wrong[kind])
    with pytest.raises(CircuitError, match=f"{key_card.key_id} is damaged"):
        KeyRing(tmp_path).cipher(key_card.key_id, published)


def test_every_generation_has_its_own_secret(
    key_ring: KeyRing,
    cipher: CircuitCipher,
    other_cipher: CircuitCipher,
    encrypted_run: EncryptedRun,
) -> None:
    assert cipher.key_id != other_cipher.key_id
    first, second = (key_ring.evaluation_keys(c.key_id) for c in (cipher, other_cipher))
    assert first != second
    # Without the envelope's check the other secret key reads noise, not the features.
    rows = tuple(encrypted_run.rows["style_stem"])
    np.testing.assert_array_equal(
        cipher.decrypt_rows("style_stem", rows), encrypted_run.levels["style_stem"]
    )
    wrong = other_cipher.decrypt_rows("style_stem", rows)
    assert (wrong != encrypted_run.levels["style_stem"]).mean() > 0.5


def test_encryption_is_randomized(cipher: Cipher) -> None:
    first, second = (encrypt(cipher, INPUTS[0]) for _ in range(2))
    assert len(set(first.parts) | set(second.parts)) == 2 * len(first.parts)
    # Not merely a header that differs: almost no byte of a row is where it was.
    one, two = (np.frombuffer(e.parts[0], dtype=np.uint8) for e in (first, second))
    assert (one == two).mean() < 0.3


def test_a_ring_finds_the_newest_key_of_the_model(
    key_ring: KeyRing, key_card: KeyCard, other_cipher: Cipher
) -> None:
    assert {card.key_id for card in key_ring.list()} == {key_card.key_id, other_cipher.key_id}
    found = key_ring.find(key_card.model_id)
    assert found is not None
    assert found.created == max(card.created for card in key_ring.list())
    assert key_ring.find("0" * 16) is None


def packed(cipher: Cipher, *rows: bytes) -> list[bytes]:
    """Rows of a result as they are stored; what is no ciphertext as it is."""

    def stored(row: bytes) -> bytes:
        with contextlib.suppress(CircuitError):
            return switch(row, 16)
        return row

    return [Envelope(cipher.key_id, cipher.model_id, (stored(row),), 16).pack() for row in rows]


def test_a_result_of_another_key_is_refused(
    cipher: Cipher, other_cipher: Cipher, encrypted_run: EncryptedRun
) -> None:
    result = packed(cipher, *encrypted_run.rows["up"])
    np.testing.assert_array_equal(cipher.decrypt_result(result, "a")[0], encrypted_run.levels["up"])
    with pytest.raises(CircuitError, match=f"the result .*{cipher.key_id}.*{other_cipher.key_id}"):
        other_cipher.decrypt_result(result, "the result")
    other = dataclasses.replace(Envelope.unpack(result[1], "row"), model_id="f" * 16).pack()
    with pytest.raises(CircuitError, match="row 1 of the result was made by model f"):
        cipher.decrypt_result([result[0], other, *result[2:]], "the result")


@pytest.mark.parametrize(
    "kind", ["garbage", "empty", "no rows", "another stage", "a row too few", "a row too many"]
)
def test_what_is_no_result_is_refused(
    kind: str, cipher: Cipher, encrypted_run: EncryptedRun
) -> None:
    up = encrypted_run.rows["up"]
    rows = {
        "garbage": [b"\x5a" * 4000],
        "empty": [b""],
        "no rows": [],
        "another stage": [up[0], encrypted_run.rows["style_rows"][0]],
        "a row too few": up[:-1],
        "a row too many": [*up, up[0]],
    }
    # Envelope and checksum are right, as a malicious server would make them.
    with pytest.raises(CircuitError, match=r"the result (is no result|has \d rows)") as caught:
        cipher.decrypt_result(packed(cipher, *rows[kind]), "the result")
    assert "\n" not in str(caught.value)


def test_a_key_of_another_model_is_refused(
    key_ring: KeyRing, key_card: KeyCard, published: Published
) -> None:
    other = dataclasses.replace(circuit_plan(published), model_id="f" * 16)
    with pytest.raises(CircuitError, match="made for model"):
        key_ring.cipher(key_card.key_id, dataclasses.replace(published, plan=other))
    with pytest.raises(InputError, match="0123456789abcdef"):
        key_ring.cipher("0123456789abcdef", published)


def test_an_envelope_comes_back_as_it_went(cipher: Cipher) -> None:
    envelope = Envelope(cipher.key_id, cipher.model_id, (b"first", b"", b"third"))
    assert Envelope.unpack(envelope.pack(), "it") == envelope


def test_a_truncated_envelope_is_refused(cipher: Cipher) -> None:
    blob = encrypt(cipher, INPUTS[0]).pack()
    for keep in (0, 3, 11, 12, 50, 300, 1000, len(blob) // 2, len(blob) - 1):
        with pytest.raises(CircuitError, match="it is damaged"):
            Envelope.unpack(blob[:keep], "it")
    with pytest.raises(CircuitError, match="it is damaged"):
        Envelope.unpack(blob + b"\0", "it")


def test_a_flipped_bit_anywhere_is_noticed(cipher: Cipher) -> None:
    envelope = Envelope(cipher.key_id, cipher.model_id, (b"\x5a" * 40, b"\xa5" * 40))
    blob = envelope.pack()
    for position in range(len(blob)):
        for bit in range(8):
            flipped = bytearray(blob)
            flipped[position] ^= 1 << bit
            with pytest.raises(CircuitError):
                # A name that was hit is read as another name, and then does not fit.
                Envelope.unpack(bytes(flipped), "it").require(cipher.key_id, cipher.model_id, "it")


def test_an_evaluator_refuses_what_it_cannot_run(
    published: Published,
    evaluator: Evaluator,
    key_ring: KeyRing,
    key_card: KeyCard,
    cipher: Cipher,
) -> None:
    plan = circuit_plan(published)
    archive = published.server_bundle.read_bytes()
    keys = key_ring.evaluation_keys(key_card.key_id)
    with pytest.raises(CircuitError, match=r"Concrete 0\.0"):
        ENGINE.load(dataclasses.replace(plan, concrete_version="0.0"), archive, keys)
    for bundle, made in ((archive[: len(archive) // 2], keys), (archive, keys[: len(keys) // 2])):
        with pytest.raises(CircuitError, match="submit the job again"):
            ENGINE.load(plan, bundle, made)
    row = encrypt(cipher, INPUTS[0]).parts[0]
    with pytest.raises(CircuitError, match="style_stem refused"):
        evaluator.run("style_stem", [row, row, row[: len(row) // 2]])
    with pytest.raises(CircuitError, match="style_stem refused"):
        evaluator.run("style_stem", [row, row])
    with pytest.raises(CircuitError, match="style_body refused"):
        evaluator.run("style_body", [row, row, row])
