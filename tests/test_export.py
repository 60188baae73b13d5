"""Checkpoints become weights only if their circuits keep to the budget."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from nst.engines.base import Published
from nst.engines.cache import ModelCache
from nst.engines.ckks import CkksEngine
from nst.engines.ckks.network import LeveledNetwork
from nst.engines.concrete.plan import CircuitPlan
from nst.engines.concrete.preparation import prepare_content, prepare_style
from nst.engines.concrete.publish import model_id
from nst.folders import HOME_VARIABLE, Folders
from nst.network import levels
from nst.network.architecture import LEVEL
from nst.network.finishing import finish
from nst.network.integers import IntegerNetwork
from nst.network.levels import QualityLevel
from nst.network.weights import load_weights
from nst.pictures.picture import Picture
from nst.training import validation
from nst.training.checkpoint import Checkpoint
from nst.training.leveled import LeveledStyleTransfer
from nst.training.network import StyleTransfer
from tests.command_line import refused, run
from tests.leveled_toy import random_leveled
from tests.toy import TOY, TOY_P_ERROR, TOY_SIZE, toy_level
from tests.training_data import LEVELED, SIZES, make_pictures


@pytest.fixture(autouse=True)
def offered(models: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A level without weights, and a home whose models are those of the other tests."""
    monkeypatch.setitem(levels.LEVELS, "toy", toy_level(tmp_path / "none.safetensors"))
    home = Folders(tmp_path / "home")
    home.models.parent.mkdir()
    home.models.symlink_to(models.folder)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))


def state_of(network: IntegerNetwork) -> dict[str, Any]:
    """A checkpoint of training that has arrived at these integers."""
    trained = StyleTransfer(network.architecture)
    with torch.no_grad():
        for name, stage in network.stages.items():
            layer = trained.stages[name]
            layer.conv.weight.copy_(torch.from_numpy(stage.weight) / LEVEL)
            layer.bias.copy_(torch.from_numpy(stage.bias) / LEVEL)
            if stage.modulation is not None:
                layer.modulation.weight.copy_(torch.from_numpy(stage.modulation) / LEVEL)
        trained.head.weight.copy_(torch.from_numpy(network.head_weight))
        trained.head.bias.copy_(torch.from_numpy(network.head_bias))
        trained.skip.copy_(torch.from_numpy(network.skip))
    return {
        "network": trained.state_dict(),
        "optimizer": torch.optim.Adam(trained.parameters()).state_dict(),
        "step": 20,
        "seconds": 90.0,
        "options": {"size": TOY_SIZE, "lr": 1e-3},
        "architecture": network.architecture.to_dict(),
        "validation": {"content": 0.5, "style": 0.6, "grain": 0.7},
    }


def write(path: Path, state: Any) -> Path:
    if isinstance(state, dict):
        Checkpoint(**state).write(path)
    else:
        torch.save(state, path)
    return path


def export(*arguments: str | Path) -> Result:
    return run("export", *arguments, "--quality", "toy", "--data", "toy pictures")


def made_nothing(result: Result, out: Path, *words: str) -> None:
    refused(result, *words)
    assert not list(out.parent.glob("made*"))


