"""The leveled engine through its seam: what is decrypted is what the clear integers say."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import _sealapi_cpp as sealapi
import numpy as np
import pytest

from nst.ciphertext import Envelope, most_bytes
from nst.engines import get_engine, parse_plan
from nst.engines.base import (
    CLIENT_FILE,
    PLAN_FILE,
    SERVER_FILE,
    Features,
    KeyPair,
    PreparedContent,
    PreparedStyle,
    Published,
)
from nst.engines.ckks import CkksEngine, preparation
from nst.engines.ckks.client import LeveledCipher, make_keys
from nst.engines.ckks.network import LeveledArchitecture, LeveledNetwork
from nst.engines.ckks.parameters import Parameters
from nst.engines.ckks.plan import LeveledPlan
from nst.engines.ckks.residues import Ring, join, split
from nst.engines.ckks.server import CLIENT_NAMES, LeveledEvaluator
from nst.engines.rates import rates_of
from nst.errors import CircuitError, InputError
from nst.keyring import KeyRing
from nst.pictures.size import Size
from tests.leveled_toy import (
    QUICK,
    TOY_ENGINE,
    decibels,
    publish_leveled,
    random_leveled,
    toy_picture,
)

ROOT = Path(__file__).resolve().parent.parent
SIZE, SIDE, KEY = Size(56, 72), 64, "k" * 16
LARGE = Size(440, 400)
"""So large that a picture takes several tiles, and more than share a ciphertext."""


@pytest.fixture(scope="module")
def network() -> LeveledNetwork:
    return random_leveled()


@pytest.fixture(scope="module")
def published(network: LeveledNetwork, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish_leveled(network, SIZE, SIDE, tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def keys(published: Published) -> KeyPair:
    return make_keys(published.client_bundle)


@pytest.fixture(scope="module")
def cipher(published: Published, keys: KeyPair) -> LeveledCipher:
    return LeveledCipher(published, KEY, keys.secret)


@pytest.fixture(scope="module")
def evaluator(published: Published, keys: KeyPair) -> LeveledEvaluator:
    return load(published, keys)


def load(published: Published, keys: KeyPair) -> LeveledEvaluator:
    plan = published.plan
    assert isinstance(plan, LeveledPlan)
    return LeveledEvaluator(plan, published.server_bundle.read_bytes(), keys.evaluation)


def prepared(
    network: LeveledNetwork,
    size: Size,
    seed: int,
    engine: CkksEngine = TOY_ENGINE,
    side: int = SIDE,
) -> tuple[PreparedContent, PreparedStyle]:
    style = engine.prepare_style(network, toy_picture(Size.square(side), 100 + seed))
    return engine.prepare_content(network, toy_picture(size, seed), style), style


def computed(
    evaluator: LeveledEvaluator, plan: LeveledPlan, content: Envelope, style: Envelope
) -> list[bytes]:
    """Packed parts of a result, as a job stores them."""
    code = evaluator.run("style", style.parts)
    made = (evaluator.run("content", [part, code]) for part in content.parts)
    return [plan.pack_result(KEY, part).pack() for part in made]


@pytest.fixture(scope="module")
def pairs(network: LeveledNetwork) -> list[tuple[PreparedContent, PreparedStyle]]:
    made = [prepared(network, SIZE, seed) for seed in range(2)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(preparation, "CONTRASTS", (0.7,))
        return [*made, prepared(network, SIZE, 2)]


@pytest.fixture(scope="module")
def result(
    evaluator: LeveledEvaluator,
    cipher: LeveledCipher,
    published: Published,
    pairs: list[tuple[PreparedContent, PreparedStyle]],
) -> list[bytes]:
    """Of the first pair by itself."""
    content, style = pairs[0]
    sealed_content, sealed_style = cipher.encrypt_all([[content.input], [style.input]])
    return computed(evaluator, published.plan, sealed_content, sealed_style)


def assert_close(clear: Features, decrypted: Features, least: float = 44) -> None:
    # The small ring gives 48 to 57 dB, by key set: its rounding is multiplied by the key.
    assert clear.shape == decrypted.shape
    assert decibels(clear, decrypted) > least
    # Nowhere a seam, be it of one value.
    assert np.abs(clear - decrypted).max() < 0.05 * clear.std()


def test_a_decrypted_result_is_its_preview(
    cipher: LeveledCipher,
    result: list[bytes],
    pairs: list[tuple[PreparedContent, PreparedStyle]],
) -> None:
    features = cipher.decrypt_result(result, "the result")[0]
    assert features.dtype == np.float32
    assert_close(pairs[0][0].features, features)
    assert decibels(pairs[1][0].features, features) < 10


def test_pairs_that_share_ciphertexts_keep_their_own_style(
    evaluator: LeveledEvaluator,
    cipher: LeveledCipher,
    published: Published,
    pairs: list[tuple[PreparedContent, PreparedStyle]],
) -> None:
    contents, styles = cipher.encrypt_all(
        [[content.input for content, _ in pairs], [style.input for _, style in pairs]]
    )
    parts = computed(evaluator, published.plan, contents, styles)
    decrypted = cipher.decrypt_result(parts, "the batch")[: len(pairs)]
    for (content, _), features in zip(pairs, decrypted, strict=True):
        assert_close(content.features, features)


def test_a_style_by_itself_serves_contents_that_share_ciphertexts(
    network: LeveledNetwork,
    evaluator: LeveledEvaluator,
    cipher: LeveledCipher,
    published: Published,
    pairs: list[tuple[PreparedContent, PreparedStyle]],
) -> None:
    style = pairs[2][1]
    every = [
        TOY_ENGINE.prepare_content(network, content.input.picture, style) for content, _ in pairs
    ]
    parts = computed(
        evaluator,
        published.plan,
        *cipher.encrypt_all([[content.input for content in every], [style.input]]),
    )
    for content, features in zip(every, cipher.decrypt_result(parts, "it")[:3], strict=True):
        assert_close(content.features, features)


def test_a_large_picture_has_no_seams(network: LeveledNetwork, tmp_path: Path) -> None:
    published = publish_leveled(network, LARGE, SIDE, tmp_path / "large")
    plan = published.plan
    assert isinstance(plan, LeveledPlan)
    assert (plan.tiles, plan.parts) == (4, 2)
    keys = make_keys(published.client_bundle)
    cipher = LeveledCipher(published, KEY, keys.secret)
    content, style = prepared(network, LARGE, 7)
    sealed_content, sealed_style = cipher.encrypt_all([[content.input], [style.input]])
    parts = computed(load(published, keys), plan, sealed_content, sealed_style)
    assert_close(content.features, cipher.decrypt_result(parts, "the result")[0])

    with pytest.raises(CircuitError, match="it has 1 parts, not 2; submit the pair again"):
        cipher.decrypt_result(parts[:1], "it")
    with pytest.raises(CircuitError, match="it has 3 parts, not 2; submit the pair again"):
        cipher.decrypt_result([*parts, parts[0]], "it")


def test_sizes_are_those_of_the_plan(
    published: Published,
    keys: KeyPair,
    cipher: LeveledCipher,
    evaluator: LeveledEvaluator,
    result: list[bytes],
    pairs: list[tuple[PreparedContent, PreparedStyle]],
) -> None:
    plan = published.plan
    content, style = cipher.encrypt_all([[pairs[0][0].input], [pairs[0][1].input]])
    stored = plan.stored
    assert (len(content.parts), len(style.parts)) == (stored.content_parts, stored.style_parts)
    assert stored.content_part == pytest.approx(len(content.parts[0]), rel=0.01)
    assert stored.style_part == pytest.approx(len(style.parts[0]), rel=0.01)
    assert stored.result_part == pytest.approx(len(result[0]), rel=0.02)
    assert plan.evaluation_key_bytes == pytest.approx(len(keys.evaluation), rel=0.01)
    for envelope, part in ((content, stored.content_part), (style, stored.style_part)):
        assert len(envelope.pack()) < most_bytes(len(envelope.parts), part)
    code = evaluator.run("style", style.parts)
    (style_task,) = [t for t in graph_of(plan).tasks if t.stage == "style"]
    assert style_task.output_bytes == pytest.approx(len(code), rel=0.01)


@dataclasses.dataclass(frozen=True)
class Ids:
    pair_id: str
    content: str
    style: str
    result: str


def graph_of(plan: object, pairs: Sequence[Ids] = (Ids("a", "c", "s", "a"),)):
    assert isinstance(plan, LeveledPlan)
    return plan.graph(pairs, {"style": 2.0, "content": 1.0})


def test_the_graph_has_a_task_per_style_and_part(published: Published) -> None:
    plan = published.plan.at(LARGE)
    pairs = [Ids("a", "c", "s", "a"), Ids("b", "d", "s", "b"), Ids("e", "c", "t", "e")]
    graph = graph_of(plan, pairs)
    assert plan.parts > 1
    assert [t.stage for t in graph.tasks].count("style") == 2
    assert graph.seconds == 2 * 2 + 3 * plan.parts
    for pair in pairs:
        made = [graph.tasks[index] for index in graph.outputs[pair.pair_id]]
        assert [t.part for t in made] == list(range(plan.parts))
        for task in made:
            source, code = task.sources
            assert source == dataclasses.replace(source, input_id=pair.content, part=task.part)
            assert graph.tasks[code].group == f"style:{pair.style}"
            assert graph.tasks[code].checkpoint
    assert graph.pairs_of["style:s"] == ("a", "b")


def test_a_plan_is_read_as_it_was_written(published: Published) -> None:
    plan = published.plan
    written = (published.folder / PLAN_FILE).read_bytes()
    assert parse_plan(written, "the plan") == plan
    assert plan.runtime == get_engine("ckks").runtime == "tenseal 0.3.18"
    record = json.loads(written)
    for changed, message in (
        ({"format": 0}, "format 0, this version of ckks reads 1"),
        ({"layout": {}}, "plan is damaged"),
        ({"parameters": {**record["parameters"], "special_bits": 60}}, "bears 218 at 128-bit"),
    ):
        with pytest.raises(CircuitError, match=message):
            parse_plan(json.dumps({**record, **changed}).encode(), "the plan")
    with pytest.raises(CircuitError, match="contents of 60 x 60 are not padded; give 64 x 64"):
        plan.at(Size(60, 60))


def test_what_is_no_result_is_refused_in_one_line(
    cipher: LeveledCipher, published: Published, keys: KeyPair, result: list[bytes]
) -> None:
    envelope = Envelope.unpack(result[0], "it")

    def refused(part: bytes, message: str, key: str = KEY, by: LeveledCipher = cipher) -> None:
        packed = Envelope(key, published.plan.model_id, (part,)).pack()
        with pytest.raises(CircuitError, match=message) as caught:
            by.decrypt_result([packed], "it")
        assert "\n" not in str(caught.value)

    good = envelope.parts[0]
    refused(good, "was made under key other", key="other")
    refused(good[:-1], "part 0 of it does not hold 4 ciphertexts")
    refused(b"", "part 0 of it does not hold 4 ciphertexts")
    channels = [bytes(channel) for channel in split(good, 4, "it")]
    refused(join([*channels[:3], b"\0" * len(channels[3])]), "part 0 of it cannot be read")
    # The next two are what decrypts to noise: another key's, and values beyond the first prime.
    other = LeveledCipher(published, KEY, make_keys(published.client_bundle).secret)
    refused(good, "part 0 of it is out of bounds", by=other)
    ring = Ring(QUICK)
    secret = ring.load(sealapi.SecretKey, keys.secret, "the key")
    plain, made = sealapi.Plaintext(), sealapi.Ciphertext()
    far = np.full(QUICK.slots, 0.7 * QUICK.primes[0]) * np.random.default_rng(0).choice(
        [-1, 1], QUICK.slots
    )
    sealapi.CKKSEncoder(ring.context).encode(far * 40, ring.level(2), 1.0, plain)
    sealapi.Encryptor(ring.context, secret).encrypt_symmetric(plain, made)
    sealapi.Evaluator(ring.context).mod_switch_to_next_inplace(made)
    refused(join([ring.dump(made), *channels[1:]]), "its values left the modulus")
    with pytest.raises(CircuitError, match="was made by model"):
        cipher.decrypt_result([Envelope(KEY, "m" * 16, (good,)).pack()], "it")
    with pytest.raises(CircuitError, match="it has 0 parts, not 1"):
        cipher.decrypt_result([], "it")


def test_inputs_that_do_not_fit_are_refused_in_one_line(
    evaluator: LeveledEvaluator,
    cipher: LeveledCipher,
    pairs: list[tuple[PreparedContent, PreparedStyle]],
) -> None:
    content, style = cipher.encrypt_all([[pairs[0][0].input], [pairs[0][1].input]])
    for stage, inputs, message in (
        ("style", [content.parts[0]], "the style is no input of this stage"),
        ("style", [style.parts[0][:-1]], "the style does not hold 48 ciphertexts"),
        ("content", [content.parts[0], content.parts[0]], "does not hold 4 ciphertexts"),
        ("content", [content.parts[0]], "stage content refused its ciphertexts"),
        ("stem", [content.parts[0]], "has no stage 'stem'"),
    ):
        with pytest.raises(CircuitError, match=message) as caught:
            evaluator.run(stage, inputs)
        assert "\n" not in str(caught.value)


def test_keys_and_models_of_others_are_refused(
    published: Published, keys: KeyPair, network: LeveledNetwork, tmp_path: Path
) -> None:
    plan = published.plan
    assert isinstance(plan, LeveledPlan)
    bundle = published.server_bundle.read_bytes()
    for evaluation, message in (
        (b"keys of another engine", "the evaluation keys does not hold 2 ciphertexts"),
        (keys.evaluation[:-9], "the evaluation keys does not hold 2"),
        (join([b"", b""]), "the relinearization key cannot be read"),
    ):
        with pytest.raises(CircuitError, match=message):
            LeveledEvaluator(plan, bundle, evaluation)
    with pytest.raises(CircuitError, match=f"model {plan.model_id} is damaged"):
        LeveledEvaluator(plan, bundle[:500], keys.evaluation)
    with pytest.raises(CircuitError, match=f"secret key {KEY} cannot be read"):
        LeveledCipher(published, KEY, b"a secret of another engine")

    wide = publish_leveled(network, LARGE, SIDE, tmp_path / "wide")
    with pytest.raises(CircuitError, match=r"lack \d rotations of model .*; make keys for it"):
        load(wide, keys)
    engine = CkksEngine(dataclasses.replace(QUICK, special_bits=39))
    other = publish_leveled(network, SIZE, SIDE, tmp_path / "other", engine)
    with pytest.raises(CircuitError, match="the relinearization key cannot be read"):
        load(other, keys)
    (wide.folder / CLIENT_FILE).write_bytes(b"PK damaged")
    with pytest.raises(CircuitError, match=r"wide is damaged .*; publish it again"):
        make_keys(wide.client_bundle)


def test_a_pair_whose_values_leave_the_modulus_is_not_submitted(network: LeveledNetwork) -> None:
    loud = dataclasses.replace(
        network,
        content=(
            dataclasses.replace(network.content[0], bias=network.content[0].bias + 40),
            network.content[1],
        ),
    )
    with pytest.raises(InputError, match="values would leave the modulus"):
        prepared(loud, SIZE, 0)


def test_a_content_of_too_much_contrast_is_given_less(network: LeveledNetwork) -> None:
    first = network.content[0]
    steep = dataclasses.replace(first, weight=first.weight * 8)
    loud = dataclasses.replace(network, content=(steep, network.content[1]))
    content, _ = prepared(loud, SIZE, 0)
    assert content.input.contrast == 0.7


def test_ciphertexts_say_nothing_twice(
    cipher: LeveledCipher, pairs: list[tuple[PreparedContent, PreparedStyle]]
) -> None:
    once, again = cipher.encrypt_all([[pairs[0][0].input]] * 2)
    first, second = ([bytes(each) for each in split(e.parts[0], 48, "it")] for e in (once, again))
    assert len({*first, *second}) == 96


def test_what_a_run_adds_is_what_is_simulated(
    network: LeveledNetwork,
    cipher: LeveledCipher,
    result: list[bytes],
    pairs: list[tuple[PreparedContent, PreparedStyle]],
    published: Published,
) -> None:
    content, style = pairs[0]
    level = None  # CKKS has no error probability
    rng = np.random.default_rng(0)
    simulated = TOY_ENGINE.simulate(network, level, content, style, rng)  # type: ignore[arg-type]
    ran = decibels(content.features, cipher.decrypt_result(result, "it")[0])
    # Keys and noise are drawn anew each time.
    assert decibels(content.features, simulated) == pytest.approx(ran, abs=10)


def test_a_key_ring_and_rates_take_this_engine(published: Published, tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys")
    card = ring.create(published, "toy")
    assert (card.engine, card.model_id) == ("ckks", published.plan.model_id)
    assert isinstance(ring.cipher(card.key_id, published), LeveledCipher)
    seconds = get_engine("ckks").rates().seconds(published.plan.stages)
    assert rates_of(published.plan.stages, seconds).keys() == {"style", "content"}


def test_a_sealed_process_evaluates_and_has_no_client_code(
    published: Published,
    keys: KeyPair,
    cipher: LeveledCipher,
    pairs: list[tuple[PreparedContent, PreparedStyle]],
    tmp_path: Path,
) -> None:
    content, style = pairs[0]
    sealed_content, sealed_style = cipher.encrypt_all([[content.input], [style.input]])
    for name, data in (
        ("keys", keys.evaluation),
        ("content", sealed_content.parts[0]),
        ("style", sealed_style.parts[0]),
    ):
        (tmp_path / name).write_bytes(data)
    code = """
