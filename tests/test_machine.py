"""Cores and memory that a process may use, as batch systems and containers say it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.options import Target
from nst import machine

MANY = set(range(16))


@pytest.fixture(autouse=True)
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process's control group, without limits, on a machine of 16 cores."""
    own = tmp_path / "own"
    own.write_text("9:memory:/batch/job\n4:cpu,cpuacct:/batch/job\n0::/batch/job\n")
    monkeypatch.setattr(machine, "OWN_GROUPS", own)
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: MANY)
    monkeypatch.delenv(machine.SLURM_VARIABLE, raising=False)
    return tmp_path / "groups"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_all_cores_where_nothing_limits_them(group: Path) -> None:
    put(group / "cpu.max", "max 100000\n")
    put(group / "cpu/cpu.cfs_quota_us", "-1\n")
    assert machine.cores() == Target().actors(None) == len(MANY)


def test_a_cpu_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert machine.cores() == Target().actors(None) == 1


@pytest.mark.parametrize(
    ("target", "quota", "right"),
    [
        (".", "250000 100000", 2),
        ("batch", "400000 100000", 4),
        ("batch/job", "50000 100000", 1),
    ],
)
def test_a_quota_of_a_container_or_of_a_group_above(
    group: Path, target: str, quota: str, right: int
) -> None:
    put(group / target / "cpu.max", quota)
    assert machine.cores() == Target().actors(None) == right


def test_a_quota_of_version_1(group: Path) -> None:
    put(group / "cpu/batch/cpu.cfs_quota_us", "300000\n")
    put(group / "cpu/batch/cpu.cfs_period_us", "100000\n")
    assert machine.cores() == 3


@pytest.mark.parametrize(("said", "right"), [("4", 4), ("64", 16), ("0", 1), ("2(x3)", 16)])
def test_a_slurm_job_that_is_not_pinned(
    monkeypatch: pytest.MonkeyPatch, said: str, right: int
) -> None:
    monkeypatch.setenv(machine.SLURM_VARIABLE, said)
    assert machine.cores() == right


@pytest.mark.parametrize(
    ("limit", "used"),
    [
        ("batch/memory.max", "batch/memory.current"),
        ("memory/batch/job/memory.limit_in_bytes", "memory/batch/job/memory.usage_in_bytes"),
    ],
)
def test_memory_within_a_limit(group: Path, limit: str, used: str) -> None:
    put(group / limit, "2000000\n")
    put(group / used, "500000\n")
    assert machine.available_memory() == 1_500_000
