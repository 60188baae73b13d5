"""What of this machine a process may use: batch systems and containers give a share of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")
STREAM_BYTES, STREAM_SECONDS = 512 << 20, 0.7
SLURM_VARIABLE = "SLURM_CPUS_ON_NODE"
"""Cores of a Slurm job on its node; not every Slurm pins its jobs to them."""


def cores() -> int:
    """Cores that this process may use: by CPU set, container's quota and batch job."""
    found = [float(len(os.sched_getaffinity(0)))]
    for group in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            if (group / "cpu.max").exists():
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota = (group / "cpu.cfs_quota_us").read_text()
                period = (group / "cpu.cfs_period_us").read_text()
            if quota != "max" and int(quota) > 0:
                found.append(int(quota) / int(period))
    with contextlib.suppress(ValueError):
        found.append(max(float(os.environ.get(SLURM_VARIABLE, "")), 1.0))
    return max(int(min(found)), 1)


def available_memory() -> int | None:
    """Bytes that can be taken without swapping, within the container's limit if there is one."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        lines = MEMORY.read_text().splitlines()
        found.append(next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable")) * 1024)
    for group in _groups("memory"):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            with contextlib.suppress(OSError, ValueError):
                room = int((group / limit).read_text()) - int((group / used).read_text())
                found.append(max(room, 0))
    return min(found, default=None)


def memory_bandwidth(threads: int) -> float:
    """Bytes per second that so many threads read of memory together; a probe of a second.

    Each sums an array that no cache holds, over and over.
    """
    import numpy as np

    def stream(_: int) -> float:
        mine = np.ones(STREAM_BYTES // threads // 8)
        start = now = time.perf_counter()
        rounds = 0
        while now - start < STREAM_SECONDS:
            mine.sum()
            rounds += 1
            now = time.perf_counter()
        return rounds * mine.nbytes / (now - start)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(stream, range(threads)))


def _groups(controller: str) -> Iterator[Path]:
    """Folders of this process's control group and of all above it, of either version."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        lines = []
    # In a container the root is the container's own group, whatever the names tell.
    folders = {GROUPS, GROUPS / controller}
    for _, names, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if names and controller not in names.split(","):
            continue
        folder = (GROUPS / controller if names else GROUPS) / path.strip("/")
        folders |= {f for f in (folder, *folder.parents) if f.is_relative_to(GROUPS)}
    yield from sorted(folders)