import importlib, json, sys
from pathlib import Path
from nst.sealing import seal
seal()
from nst.engines import get_engine, parse_plan
folder, here = map(Path, sys.argv[1:])
plan = parse_plan((folder / "plan.json").read_bytes(), "the plan")
read = {name: (here / name).read_bytes() for name in ("keys", "content", "style")}
evaluator = get_engine("ckks").load(plan, (folder / "server.zip").read_bytes(), read["keys"])
code = evaluator.run("style", [read["style"]])
(here / "result").write_bytes(evaluator.run("content", [read["content"], code]))
refused = []
for name in ("tenseal", "tenseal.sealapi", "_tenseal_cpp", "nst.engines.ckks.client"):
    try:
        importlib.import_module(name)
    except ImportError:
        refused.append(name)
import _sealapi_cpp
print(json.dumps([len(refused), dir(_sealapi_cpp)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(published.folder), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refused, left = json.loads(done.stdout)
    assert refused == 4
    assert set(CLIENT_NAMES) <= set(dir(sealapi))
    assert set(CLIENT_NAMES).isdisjoint(left)
    suspicious = ("Secret", "Encryptor", "Decryptor", "KeyGenerator", "PublicKey")
    assert not [name for name in left if any(word in name for word in suspicious)]
    packed = published.plan.pack_result(KEY, (tmp_path / "result").read_bytes()).pack()
    assert_close(content.features, cipher.decrypt_result([packed], "it")[0])


def test_a_machine_without_an_engine_seals_the_others() -> None:
    code = """
import sys
sys.modules["_sealapi_cpp"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "_sealapi_cpp" else find(name)
from nst.sealing import seal
seal()
import concrete.compiler
assert not hasattr(concrete.compiler, "Keyset")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_server_bundles_hold_no_last_layer(published: Published) -> None:
    with np.load(published.folder / SERVER_FILE) as arrays:
        names = set(arrays)
    assert not [name for name in names if "head" in name or "skip" in name]


@pytest.mark.slow
def test_the_parameters_that_ship(tmp_path: Path) -> None:
    """All levels at real parameters, with few channels."""
    architecture = LeveledArchitecture(channels=8, up=2, style=(8, 8), code=8)
    network, size = random_leveled(architecture), Size(96, 88)
    engine = CkksEngine(Parameters())
    published = publish_leveled(network, size, SIDE, tmp_path / "model", engine)
    keys = make_keys(published.client_bundle)
    cipher = LeveledCipher(published, KEY, keys.secret)
    pairs = [prepared(network, size, seed, engine) for seed in (1, 2)]
    parts = computed(
        load(published, keys),
        published.plan,
        *cipher.encrypt_all(
            [[content.input for content, _ in pairs], [style.input for _, style in pairs]]
        ),
    )
    for (content, _), features in zip(pairs, cipher.decrypt_result(parts, "it")[:2], strict=True):
        assert_close(content.features, features)
