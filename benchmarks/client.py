"""What a user waits for besides the computation, step by step: `make bench-client`.

At each level: reading a pair and running it in the clear, compiling, key generation, encryption and
upload, download and decryption. Files stand for the network: the store is a folder. The result that
is decrypted has as many rows as a real one, all alike: one row of the last stage is computed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.bytes import blank_arguments
from benchmarks.measure import EXAMPLES, FOLDER, provenance, working_folder, write_result
from benchmarks.run import circuits, load, prepared
from jobs.client.home import Home
from jobs.client.pictures import write_png
from jobs.client.session import Session
from jobs.client.submit import new_id, submit, upload_shared
from jobs.storage import layout
from nst.engines.cache import ModelCache
from nst.engines.concrete.client import CircuitCipher
from nst.network.architecture import OUTPUT

LEVELS = ("draft", "low", "mid", "high", "ultra")
REPEATS = 3
"""Of what is quick; the median counts."""
TARGETS = {
    "encrypt_and_upload": (("load_keys", "encrypt", "upload"), 2.0),
    "key_generation": (("make_keys",), 30.0),
    "download_and_decrypt": (("load_keys", "download_and_decrypt", "finish_and_write"), 5.0),
}
"""Sums of steps that have a limit in seconds at low."""
COMMANDS = {
    "help": "import sys; sys.argv[1:] = ['--help']; from jobs.cli.main import main; main()",
    "import_submit_and_fetch": "import jobs.client.submit, jobs.client.fetch",
    "import_compiler": "import nst.engines.concrete.compilation",
}
T = TypeVar("T")


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--levels", nargs="+", default=LEVELS)
    parser.add_argument("--smoke", action="store_true", help="draft, once; record nothing")
    arguments = parser.parse_args()
    repeats = 1 if arguments.smoke else REPEATS
    result = {
        **provenance("make bench-client"),
        "start_up_s": {name: fresh_seconds(code, repeats) for name, code in COMMANDS.items()},
        "levels": {},
    }
    for quality in ("draft",) if arguments.smoke else arguments.levels:
        with working_folder() as folder:
            steps = measured(folder, quality, repeats)
        result["levels"][quality] = {"steps_s": steps, **totals(steps)}
        print(quality, json.dumps(result["levels"][quality], indent=2), flush=True)
    if not arguments.smoke:
        print(write_result("client", result))


def totals(steps: dict[str, float]) -> dict[str, Any]:
    """The sums that have a limit, with it."""
    return {
        f"{name}_s": sum(steps[step] for step in parts) for name, (parts, _) in TARGETS.items()
    } | {"targets_s_at_low": {name: limit for name, (_, limit) in TARGETS.items()}}


def fresh_seconds(code: str, repeats: int) -> float:
    """Median wall seconds of a fresh interpreter that runs this code."""

    def run() -> None:
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, cwd=FOLDER.parent
        )

    return timed(run, repeats)[0]


def timed(call: Callable[[], T], repeats: int = 1) -> tuple[float, T]:
    """Median wall seconds of a call, and what it gave last."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        out = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), out


def measured(folder: Path, quality: str, repeats: int) -> dict[str, float]:
    """Seconds of every step of one pair at a level, in the order in which a user meets them."""
    steps: dict[str, float] = {}

    def step(name: str, call: Callable[[], T], times: int = 1) -> T:
        steps[name], out = timed(call, times)
        return out

    home = Home(folder / "home")
    session = Session.open(home, str(home.store), create=True)
    store, ring = session.store, session.ring
    model = step("load_weights", lambda: load(folder, quality), repeats)
    pair = step("read_and_plan_pair", lambda: prepared(EXAMPLES, model)[:1])[0]
    published = step("compile_circuits", lambda: model.published)
    plan, cache = circuits(published.plan), ModelCache(home.models)
    step("find_circuits", lambda: cache.open(plan.model_id), repeats)
    key_id = step("make_keys", lambda: ring.create(published, quality)).key_id
    cipher = step("load_keys", lambda: ring.cipher(key_id, published), repeats)
    assert isinstance(cipher, CircuitCipher)
    job_id, pair_id = new_id(), new_id()
    inputs = [pair.content.input, pair.style.input]
    envelopes = step(
        "encrypt", lambda: list(cipher.encrypt_all([each] for each in inputs)), repeats
    )

    def upload() -> None:
        for number, envelope in enumerate(envelopes):
            store.write(layout.encrypted_input(job_id, f"{number}"), envelope.pack())

    step("upload", upload, repeats)
    local = submit(session, model, [pair], [])
    store.delete_prefix(layout.model(plan.model_id))
    store.delete_prefix(layout.keys(key_id))
    step("upload_circuits_and_keys_once", lambda: upload_shared(session, local))
    step("whole_submission", lambda: submit(session, model, [pair], []), repeats)

    bundle = published.server_bundle.read_bytes()
    evaluator = model.engine.load(plan, bundle, ring.evaluation_keys(key_id))
    row = evaluator.run(OUTPUT, blank_arguments(model.network, cipher, plan.width))
    blob = plan.pack_result(key_id, row).pack()
    places = [layout.result_part(job_id, "a", pair_id, y) for y in range(plan.stored.result_parts)]
    for place in places:
        store.write(place, blob)
    features = step(
        "download_and_decrypt",
        lambda: cipher.decrypt_result([store.read(place) for place in places], pair.name)[0],
        repeats,
    )
    content, style = pair.content.input.picture, pair.style.input.picture
    step(
        "finish_and_write",
        lambda: write_png(model.finish(content, style, features), folder / "out.png", force=True),
        repeats,
    )
    return steps


if __name__ == "__main__":
    main()
