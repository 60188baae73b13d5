"""Bytes in the store for one pair at each level: `make bench-bytes`, about a minute.

Read off the compiled plans, and checked on ciphertexts: a picture that is really encrypted at
draft, and rows that are really computed from it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from concrete.compiler import Value as NativeValue

from benchmarks.measure import provenance, write_result
from benchmarks.redone import redone
from benchmarks.run import load
from jobs.execution.checkpoints import boundaries
from nst.engines.concrete.circuits import PLAN_FILE, SERVER_FILE, build, load_plan
from nst.engines.concrete.client import Cipher, KeyRing
from nst.engines.concrete.plan import CircuitPlan
from nst.engines.concrete.server import Evaluator
from nst.engines.concrete.switching import stored_result_bytes, switched, word_bits
from nst.network.architecture import STYLE, grids
from nst.network.integers import IntegerNetwork
from nst.network.levels import LEVELS

CHECKED = "draft"
ACTORS = 2
"""Few enough for the rule to decide by bytes alone."""
CREWS = (2, 64)
"""Numbers of actors for which the price of a driver's death is told."""


def main() -> None:
    """Compile all levels, check one, print and record."""
    levels = {}
    with tempfile.TemporaryDirectory(prefix="nst-bench-") as name:
        folder = Path(name)
        for quality in LEVELS:
            level, network = load(quality)
            circuits = build(network, level.side, level.p_error, folder / "circuits")
            levels[quality] = planned(load_plan(circuits), circuits)
            print(quality, levels[quality], flush=True)
            if quality == CHECKED:
                checked = check(folder, circuits, network, level.side)
                print(checked, flush=True)
    result = {**provenance("make bench-bytes"), "levels": levels, "checked_on_ciphertexts": checked}
    print(write_result("bytes", result))


def planned(plan: CircuitPlan, circuits: Path) -> dict[str, Any]:
    """What a pair whose style is not shared stores, and what its key set and circuits add."""
    style, *content = boundaries(plan, ACTORS)
    result = stored_result_bytes(plan)
    return {
        "size": plan.size,
        "pbs_per_pair": plan.pbs_style + plan.pbs_content,
        "inputs": 2 * plan.input_ciphertext_bytes,
        "input_bytes_a_value": plan.input_ciphertext_bytes / (3 * plan.size**2),
        "result_full_words": plan.output_ciphertext_bytes,
        "result_word_bits": word_bits(plan),
        "result": result,
        "stored_when_done": 2 * plan.input_ciphertext_bytes + result,
        "checkpoint_style": style.bytes,
        "checkpoint_content": sum(b.bytes for b in content),
        "boundaries": [
            {
                "after": b.after,
                "stages": b.stages,
                "bytes": b.bytes,
                "pbs": b.pbs,
                "core_seconds": b.core_seconds,
                "core_seconds_a_store_second": b.worth,
            }
            for b in (style, *content)
        ],
        "redone_after_a_death": {f"{n}_actors": redone(plan, n) for n in CREWS},
        "evaluation_keys": plan.evaluation_key_bytes,
        "circuits": sum((circuits / name).stat().st_size for name in (SERVER_FILE, PLAN_FILE)),
    }


def check(folder: Path, circuits: Path, network: IntegerNetwork, size: int) -> dict[str, Any]:
    """Planned and real bytes of an encrypted picture, a stage's row, a result row, the keys."""
    plan, ring = load_plan(circuits), KeyRing(folder / "keys")
    key_id = ring.create(circuits, CHECKED).key_id
    keys, cipher = ring.evaluation_keys(key_id), ring.cipher(key_id, circuits)
    evaluator = Evaluator(plan, (circuits / SERVER_FILE).read_bytes(), keys)
    pixels = np.random.default_rng(0).integers(-3, 4, (3, size, size))
    picture = cipher.encrypt(pixels, STYLE)
    stem = evaluator.run("style_stem", [picture.rows[0]] * 3)
    first = next(stage for stage in plan.stages if stage.name == "style_stem")
    row = evaluator.run("up", blank_arguments(network, cipher, size))
    stored = switched(key_id, plan.model_id, (row,), word_bits(plan)).pack()
    rows = plan.stages[-1].rows
    pairs = {
        "input": (plan.input_ciphertext_bytes, len(picture.pack())),
        "stage_row": (first.output_bytes, len(stem)),
        "result_row": (stored_result_bytes(plan) // rows, len(stored)),
        "evaluation_keys": (plan.evaluation_key_bytes, len(keys)),
    }
    return {
        name: {"planned": a, "real": b, "real_over_planned": b / a}
        for name, (a, b) in pairs.items()
    }


def blank_arguments(network: IntegerNetwork, cipher: Cipher, size: int) -> list[bytes]:
    """Arguments of one call of the last stage, encrypted for it: values do not change sizes."""
    stage = network.stages["up"].stage
    shapes = grids(network.architecture.stages(), size)
    shapes_of_arguments = [
        (1, channels, 1, shapes[source].width)
        for source, channels in zip(stage.sources, stage.source_channels, strict=True)
        for _ in range(3)
    ]
    if stage.modulated:
        shapes_of_arguments.append((1, network.architecture.code, 1, 1))
    circuit = cipher._program.get_client_circuit("up")
    return [
        bytes(circuit.prepare_input(NativeValue(np.zeros(s, dtype=np.int64)), i).serialize())
        for i, s in enumerate(shapes_of_arguments)
    ]


if __name__ == "__main__":
    main()
