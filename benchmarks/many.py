"""What the client's commands take for many pairs, in seconds and memory: `make bench-many`.

Each step is a process of its own, which runs the real command on real files. Left out is what takes
hours and does not depend on how many pairs there are at once: of the encryption `submit` asks for
every picture and writes a kilobyte of nothing in its place, and no stage is computed: a driver
ends all pairs as failed. Pictures are small, so that decoding does not hide the rest. Previews are
computed of fewer pairs, at two counts: seconds grow with the pairs, memory does not.

`--before FOLDER` measures another working tree as well; without it, the record keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

QUALITY = "draft"
SUBMITTED, PREVIEWED = 10_000, (1_000, 4_000)
PICTURES = 50
"""Different files; the others are links to them, which a client cannot tell."""
SIDES = {"content": (320, 240), "style": (240, 240)}
REASON = "its worker died while it computed stage {}"


def main() -> None:
    """Run, print and record; or, as a process of its own, one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another working tree to measure as well")
    parser.add_argument("--smoke", action="store_true", help="few pairs; record nothing")
    parser.add_argument("--step", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(step(arguments.step[0], Path(arguments.step[1]))))
        return
    # Only here: a step has the modules of its own tree.
    from benchmarks.measure import FOLDER, provenance, working_folder, write_result

    submitted, previewed = (40, (10, 20)) if arguments.smoke else (SUBMITTED, PREVIEWED)
    result = {
        **provenance("make bench-many"),
        "quality": QUALITY,
        "pairs": submitted,
        "left_out": "encryption of pictures and stages of the network",
    }
    recorded = FOLDER / "many.json"
    if recorded.exists():
        result["before"] = json.loads(recorded.read_text()).get("before")
    trees = {"after": FOLDER.parent} | ({"before": arguments.before} if arguments.before else {})
    for name, tree in trees.items():
        with working_folder() as folder:
            result[name] = measured(tree.resolve(), folder, submitted, previewed)
    if not arguments.smoke:
        print(write_result("many", result))


def measured(
    tree: Path, folder: Path, submitted: int, previewed: tuple[int, ...]
) -> dict[str, Any]:
    """All steps with the code of a working tree."""
    make_pairs(folder / "pairs", submitted)
    for count in previewed:
        make_pairs(folder / f"pairs-{count}", count)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=tree
    ).stdout.strip()
    steps = ["build", "dry_run", "submit", "fail", "status", "list", "fetch"]
    steps += [f"preview-{count}" for count in previewed]
    found: dict[str, Any] = {}
    for name in steps:
        found[name] = run_step(tree, folder, name)
        print(tree.name, name, json.dumps(found[name]), flush=True)
    del found["build"]
    return {"commit": commit, "steps": found}


def make_pairs(folder: Path, count: int) -> None:
    """A folder of so many pairs, of few different pictures."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for side, size in SIDES.items():
        (folder / side).mkdir(parents=True)
        for number in range(count):
            path = folder / side / f"{number:05d}.jpg"
            if number >= PICTURES:
                os.link(folder / side / f"{number % PICTURES:05d}.jpg", path)
                continue
            coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


def run_step(tree: Path, folder: Path, name: str) -> dict[str, Any]:
    """A step in a process of its own; raises RuntimeError if it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", __file__, "--step", name, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(tree), "NST_BATCH_HOME": str(folder / "home")},
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    return {"seconds": round(seconds, 2), **json.loads(done.stdout.splitlines()[-1])}


def step(name: str, folder: Path) -> dict[str, Any]:
    """Do a step in this process; says its peak memory and how often it read from the store."""
    from jobs.storage.local_store import LocalStore

    reads: list[str] = []
    read = LocalStore.read

    def counted(self: LocalStore, key: str, limit: int | None = None) -> bytes:
        reads.append(key)
        return read(self, key, limit)

    with mock.patch.object(LocalStore, "read", counted):
        if name == "build":
            command("circuits", "build", "--quality", QUALITY)
            command("keys", "create", "--quality", QUALITY)
        elif name == "dry_run":
            command("submit", folder / "pairs", "-q", QUALITY, "--dry-run", "--actors", 2)
        elif name == "submit":
            submit_without_encryption(folder)
        elif name == "fail":
            fail_all_pairs()
        elif name == "status":
            command("status", job_id())
        elif name == "list":
            command("list")
        elif name == "fetch":
            command("fetch", job_id(), "--out", folder / "fetched")
        else:
            pairs = folder / name.replace("preview", "pairs")
            command("preview", pairs, "-q", QUALITY, "--out", folder / name)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    return {"peak_rss_bytes": peak, "store_reads": len(reads)}


def command(*words: object) -> None:
    """A command as in a terminal; exit code 1 says that pairs failed, which they do."""
    from jobs.cli.main import main as run

    with mock.patch.object(sys, "argv", ["nst-batch", *map(str, words)]):
        try:
            run()
        except SystemExit as ended:
            if ended.code not in (None, 0, 1):
                raise


def submit_without_encryption(folder: Path) -> None:
    """`submit`, whose pictures are prepared and asked for and not encrypted; no driver starts."""
    from jobs.client import drivers
    from nst.ciphertext import Envelope
    from nst.engines.concrete.client import CircuitCipher
    from nst.engines.concrete.preparation import quantized

    def encrypt_all(self: CircuitCipher, inputs: Any) -> Iterator[Envelope]:
        for (prepared,) in inputs:
            quantized(prepared)
            yield Envelope(self.key_id, self.model_id, (bytes(1000),))

    with (
        mock.patch.object(CircuitCipher, "encrypt_all", encrypt_all),
        mock.patch.object(drivers, "start"),
    ):
        command("submit", folder / "pairs", "-q", QUALITY, "--yes", "--no-wait", "--actors", 2)


def fail_all_pairs() -> None:
    """What a driver tells the store of a job whose pairs all fail."""
    from jobs.client.home import Home
    from jobs.execution.recorder import Recorder
    from jobs.storage.records import read_job
    from jobs.storage.store import open_store
    from nst.engines.tasks import TaskGraph, result_group, style_group

    (local,) = Home.default().jobs()
    store = open_store(local.store)
    job = read_job(store, local.job_id)
    groups: dict[str, list[str]] = {}
    for pair in job.pairs:
        groups.setdefault(result_group(pair.result), []).append(pair.pair_id)
        groups.setdefault(style_group(pair.style), []).append(pair.pair_id)
    recorder: Recorder[object] = Recorder(store, job, 2)
    recorder.on_start(TaskGraph((), {}, {name: tuple(ids) for name, ids in groups.items()}))
    for number, pair in enumerate(job.pairs):
        recorder.on_pair_failed(pair.pair_id, REASON.format(number % 7))
        recorder.on_tick(2, 1, 0)
    recorder.on_end()


def job_id() -> str:
    """Of the only job there is."""
    from jobs.client.home import Home

    (local,) = Home.default().jobs()
    return local.job_id


if __name__ == "__main__":
    main()
