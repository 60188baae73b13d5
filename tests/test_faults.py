"""Jobs that meet faults, on a real Ray cluster of several nodes and a real S3 server."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nst.engines import ENGINES
from nst.network import levels
from nst.network.levels import QualityLevel
from nst.pictures.size import Size
from tests.faults import injections
from tests.faults.nst_batch import P_ERROR, WEIGHTS
from tests.faults.site import Outcome, Site
from tests.leveled_toy import TOY_ENGINE, random_leveled
from tests.toy import TOY_SIZE, toy_weights

NAMES = ("grandmother-portrait", "passport-scan")

pytestmark = pytest.mark.slow


LEVELED_SIZE = Size(440, 2400)
"""So large that each pair has ciphertexts of its own, and parts for several seconds."""
LEVELED_FAULTS = (
    "actor_killed",
    "node_killed",
    "driver_killed",
    "store_killed",
    "two_drivers",
    "input_byte_corrupted",
    "pair_poisoned",
    "cancelled",
)
"""Those that depend on what an engine's tasks and ciphertexts are like."""


def pairs_of_noise(folder: Path) -> Path:
    """Two contents and one style, as a CSV file."""
    folder.mkdir()
    rng = np.random.default_rng(7)
    for name in (*NAMES, "style"):
        noise = rng.integers(0, 256, (TOY_SIZE, TOY_SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
    listed = folder / "pairs.csv"
    with listed.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["content", "style", "name"])
        rows.writerows([f"{name}.png", "style.png", name] for name in NAMES)
    return listed


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    weights = toy_weights(folder / "toy.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        level = QualityLevel("toy", TOY_SIZE, weights, P_ERROR)
        patch.setitem(levels.LEVELS, "toy", level)
        patch.setenv(WEIGHTS, str(weights))
        with Site(folder, "toy") as site:
            site.submit(pairs_of_noise(folder / "private"))
            yield site


@pytest.fixture(scope="module")
def leveled_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("leveled-site")
    weights = folder / "leveled.safetensors"
    random_leveled().save(weights, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(levels.LEVELS, "toy", QualityLevel("toy", 64, weights))
        patch.setitem(levels.ONE_FOR_ALL, "ckks", weights)
        patch.setitem(ENGINES, "ckks", TOY_ENGINE)
        with Site(folder, "toy", engine="ckks", size=LEVELED_SIZE) as site:
            site.submit(pairs_of_noise(folder / "private"))
            yield site


@pytest.mark.parametrize("name", injections.FAULTS)
def test_a_job_survives(site: Site, name: str) -> None:
    assert_nothing_is_lost(injections.FAULTS[name](site))


@pytest.mark.parametrize("name", LEVELED_FAULTS)
def test_a_leveled_job_survives(leveled_site: Site, name: str) -> None:
    assert_nothing_is_lost(injections.FAULTS[name](leveled_site))


def assert_nothing_is_lost(outcome: Outcome) -> None:
    assert outcome.lost == 0
    assert outcome.bit_identical is not False