def test_export_writes_weights_with_a_card(
    network: IntegerNetwork, published: Published, tmp_path: Path
) -> None:
    state = state_of(network)
    first = write(tmp_path / "first.ckpt", {**state, "step": 5, "seconds": 30.0})
    last = write(tmp_path / "last.ckpt", state)
    out = tmp_path / "made.safetensors"
    result = export(first, last, "--out", out)
    assert result.exit_code == 0, result.output

    made = load_weights(out)
    for name, stage in network.stages.items():
        np.testing.assert_array_equal(made.stages[name].weight, stage.weight)
        np.testing.assert_array_equal(made.stages[name].bias, stage.bias)
    card = json.loads(out.with_suffix(".json").read_text())
    plan = published.plan
    assert isinstance(plan, CircuitPlan)
    pbs = plan.pbs_style + plan.pbs_content
    assert card["circuits"] == {
        "pbs_per_pair": pbs,
        "pbs_per_pixel": round(pbs / TOY_SIZE**2, 3),
        "operations_per_pair": plan.operations_per_pair,
        "mops_per_pbs": round(plan.operations_per_pair / pbs / 1e6, 2),
        "p_error": plan.p_error,
    }
    assert card["circuits"]["p_error"] == pytest.approx(TOY_P_ERROR, rel=0.5)
    assert f"{pbs:,} PBS" in result.output
    assert card["size"] == TOY_SIZE and card["architecture"] == TOY.to_dict()
    assert card["steps"] == 25 and card["training_minutes"] == 2.0
    assert [r["steps"] for r in card["runs"]] == [5, 20]
    assert card["validation"] == state["validation"] and card["data"] == "toy pictures"
    assert card["checkpoint_sha256"] == hashlib.sha256(last.read_bytes()).hexdigest()
    assert card["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()


def test_weights_of_another_level_are_carried_over(network: IntegerNetwork, tmp_path: Path) -> None:
    first = tmp_path / "first.safetensors"
    checkpoint = write(tmp_path / "last.ckpt", state_of(network))
    assert export(checkpoint, "--out", first, "--strength", "0.5").exit_code == 0
    before = json.loads(first.with_suffix(".json").read_text())
    # Twice the size at twice the stride: the same style branch, four times the content.
    level = QualityLevel("twice", 2 * TOY_SIZE, tmp_path / "none", TOY_P_ERROR, {"style_stride": 2})
    levels.LEVELS["twice"] = level
    try:
        out = tmp_path / "made.safetensors"
        arguments = ["export", str(first), "--quality", "twice", "--out", str(out)]
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        card, made, old = (
            json.loads(out.with_suffix(".json").read_text()),
            *map(load_weights, (out, first)),
        )
        again = run(*arguments, "--strength", "0.5")
        assert again.exit_code == 0
        assert json.loads(out.with_suffix(".json").read_text())["strength"] == 0.25
    finally:
        del levels.LEVELS["twice"]
    assert made.architecture == replace(TOY, style_stride=2)
    assert made.stages["style_stem"].stage.stride == 2
    for name, stage in old.stages.items():
        np.testing.assert_array_equal(made.stages[name].weight, stage.weight)
    np.testing.assert_array_equal(made.head_weight, old.head_weight)
    assert card["carried_over_from"] == {
        "weights": "first.safetensors",
        "size": TOY_SIZE,
        "sha256": before["sha256"],
    }
    for key in ("steps", "runs", "data", "strength", "checkpoint_sha256"):
        assert card[key] == before[key]
    assert card["validation"] is None and card["size"] == 2 * TOY_SIZE
    assert card["circuits"]["pbs_per_pair"] < 4 * before["circuits"]["pbs_per_pair"]


@pytest.mark.parametrize("touch", ["octaves", "lattice"])
def test_weights_are_exported_again_with_another_last_touch(
    touch: str, network: IntegerNetwork, tmp_path: Path
) -> None:
    """What was measured in training stays true, circuits stay the same, and pictures change."""
    first, out = tmp_path / "first.safetensors", tmp_path / "made.safetensors"
    assert export(write(tmp_path / "last.ckpt", state_of(network)), "--out", first).exit_code == 0
    result = export(first, f"--{touch}", "0.5", "--out", out)
    assert result.exit_code == 0, result.output
    before, card = (json.loads(p.with_suffix(".json").read_text()) for p in (first, out))
    assert (before[touch], card[touch]) == (0.0, 0.5)
    assert card["validation"] == before["validation"] and "carried_over_from" not in card
    old, made = load_weights(first), load_weights(out)
    ids = {model_id(n, TOY_SIZE, TOY_SIZE, TOY_P_ERROR) for n in (old, made)}
    assert len(ids) == 1
    rng = np.random.default_rng(1)
    content, style = (
        Picture(rng.random((3, TOY_SIZE, TOY_SIZE), dtype=np.float32)) for _ in range(2)
    )
    prepared = prepare_content(old, content, prepare_style(old, style))
    plain, matched = (finish(n, content, style, prepared.features) for n in (old, made))
    assert np.abs(plain - matched).max() > 0.01


def test_weights_that_cannot_be_carried_over_are_refused(
    network: IntegerNetwork, tmp_path: Path
) -> None:
    first, out = tmp_path / "first.safetensors", tmp_path / "made.safetensors"
    checkpoint = write(tmp_path / "last.ckpt", state_of(network))
    assert export(checkpoint, "--out", first).exit_code == 0
    made_nothing(export(checkpoint, first, "--out", out), out, "alone")
    wider = QualityLevel("toy", TOY_SIZE, tmp_path / "none", TOY_P_ERROR, {"latent": 8})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(levels.LEVELS, "toy", wider)
        made_nothing(export(first, "--out", out), out, "first.safetensors", "more than strides")
    first.with_suffix(".json").unlink()
    made_nothing(export(first, "--out", out), out, "no card")
    refused(run("export", checkpoint, "--quality", "toy", "--out", out), "give --data")


def test_weights_over_the_budget_are_refused(network: IntegerNetwork, tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "big.ckpt", state_of(network))
    out = tmp_path / "made.safetensors"
    made_nothing(
        export(checkpoint, "--out", out, "--budget-pbs", "1.1"), out, "big.ckpt", "budget of 1.1"
    )


@pytest.mark.slow
def test_accumulators_that_are_too_wide_are_refused(
    network: IntegerNetwork, tmp_path: Path
) -> None:
    stage = network.stages["body1"]
    loud = replace(stage, bias=np.full_like(stage.bias, 600))
    wide = replace(network, stages={**network.stages, "body1": loud})
    checkpoint = write(tmp_path / "loud.ckpt", state_of(wide))
    out = tmp_path / "made.safetensors"
    made_nothing(export(checkpoint, "--out", out), out, "body1")


def test_what_is_no_checkpoint_is_refused(network: IntegerNetwork, tmp_path: Path) -> None:
    out = tmp_path / "made.safetensors"
    made_nothing(export(tmp_path / "gone.ckpt", "--out", out), out, "gone.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    made_nothing(export(tmp_path / "text.ckpt", "--out", out), out, "text.ckpt")
    made_nothing(export(write(tmp_path / "list.ckpt", [1, 2]), "--out", out), out, "list.ckpt")
    state = state_of(network)
    other = {**state, "architecture": {**TOY.to_dict(), "latent": 8}}
    made_nothing(export(write(tmp_path / "other.ckpt", other), "--out", out), out, "other.ckpt")
    strange = {**state, "architecture": {"layers": 3}}
    made_nothing(
        export(write(tmp_path / "strange.ckpt", strange), "--out", out), out, "strange.ckpt"
    )


def test_where_it_cannot_be_written(network: IntegerNetwork, tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "last.ckpt", state_of(network))
    for name in ("made", "made/made.safetensors"):
        made_nothing(
            export(checkpoint, "--out", tmp_path / name), tmp_path / "made", ".safetensors"
        )
    refused(run("export", "--quality", "toy"))


def test_the_octaves_of_a_run_are_those_of_its_weights(
    network: IntegerNetwork, tmp_path: Path
) -> None:
    """Training measured its losses with them."""
    state, out = state_of(network), tmp_path / "made.safetensors"
    state["options"]["octaves"] = 0.6
    assert export(write(tmp_path / "last.ckpt", state), "--out", out).exit_code == 0
    assert load_weights(out).octaves == 0.6


# The second engine


@pytest.fixture
def pictures(tmp_path: Path) -> list[str | Path]:
    """Options that name the folders of a training."""
    folders = {side: make_pictures(tmp_path / side, 5) for side in ("content", "style")}
    return ["--content-dir", folders["content"], "--style-dir", folders["style"]]


@pytest.fixture
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "PAIRS", 4)


def leveled_state(network: LeveledNetwork) -> dict[str, Any]:
    """A checkpoint of training that has arrived at these weights."""
    trained = LeveledStyleTransfer.of(network)
    return {
        "engine": "ckks",
        "network": trained.state_dict(),
        "optimizer": torch.optim.Adam(trained.parameters()).state_dict(),
        "step": 20,
        "seconds": 90.0,
        "options": {"size": TOY_SIZE, "octaves": 0.65},
        "architecture": trained.sizes,
        "validation": {"content": 0.5, "style": 0.6, "grain": 0.7, "largest": 4.0},
    }


@pytest.mark.usefixtures("few_pairs")
def test_a_leveled_network_is_exported_with_its_headroom(
    pictures: list[str | Path], tmp_path: Path
) -> None:
    network = random_leveled(LEVELED)
    checkpoint = write(tmp_path / "last.ckpt", leveled_state(network))
    out = tmp_path / "made.safetensors"
    made_nothing(export(checkpoint, "--out", out), out, "last.ckpt needs --content-dir")
    result = export(checkpoint, "--out", out, *pictures)
    assert result.exit_code == 0, result.output
    made = CkksEngine().load_network(out)
    assert made.octaves == 0.65
    for name, array in network.arrays().items():
        np.testing.assert_array_equal(made.arrays()[name], array)
    card = json.loads(out.with_suffix(".json").read_text())
    assert (card["engine"], card["steps"], card["data"]) == ("ckks", 20, "toy pictures")
    assert card["architecture"] == SIZES["ckks"] and "circuits" not in card
    assert card["validation"]["largest"] == 4.0 and len(card["commit"]) > 6
    headroom = card["headroom"]
    assert headroom["pairs"] == 4 and headroom["refused"] == 0
    assert 0 < headroom["largest_mean"] < 1 and 0 < headroom["largest_result"] < 1
    assert headroom["largest_z"] > 1
    assert f"largest |z| {headroom['largest_z']:g}" in result.output
    # Exported again, with another last touch: what was measured stays true.
    again = tmp_path / "again.safetensors"
    assert export(out, "--octaves", "0.2", "--out", again).exit_code == 0
    other = json.loads(again.with_suffix(".json").read_text())
    assert other["headroom"] == headroom and other["octaves"] == 0.2
    assert CkksEngine().load_network(again).octaves == 0.2


@pytest.mark.usefixtures("few_pairs")
def test_values_beyond_the_headroom_are_counted(pictures: list[str | Path], tmp_path: Path) -> None:
    network = random_leveled(LEVELED)
    last = network.content[-1]
    loud = replace(network, content=(*network.content[:-1], replace(last, bias=last.bias + 30)))
    out = tmp_path / "made.safetensors"
    checkpoint = write(tmp_path / "loud.ckpt", leveled_state(loud))
    result = export(checkpoint, "--out", out, *pictures)
    assert result.exit_code == 0, result.output
    headroom = json.loads(out.with_suffix(".json").read_text())["headroom"]
    assert headroom["refused"] == 4 and headroom["largest_z"] > 25
    assert headroom["largest_mean"] > 1
    assert "4 of 4 held-out pairs beyond it" in result.output


def test_leveled_networks_that_do_not_fit_are_refused(
    network: IntegerNetwork, pictures: list[str | Path], tmp_path: Path
) -> None:
    out, other = tmp_path / "made.safetensors", write(tmp_path / "a.ckpt", state_of(network))
    short = random_leveled(replace(LEVELED, stages=3))
    checkpoint = write(tmp_path / "short.ckpt", leveled_state(short))
    made_nothing(export(checkpoint, "--out", out, *pictures), out, "the network has 7 levels")
    result = export(other, checkpoint, "--out", out, *pictures)
    made_nothing(result, out, "of engines concrete and ckks")
    unknown = write(tmp_path / "new.ckpt", {**leveled_state(short), "engine": "bfv"})
    made_nothing(export(unknown, "--out", out, *pictures), out, "new.ckpt does not fit", "bfv")
    made_nothing(export(checkpoint, "--out", out, *pictures[:2]), out, "give both --content-dir")
