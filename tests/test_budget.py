"""What a pair costs must not rise: PBS and operations of the shipped weights against a budget.

`benchmarks/budget.json` is the record; the commit that raises it says why.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nst.engines.base import Published
from nst.engines.concrete.compilation import compile_module
from nst.engines.concrete.plan import CircuitPlan, count_pbs
from nst.network.levels import LEVELS, get_level
from nst.network.weights import load_weights
from tests.toy import TOY, TOY_SIZE

BUDGET = json.loads(
    (Path(__file__).resolve().parent.parent / "benchmarks" / "budget.json").read_text()
)


def card(name: str) -> dict[str, float]:
    costs: dict[str, float] = json.loads(LEVELS[name].weights.with_suffix(".json").read_text())[
        "circuits"
    ]
    return costs


def test_every_level_has_a_budget_in_proportion_to_its_pixels() -> None:
    assert set(BUDGET) == set(LEVELS)
    for name, level in LEVELS.items():
        pixels = (level.side / LEVELS["low"].side) ** 2
        for what in ("pbs", "operations"):
            assert BUDGET[name][what] <= BUDGET["low"][what] * pixels


@pytest.mark.parametrize("name", LEVELS)
def test_the_shipped_weights_keep_to_the_budget(name: str) -> None:
    level = get_level(name)
    pbs = count_pbs(load_weights(level.weights).architecture, level.side)
    assert pbs <= BUDGET[name]["pbs"]
    assert card(name)["pbs_per_pair"] == pbs
    assert card(name)["operations_per_pair"] <= BUDGET[name]["operations"]


def test_compiled_circuits_have_as_many_pbs_as_counted(published: Published) -> None:
    plan = published.plan
    assert isinstance(plan, CircuitPlan)
    assert plan.pbs_style + plan.pbs_content == count_pbs(TOY, TOY_SIZE)


def test_operations_are_those_of_the_card() -> None:
    """Of draft, the level that compiles in seconds: the card cannot be out of date unnoticed."""
    level = get_level("draft")
    network = load_weights(level.weights)
    module, _ = compile_module(network, level.side, level.p_error, level.side)
    calls = sum(f.programmable_bootstrap_count for f in module.functions().values())
    operations = module.complexity / calls * count_pbs(network.architecture, level.side)
    assert operations == pytest.approx(card("draft")["operations_per_pair"], rel=0.01)
    assert operations <= BUDGET["draft"]["operations"]
