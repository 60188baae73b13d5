"""A client makes no keys by parameters that hide too little, or that would take its memory."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nst.engines import get_engine
from nst.engines.base import CLIENT_FILE, Published
from nst.engines.ckks.client import MOST_ELEMENTS, ClientBundle, LeveledCipher, make_keys
from nst.engines.concrete.publish import SPECS_FILE
from nst.engines.concrete.security import BOOTSTRAP, KEYSWITCH, SECRET, require_secure
from nst.errors import CircuitError
from nst.pictures.size import Size
from tests.leveled_toy import publish_leveled, random_leveled

Specs = dict[str, Any]


@pytest.fixture
def specs(published: Published) -> Specs:
    """What the toy's clients get of its circuits."""
    with zipfile.ZipFile(published.client_bundle) as archive:
        loaded: Specs = json.loads(archive.read(SPECS_FILE))
    return loaded


def encryption(specs: Specs) -> dict[str, Any]:
    found: dict[str, Any] = specs["circuits"][0]["inputs"][0]["typeInfo"]["lweCiphertext"]
    return found["encryption"]  # type: ignore[no-any-return]


def test_circuits_of_ours_are_secure(specs: Specs) -> None:
    require_secure(json.dumps(specs).encode(), "the toy")


INSECURE: dict[str, Callable[[Specs], object]] = {
    "an input without noise": lambda s: encryption(s).update(variance=0.0),
    "an input with too little": lambda s: encryption(s).update(
        variance=encryption(s)["variance"] / 4
    ),
    "an input of another dimension": lambda s: encryption(s).update(lweDimension=9000),
    "evaluation keys with too little": lambda s: s["keyset"][KEYSWITCH][0]["params"].update(
        variance=1e-30
    ),
    "a bootstrapping key of a part of its key": lambda s: s["keyset"][BOOTSTRAP][0][
        "params"
    ].update(glweDimension=1, polynomialSize=64),
    "a bootstrapping key of nothing": lambda s: s["keyset"][BOOTSTRAP][0]["params"].update(
        variance=-1.0
    ),
    "a small key": lambda s: [
        key["params"].update(lweDimension=100) for key in s["keyset"][SECRET]
    ],
    "a key that is not binary": lambda s: s["keyset"][SECRET][0]["params"].update(keyType="zero"),
    "a kind of keys that is not known": lambda s: s["keyset"].update(packingKeyswitchKeys=[{}]),
}


@pytest.mark.parametrize("change", INSECURE.values(), ids=INSECURE)
def test_less_security_is_refused(specs: Specs, change: Callable[[Specs], object]) -> None:
    changed = copy.deepcopy(specs)
    change(changed)
    with pytest.raises(CircuitError, match="less than 128 bits of security; do not use it"):
        require_secure(json.dumps(changed).encode(), "an offer")


SENSELESS: dict[str, Callable[[Specs], object]] = {
    "no keys": lambda s: s.pop("keyset"),
    "a key without end": lambda s: s["keyset"][SECRET][0]["params"].update(lweDimension=2**40),
    "a dimension that is no number": lambda s: s["keyset"][SECRET][0]["params"].update(
        lweDimension="many"
    ),
    "levels without end": lambda s: s["keyset"][BOOTSTRAP][0]["params"].update(levelCount=60_000),
    "no noise at all": lambda s: encryption(s).pop("variance"),
}


@pytest.mark.parametrize("change", SENSELESS.values(), ids=SENSELESS)
def test_what_cannot_be_judged_is_refused(specs: Specs, change: Callable[[Specs], object]) -> None:
    changed = copy.deepcopy(specs)
    change(changed)
    with pytest.raises(CircuitError, match="its parameters cannot be read; do not use it"):
        require_secure(json.dumps(changed).encode(), "an offer")
    for blob in (b"", b"[]", b"[" * 100_000):
        with pytest.raises(CircuitError, match="cannot be read"):
            require_secure(blob, "an offer")


def test_keys_are_not_made_for_them(specs: Specs, tmp_path: Path) -> None:
    encryption(specs).update(variance=0.0)
    with zipfile.ZipFile(tmp_path / CLIENT_FILE, "w") as archive:
        archive.writestr(SPECS_FILE, json.dumps(specs))
    with pytest.raises(CircuitError, match="less than 128 bits"):
        get_engine("concrete").make_keys(tmp_path / CLIENT_FILE)


@pytest.fixture(scope="module")
def leveled(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("models") / "leveled"
    return publish_leveled(random_leveled(), Size(56, 72), 64, folder)


def changed_bundle(published: Published, folder: Path, **arrays: object) -> Path:
    """A leveled client bundle with other arrays."""
    with np.load(published.client_bundle) as known:
        every = {**{name: known[name] for name in known.files}, **arrays}
    folder.mkdir()
    with (folder / CLIENT_FILE).open("wb") as file:
        np.savez_compressed(file, **every)  # type: ignore[arg-type]
    return folder / CLIENT_FILE


def test_leveled_bundles_are_bounded(leveled: Published, tmp_path: Path) -> None:
    bundle = ClientBundle.read(leveled.client_bundle)
    record = bundle.parameters.to_dict()
    many = (record["special_bits"],) * 200

    def parameters(**lie: object) -> dict[str, object]:
        return {"parameters": np.array(json.dumps({**record, **lie}))}

    lies: list[tuple[dict[str, object], str]] = [
        ({"elements": np.arange(MOST_ELEMENTS + 1)}, "too many rotations"),
        ({"gain": np.zeros(1 << 18)}, "too large"),
        (parameters(first_bits=10), "CKKS primes have"),
        (parameters(first_bits=record["first_bits"] - 1.5), "is damaged"),
        (parameters(level_bits=many), "at 128-bit security"),
        (parameters(degree=1000), "ring degree 1000"),
    ]
    for number, (lie, message) in enumerate(lies):
        with pytest.raises(CircuitError, match=message):
            make_keys(changed_bundle(leveled, tmp_path / str(number), **lie))


def test_bundle_and_plan_name_the_same_parameters(leveled: Published, tmp_path: Path) -> None:
    bundle = ClientBundle.read(leveled.client_bundle)
    keys = make_keys(leveled.client_bundle)
    other = {**bundle.parameters.to_dict(), "value_bits": 1 + bundle.parameters.value_bits}
    path = changed_bundle(leveled, tmp_path / "o", parameters=np.array(json.dumps(other)))
    with pytest.raises(CircuitError, match="other parameters"):
        LeveledCipher(Published(path.parent, leveled.plan), "k" * 16, keys.secret)
