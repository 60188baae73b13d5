"""Code that was compiled for another CPU is refused before a call of it ends the process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.client.doctor import check_keys
from jobs.client.home import Home
from jobs.execution.loading import EvaluatorLoader
from jobs.storage.store import open_store
from nst import cpu
from nst.engines import parse_plan
from nst.engines.base import PLAN_FILE, Published
from nst.engines.concrete.plan import CircuitPlan
from nst.errors import CircuitError
from nst.folders import make_private
from nst.keyring import KeyCard, KeyRing
from tests.fakes import put_model


@pytest.fixture
def avx2_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without AVX-512."""
    (tmp_path / "cpuinfo").write_text("model name : x\nflags\t\t: fpu avx2 fma aes\nflags : avx\n")
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    cpu.cpu_features.cache_clear()
    yield
    cpu.cpu_features.cache_clear()


def for_avx512(published: Published) -> CircuitPlan:
    plan = published.plan
    assert isinstance(plan, CircuitPlan)
    return replace(plan, cpu_features=("avx2", "avx512f", "fma"))


def test_a_plan_tells_what_it_was_compiled_for(published: Published) -> None:
    plan = parse_plan((published.folder / PLAN_FILE).read_bytes(), "it")
    assert plan.cpu_features == cpu.cpu_features() and "fpu" not in plan.cpu_features
    cpu.require_features(plan.cpu_features, "it")
    old = for_avx512(published).to_dict()
    del old["cpu_features"]
    assert CircuitPlan.from_dict(old).cpu_features == ()


def test_a_worker_that_lacks_a_feature_refuses(
    published: Published, avx2_only: None, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    load = EvaluatorLoader(store.url, put_model(store, for_avx512(published), b"code"))
    with pytest.raises(CircuitError, match="CPU with avx512f, which this one lacks; run") as caught:
        load()
    assert "avx2" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_system_that_does_not_tell_refuses_nothing(
    monkeypatch: pytest.MonkeyPatch, avx2_only: None, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "none")
    cpu.require_features(("avx512f",), "it")


def test_doctor_tells(
    published: Published,
    key_ring: KeyRing,
    key_card: KeyCard,
    avx2_only: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = Home(tmp_path / "home")
    make_private(home.models / key_card.model_id)
    make_private(home.keys)
    (home.keys / key_card.key_id).symlink_to(key_ring.folder / key_card.key_id)
    opened = Published(published.folder, for_avx512(published))
    monkeypatch.setattr("jobs.client.doctor.ModelCache.open", lambda *_: opened)
    (check,) = check_keys(home)
    assert check.status == "warn" and "avx512f" in check.detail and "delete" in check.advice
