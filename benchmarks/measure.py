"""What every benchmark records and how: machine, versions, memory, stored bytes, PSNR."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).resolve().parent
EXAMPLES = FOLDER.parent / "examples" / "pairs"
SAMPLE_EVERY = 2.0
"""Seconds; looking more often would take time from what is measured."""
ROLES = {
    "actor": "ray::EvaluatorActor",
    "driver": "jobs.execution.driver",
    "raylet": "raylet/raylet",
    "gcs": "gcs_server",
    "idle worker": "ray::IDLE",
}
"""Kinds of processes by what their command line has in it; the rest is Ray's helpers."""


def provenance(command: str) -> dict[str, Any]:
    """Command, date, commit, machine and versions, to stand beside every figure."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=FOLDER
    ).stdout.strip()
    packages = ("concrete-python", "concrete-ml", "tenseal", "ray", "numpy", "nst-batch")
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Record a benchmark as `benchmarks/NAME.json`."""
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def read_result(name: str) -> dict[str, Any]:
    """What `write_result` has recorded, empty if it has not."""
    path = FOLDER / f"{name}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


@contextmanager
def working_folder() -> Iterator[Path]:
    """A folder for as long as a benchmark runs."""
    with tempfile.TemporaryDirectory(prefix="nst-bench-") as name:
        yield Path(name)


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit pictures."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def load_png(path: Path) -> NDArray[np.uint8]:
    """A PNG as `[H, W, 3]`."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def side_by_side(pictures: list[NDArray[np.uint8]], path: Path, zoom: int = 4) -> None:
    """Pictures `[H, W, 3]` of one height beside each other, enlarged without smoothing."""
    row = Image.fromarray(np.concatenate(pictures, axis=1))
    row.resize((row.width * zoom, row.height * zoom), Image.Resampling.NEAREST).save(path)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


@dataclass
class RoleUse:
    """What the processes of one kind used: most at once, largest resident set, CPU seconds."""

    processes: int = 0
    largest_rss_bytes: int = 0
    cpu_s: float = 0.0


@dataclass
class PeakMemory:
    """Peak resident memory of a process and its descendants, shared pages counted in each.

    Attributes:
        rss: Largest sum of resident set sizes; Ray's shared object store counts in every process
            that has touched it, so this is an upper bound.
        largest: Largest resident set of one process.
        roles: The same by kind of process, and what CPU time each kind took.
    """

    rss: int = 0
    largest: int = 0
    roles: dict[str, RoleUse] = field(default_factory=dict)


@contextmanager
def peak_memory(pid: int) -> Iterator[PeakMemory]:
    """Sample the memory of a process tree until the block ends."""
    peak, stop, cpu = PeakMemory(), threading.Event(), dict[int, tuple[str, float]]()

    def sample() -> None:
        while not stop.wait(SAMPLE_EVERY):
            now: dict[str, list[int]] = {}
            for process in session_of(pid):
                # A process may end at any time, and between any two of these calls.
                with suppress(psutil.Error):
                    role, size = role_of(process), process.memory_info().rss
                    times = process.cpu_times()
                    cpu[process.pid] = role, times.user + times.system
                    now.setdefault(role, []).append(size)
            sizes = [size for some in now.values() for size in some]
            peak.rss = max(peak.rss, sum(sizes))
            peak.largest = max([peak.largest, *sizes])
            for role, some in now.items():
                use = peak.roles.setdefault(role, RoleUse())
                use.processes = max(use.processes, len(some))
                use.largest_rss_bytes = max(use.largest_rss_bytes, *some)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        for role, seconds in cpu.values():
            peak.roles[role].cpu_s += seconds


def session_of(root: int) -> list[psutil.Process]:
    """A process and whatever else lives in its session: drivers lead one of their own."""
    found = []
    for pid in psutil.pids():
        with suppress(OSError):
            if os.getsid(pid) == root or pid == root:
                found.append(psutil.Process(pid))
    return found


def role_of(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    for role, mark in ROLES.items():
        if mark in command:
            return role
    return "other"
