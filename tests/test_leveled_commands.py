"""Engine `ckks` on the command line: the same commands, another engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nst.engines import ENGINES
from nst.network import levels
from tests.command_line import refused, run
from tests.leveled_toy import TOY_ENGINE, random_leveled
from tests.toy import offer_toy, toy_weights
from tests.user_pairs import folder_of

NAMES = ["lake", "sea", "wood"]
CKKS = ("--quality", "toy", "--engine", "ckks")


@pytest.fixture(autouse=True)
def leveled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "leveled.safetensors"
    random_leveled().save(weights, {})
    offer_toy(monkeypatch, toy_weights(tmp_path / "toy.safetensors"), tmp_path / "home")
    monkeypatch.setitem(levels.ONE_FOR_ALL, "ckks", weights)
    monkeypatch.setitem(ENGINES, "ckks", TOY_ENGINE)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "pairs", NAMES)


def test_previews_are_of_the_other_network(pairs: Path, tmp_path: Path) -> None:
    pictures = []
    for engine in ("concrete", "ckks"):
        out = tmp_path / engine
        chosen = ("--quality", "toy", "--engine", engine, "--size", "64x48")
        done = run("preview", pairs, *chosen, "--out", out)
        assert done.exit_code == 0, done.output
        pictures.append(np.asarray(Image.open(out / "lake.png"), dtype=float))
    first, second = pictures
    assert first.shape == second.shape == (48, 64, 3)
    assert np.abs(first - second).mean() > 3


def test_what_it_costs_is_told_before_anything_is_encrypted(pairs: Path) -> None:
    told = run("submit", pairs, *CKKS, "--actors", "2", "--dry-run", "--json")
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout)
    assert (record["pairs"], record["styles"]) == (3, 1)
    # Three pairs share ciphertexts: one set goes up, one comes down.
    inspected = json.loads(run("circuits", "inspect", *CKKS, "--json").stdout)
    assert inspected["pairs_per_ciphertext"] >= 3
    assert record["bytes_up"] == inspected["content_bytes"] + inspected["style_bytes"]
    assert record["bytes_down"] == inspected["result_bytes"]
    shown = run("circuits", "inspect", *CKKS)
    assert "prime_bits               29, 36, 36, 24, 20, 33, 40" in shown.stdout


def test_wrong_engines_and_weights_are_refused_in_one_line(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(run("preview", pairs, "--engine", "magic", "--out", "x"), "no engine 'magic'")
    monkeypatch.setitem(levels.ONE_FOR_ALL, "ckks", tmp_path / "toy.safetensors")
    refused(run("preview", pairs, *CKKS, "--out", "x"), "are of engine concrete, not ckks")
    monkeypatch.setitem(levels.ONE_FOR_ALL, "ckks", tmp_path / "none.safetensors")
    refused(run("preview", pairs, *CKKS, "--out", "x"), "quality level 'toy' has no weights")
