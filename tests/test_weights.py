"""Weights and the card beside them: what is loaded is what was trained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from nst.engines import get_engine
from nst.errors import CircuitError
from nst.network.levels import WEIGHTS
from nst.network.weight_files import engine_of
from nst.network.weights import load_weights
from tests.toy import toy_weights

SHIPPED = sorted(WEIGHTS.glob("*.safetensors"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_weights_are_those_of_their_cards(path: Path) -> None:
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    get_engine(engine_of(path)).load_network(path)


def test_there_are_shipped_weights() -> None:
    assert {"ckks", "draft", "low"} <= {path.stem for path in SHIPPED}
    assert sorted(p.stem for p in WEIGHTS.glob("*.json")) == [p.stem for p in SHIPPED]


def refused(path: Path) -> str:
    with pytest.raises(CircuitError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message and str(path.with_suffix(".json")) in message
    return message


def test_weights_of_another_card_are_refused(tmp_path: Path) -> None:
    mine = toy_weights(tmp_path / "mine.safetensors")
    other = toy_weights(tmp_path / "other.safetensors", seed=1)
    load_weights(mine)
    mine.write_bytes(other.read_bytes())
    assert "SHA-256" in refused(mine)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"sha256": null}', "\xff"])
def test_a_damaged_card_is_refused(text: str, tmp_path: Path) -> None:
    path = toy_weights(tmp_path / "toy.safetensors")
    path.with_suffix(".json").write_bytes(text.encode("latin-1"))
    refused(path)


def test_weights_without_a_card_are_taken_as_they_are(tmp_path: Path) -> None:
    path = toy_weights(tmp_path / "toy.safetensors")
    path.with_suffix(".json").unlink()
    load_weights(path)
