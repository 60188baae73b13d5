"""Encrypted stages against the integers they stand for; keys, ciphertexts and their files.

Approximate rounding and `p_error` move an activation by one level now and then, so encrypted
values are compared up to one level and up to a share of the values.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from nst.engines.concrete import circuits as circuits_module
from nst.engines.concrete import compilation
from nst.network.architecture import ACCUMULATOR_MAX, CONTENT, LEVEL, STYLE, grids
from nst.ciphertext import Envelope
from nst.engines.concrete.circuits import PLAN_FILE, SERVER_FILE, build, model_id, load_plan
from nst.engines.concrete.client import EVALUATION_FILE, SECRET_FILE, Cipher, KeyCard, KeyRing
from nst.errors import CircuitError, InputError
from nst.network.integers import (
    AccumulatorRange,
    IntegerNetwork,
    IntegerStage,
    Ints,
    join,
    space_to_depth,
)
from nst.network.levels import LEVELS, P_ERROR
from nst.engines.concrete.plan import CircuitPlan
from nst.engines.concrete.server import Evaluator
from nst.network.weights import load_weights
from tests.toy import (
    TOY,
    TOY_P_ERROR,
    TOY_SIZE,
    assert_close_levels,
    noise_pixels,
    random_network,
    run_stage,
    toy_network,
)

STYLE_PIXELS, CONTENT_PIXELS = noise_pixels(TOY_SIZE, 1), noise_pixels(TOY_SIZE, 2)


@dataclasses.dataclass(frozen=True)
class EncryptedRun:
    """One pair through all stages: ciphertext rows and decrypted levels of each."""

    rows: dict[str, list[bytes]]
    levels: dict[str, Ints]


@pytest.fixture(scope="module")
def encrypted_run(network: IntegerNetwork, cipher: Cipher, evaluator: Evaluator) -> EncryptedRun:
    """The toy network on one pair, no decryption between its stages."""
    rows = {
        STYLE: list(cipher.encrypt(STYLE_PIXELS, STYLE).rows),
        CONTENT: list(cipher.encrypt(CONTENT_PIXELS, CONTENT).rows),
    }
    levels = {STYLE: space_to_depth(STYLE_PIXELS), CONTENT: space_to_depth(CONTENT_PIXELS)}
    for name, layer in network.stages.items():
        code = rows["style_code"][0] if layer.stage.modulated else None
        rows[name] = run_stage(evaluator, layer.stage, [rows[s] for s in layer.stage.sources], code)
        levels[name] = cipher.decrypt_rows(name, tuple(rows[name]))
    return EncryptedRun(rows, levels)


@pytest.fixture(scope="module")
def clear_run(network: IntegerNetwork) -> dict[str, Ints]:
    """The same pair in the clear, and a proof that it stays within the accumulators."""
    seen = AccumulatorRange()
    levels = {STYLE: space_to_depth(STYLE_PIXELS), CONTENT: space_to_depth(CONTENT_PIXELS)}
    for name, layer in network.stages.items():
        acc = layer.accumulate(join([levels[s] for s in layer.stage.sources]), _code(levels))
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
    sources = join([levels[s] for s in layer.stage.sources])
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
    other = network.content_features(noise_pixels(TOY_SIZE, 3), code)
    ours = np.abs(encrypted_run.levels["up"] - clear_run["up"]).mean()
    assert ours < 0.7 * np.abs(other - clear_run["up"]).mean()


def test_the_style_code_steers_the_content(
    network: IntegerNetwork,
    cipher: Cipher,
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
    size = TOY_SIZE * stride
    network = random_network(dataclasses.replace(TOY, style_stride=stride))
    folder = build(network, size, TOY_P_ERROR, tmp_path / "circuits")
    ring = KeyRing(tmp_path / "keys")
    key_id = ring.create(folder, "toy").key_id
    cipher = ring.cipher(key_id, folder)
    evaluator = Evaluator(
        load_plan(folder), (folder / SERVER_FILE).read_bytes(), ring.evaluation_keys(key_id)
    )
    pixels = noise_pixels(size)
    rows, wanted = list(cipher.encrypt(pixels, STYLE).rows), [0, 5]
    stem = network.stages["style_stem"]
    out = cipher.decrypt_rows(
        "style_stem", tuple(run_stage(evaluator, stem.stage, [rows], only=wanted))
    )
    expected = stem.activate(stem.accumulate(space_to_depth(pixels), None))
    assert_close_levels(out, expected[:, wanted])
    # The style branch costs what it costs at the size for which no stride is needed.
    plain = build(random_network(TOY), TOY_SIZE, TOY_P_ERROR, tmp_path / "circuits")
    assert load_plan(folder).pbs_style == load_plan(plain).pbs_style


def test_the_real_network_keeps_its_budget(tmp_path: Path) -> None:
    network = load_weights(LEVELS["low"].weights)
    architecture = network.architecture
    folder = build(network, 64, P_ERROR, tmp_path)
    plan = load_plan(folder)
    summary = plan.summary()
    assert plan.pbs_style <= 15_000
    assert summary["pbs_per_pair"] <= 60_000
    assert summary["operations_per_pair"] <= 4.5e12
    # One PBS an activation, no other: no stage requantizes, pads or adds by bootstrapping.
    shapes = grids(architecture.stages(), 64)
    for stage, planned in zip(architecture.stages(), plan.stages, strict=True):
        grid = shapes[stage.name]
        assert (planned.name, planned.rows) == (stage.name, grid.rows)
        assert planned.pbs == grid.rows * grid.width * stage.out_channels
    assert 0 < plan.p_error <= P_ERROR
    # 24 bytes a pixel level and some header, where an uncompressed value takes 16 KB.
    assert plan.input_ciphertext_bytes <= 64 * 64 * 3 * 26


def test_sizes_in_the_plan_are_the_sizes_met(
    circuits: Path, cipher: Cipher, key_ring: KeyRing, encrypted_run: EncryptedRun
) -> None:
    plan = load_plan(circuits)
    assert plan.size == TOY_SIZE
    keys = key_ring.evaluation_keys(cipher.key_id)
    assert len(keys) == pytest.approx(plan.evaluation_key_bytes, rel=0.01)
    rows = encrypted_run.rows
    assert sum(map(len, rows[CONTENT])) == pytest.approx(plan.input_ciphertext_bytes, rel=0.05)
    assert sum(map(len, rows["up"])) == pytest.approx(plan.output_ciphertext_bytes, rel=0.05)
    for stage in plan.stages:
        assert len(rows[stage.name]) == stage.rows
        assert len(rows[stage.name][0]) == pytest.approx(stage.output_bytes, rel=0.05)


def changed(network: IntegerNetwork, name: str, **changes: Ints) -> IntegerNetwork:
    """A network with other weights in one stage."""
    stage = dataclasses.replace(network.stages[name], **changes)
    return dataclasses.replace(network, stages={**network.stages, name: stage})


def test_the_circuit_id_follows_all_that_is_compiled(network: IntegerNetwork) -> None:
    stem = network.stages["stem"]
    assert stem.modulation is not None

    def nudged(array: Ints) -> Ints:
        out = array.copy()
        out.flat[-1] += 1
        return out

    first = model_id(network, 32, 0.02)
    assert first == model_id(toy_network(), 32, 0.02)
    ids = [
        first,
        model_id(network, 64, 0.02),
        model_id(network, 32, 0.01),
        model_id(toy_network(1), 32, 0.02),
        model_id(changed(network, "stem", weight=nudged(stem.weight)), 32, 0.02),
        model_id(changed(network, "stem", bias=nudged(stem.bias)), 32, 0.02),
        model_id(changed(network, "stem", modulation=nudged(stem.modulation)), 32, 0.02),
    ]
    assert len(set(ids)) == len(ids)
    # The client's last layer is no part of the circuits.
    head = dataclasses.replace(network, head_bias=network.head_bias + 1)
    assert model_id(head, 32, 0.02) == first


def test_circuits_are_compiled_once(
    network: IntegerNetwork, circuits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_again(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compilation, "compile_module", compile_again)
    assert build(network, TOY_SIZE, TOY_P_ERROR, circuits.parent) == circuits
    with pytest.raises(AssertionError, match="compiled again"):
        build(network, TOY_SIZE, TOY_P_ERROR / 2, circuits.parent)


def test_nothing_half_built_is_left_or_found(
    network: IntegerNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object) -> CircuitPlan:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(circuits_module.json, "dumps", disk_full)
    with pytest.raises(OSError, match="No space"):
        build(network, TOY_SIZE, TOY_P_ERROR, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["style_stem", "style_rows", "up"])
def test_weights_too_small_for_the_accumulators_are_refused(
    name: str, network: IntegerNetwork, tmp_path: Path
) -> None:
    stage = network.stages[name]
    faint = stage.weight * 0
    faint[:, 0, 0, 0] = 1
    network = changed(network, name, weight=faint)
    with pytest.raises(CircuitError, match=name) as caught:
        build(network, TOY_SIZE, TOY_P_ERROR, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_plan_is_refused(circuits: Path, tmp_path: Path) -> None:
    with pytest.raises(CircuitError, match="build it again"):
        load_plan(tmp_path)
    record = json.loads((circuits / PLAN_FILE).read_text())
    for text in ("{", "{}", json.dumps({**record, "format": 99}), json.dumps({**record, "x": 1})):
        (tmp_path / PLAN_FILE).write_text(text)
        with pytest.raises(CircuitError):
            load_plan(tmp_path)


def test_rounding_agrees_with_its_definition() -> None:
    (stage,) = [s for s in TOY.stages() if s.name == "stem"]
    layer = IntegerStage(stage, np.zeros(0), np.zeros(0), None)
    acc = np.array([-512, -33, -32, 0, 31, 32, 95, 96, ACCUMULATOR_MAX])
    assert layer.activate(acc).tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 7]
    assert (ACCUMULATOR_MAX + LEVEL // 2) // LEVEL == 7


# Keys and ciphertexts


@pytest.fixture(scope="module")
def other_cipher(key_ring: KeyRing, circuits: Path, key_card: KeyCard) -> Cipher:
    """A second key set for the same circuits, made under a careless umask."""
    before = os.umask(0)
    try:
        card = key_ring.create(circuits, "toy")
    finally:
        os.umask(before)
    return key_ring.cipher(card.key_id, circuits)


def test_key_files_are_their_owner_s(key_ring: KeyRing, other_cipher: Cipher) -> None:
    assert key_ring.folder.stat().st_mode & 0o777 == 0o700
    for folder in key_ring.folder.iterdir():
        assert folder.stat().st_mode & 0o777 == 0o700
        for path in folder.iterdir():
            assert path.stat().st_mode & 0o777 == 0o600, path.name
    assert (key_ring.folder / other_cipher.key_id / SECRET_FILE).exists()


@pytest.mark.parametrize("kind", ["truncated", "empty", "evaluation keys"])
def test_only_the_secret_key_makes_a_cipher(
    kind: str, key_ring: KeyRing, key_card: KeyCard, circuits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / key_card.key_id
    shutil.copytree(key_ring.folder / key_card.key_id, folder)
    secret = (folder / SECRET_FILE).read_bytes()
    KeyRing(tmp_path).cipher(key_card.key_id, circuits)
    wrong = {
        "truncated": secret[: len(secret) // 2],
        "empty": b"",
        # All that a server has.
        "evaluation keys": (folder / EVALUATION_FILE).read_bytes(),
    }
    (folder / SECRET_FILE).write_bytes(wrong[kind])
    with pytest.raises(CircuitError, match=f"{key_card.key_id} is damaged"):
        KeyRing(tmp_path).cipher(key_card.key_id, circuits)


def test_every_generation_has_its_own_secret(
    key_ring: KeyRing,
    cipher: Cipher,
    other_cipher: Cipher,
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
    pixels = np.zeros((3, TOY_SIZE, TOY_SIZE), dtype=np.int64)
    first, second = cipher.encrypt(pixels, CONTENT), cipher.encrypt(pixels, CONTENT)
    assert len(set(first.rows) | set(second.rows)) == 2 * len(first.rows)
    # Not merely a header that differs: almost no byte of a row is where it was.
    one, two = (np.frombuffer(e.rows[0], dtype=np.uint8) for e in (first, second))
    assert (one == two).mean() < 0.3


def test_a_ring_finds_the_newest_key_of_the_circuits(
    key_ring: KeyRing, key_card: KeyCard, other_cipher: Cipher
) -> None:
    assert {card.key_id for card in key_ring.list()} == {key_card.key_id, other_cipher.key_id}
    found = key_ring.find(key_card.model_id)
    assert found is not None
    assert found.created == max(card.created for card in key_ring.list())
    assert key_ring.find("0" * 16) is None


def test_a_result_of_another_key_is_refused(
    cipher: Cipher, other_cipher: Cipher, encrypted_run: EncryptedRun
) -> None:
    result = Envelope(cipher.key_id, cipher.model_id, tuple(encrypted_run.rows["up"]))
    np.testing.assert_array_equal(cipher.decrypt(result, "a"), encrypted_run.levels["up"])
    with pytest.raises(CircuitError, match=f"the result .*{cipher.key_id}.*{other_cipher.key_id}"):
        other_cipher.decrypt(result, "the result")
    with pytest.raises(CircuitError, match="circuits"):
        cipher.decrypt(dataclasses.replace(result, model_id="f" * 16), "the result")


@pytest.mark.parametrize("kind", ["garbage", "empty", "no rows", "another stage"])
def test_what_is_no_result_is_refused(
    kind: str, cipher: Cipher, encrypted_run: EncryptedRun
) -> None:
    rows = {
        "garbage": (b"\x5a" * 4000,),
        "empty": (b"",),
        "no rows": (),
        "another stage": (encrypted_run.rows["up"][0], encrypted_run.rows["style_rows"][0]),
    }
    # Envelope and checksum are right, as a malicious server would make them.
    result = Envelope(cipher.key_id, cipher.model_id, rows[kind])
    with pytest.raises(CircuitError, match="the result is no result") as caught:
        cipher.decrypt(result, "the result")
    assert "\n" not in str(caught.value)


def test_a_key_of_other_circuits_is_refused(
    key_ring: KeyRing, key_card: KeyCard, circuits: Path, tmp_path: Path
) -> None:
    record = json.loads((circuits / PLAN_FILE).read_text())
    (tmp_path / PLAN_FILE).write_text(json.dumps({**record, "model_id": "f" * 16}))
    (tmp_path / SERVER_FILE).write_bytes((circuits / SERVER_FILE).read_bytes())
    with pytest.raises(CircuitError, match="made for circuits"):
        key_ring.cipher(key_card.key_id, tmp_path)
    with pytest.raises(InputError, match="0123456789abcdef"):
        key_ring.cipher("0123456789abcdef", circuits)


def test_an_envelope_comes_back_as_it_went(cipher: Cipher) -> None:
    envelope = Envelope(cipher.key_id, cipher.model_id, (b"first", b"", b"third"))
    assert Envelope.unpack(envelope.pack(), "it") == envelope


def test_a_truncated_envelope_is_refused(cipher: Cipher) -> None:
    blob = cipher.encrypt(STYLE_PIXELS, STYLE).pack()
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
                Envelope.unpack(bytes(flipped), "it").require(
                    cipher.key_id, cipher.model_id, "it"
                )


def test_an_evaluator_refuses_what_it_cannot_run(
    circuits: Path, evaluator: Evaluator, key_ring: KeyRing, key_card: KeyCard, cipher: Cipher
) -> None:
    plan = load_plan(circuits)
    archive = (circuits / SERVER_FILE).read_bytes()
    keys = key_ring.evaluation_keys(key_card.key_id)
    with pytest.raises(CircuitError, match=r"Concrete 0\.0"):
        Evaluator(dataclasses.replace(plan, concrete_version="0.0"), archive, keys)
    with pytest.raises(CircuitError, match="submit the job again"):
        Evaluator(plan, archive[: len(archive) // 2], keys)
    with pytest.raises(CircuitError, match="submit the job again"):
        Evaluator(plan, archive, keys[: len(keys) // 2])
    row = cipher.encrypt(STYLE_PIXELS, STYLE).rows[0]
    with pytest.raises(CircuitError, match="style_stem refused"):
        evaluator.run("style_stem", [row, row, row[: len(row) // 2]])
    with pytest.raises(CircuitError, match="style_stem refused"):
        evaluator.run("style_stem", [row, row])
    with pytest.raises(CircuitError, match="style_body refused"):
        evaluator.run("style_body", [row, row, row])
