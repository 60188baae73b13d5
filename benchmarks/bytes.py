"""Bytes in the store for one pair at each level: `make bench-bytes`, about a minute.

Read off the compiled plans, and checked on ciphertexts: a picture that is really encrypted at
draft, and rows that are really computed from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from concrete.compiler import Value as NativeValue

from benchmarks.measure import provenance, working_folder, write_result
from benchmarks.redone import redone
from benchmarks.run import circuits, load
from jobs.execution.forecast import distinct_pairs
from nst.engines.base import PLAN_FILE, PreparedInput
from nst.engines.concrete.client import CircuitCipher
from nst.keyring import KeyRing
from nst.model import Model
from nst.network.architecture import OUTPUT, STYLE, grids
from nst.network.integers import IntegerNetwork
from nst.network.levels import LEVELS
from nst.pictures.picture import Picture

CHECKED = "draft"
CREWS = (2, 64)
"""Numbers of actors for which the price of a driver's death is told."""


def main() -> None:
    """Compile all levels, check one, print and record."""
    levels = {}
    with working_folder() as folder:
        for quality in LEVELS:
            model = load(folder, quality)
            levels[quality] = planned(model)
            print(quality, levels[quality], flush=True)
            if quality == CHECKED:
                checked = check(folder, model)
                print(checked, flush=True)
    result = {**provenance("make bench-bytes"), "levels": levels, "checked_on_ciphertexts": checked}
    print(write_result("bytes", result))


def planned(model: Model) -> dict[str, Any]:
    """What a pair whose style is not shared stores, and what its key set and circuits add."""
    plan, published = circuits(model.plan), model.published
    inputs, result = plan.stored.content + plan.stored.style, plan.stored.result
    tasks = plan.graph(distinct_pairs(1), model.seconds).tasks
    files = published.server_bundle, published.folder / PLAN_FILE
    return {
        "size": plan.width,
        "pbs_per_pair": plan.pbs_style + plan.pbs_content,
        "inputs": inputs,
        "input_bytes_a_value": plan.input_ciphertext_bytes / (3 * plan.width * plan.height),
        "result_full_words": plan.output_ciphertext_bytes,
        "result_word_bits": plan.word_bits,
        "result": result,
        "stored_when_done": inputs + result,
        "checkpoint_style": sum(task.output_bytes for task in tasks if task.checkpoint),
        "redone_after_a_death": {f"{n}_actors": redone(plan, n) for n in CREWS},
        "evaluation_keys": plan.evaluation_key_bytes,
        "circuits": sum(path.stat().st_size for path in files),
    }


def check(folder: Path, model: Model) -> dict[str, Any]:
    """Planned and real bytes of an encrypted picture, a stage's row, a result row, the keys."""
    published, ring = model.published, KeyRing(folder / "keys")
    plan = circuits(published.plan)
    key_id = ring.create(published, CHECKED).key_id
    keys, cipher = ring.evaluation_keys(key_id), ring.cipher(key_id, published)
    assert isinstance(cipher, CircuitCipher)
    evaluator = model.engine.load(plan, published.server_bundle.read_bytes(), keys)
    noise = np.random.default_rng(0).random((3, plan.style_side, plan.style_side), np.float32)
    (picture,) = cipher.encrypt_all([[PreparedInput(Picture(noise), STYLE)]])
    entry = plan.entry(STYLE)
    stem = evaluator.run(entry, [picture.parts[0]] * 3)
    first = next(circuit for circuit in plan.circuits if circuit.name == entry)
    row = evaluator.run(OUTPUT, blank_arguments(model.network, cipher, plan.width))
    pairs = {
        "input": (plan.stored.style, len(picture.pack())),
        "stage_row": (first.output_bytes, len(stem)),
        "result_row": (plan.stored.result_part, len(plan.pack_result(key_id, row).pack())),
        "evaluation_keys": (plan.evaluation_key_bytes, len(keys)),
    }
    return {
        name: {"planned": a, "real": b, "real_over_planned": b / a}
        for name, (a, b) in pairs.items()
    }


def blank_arguments(network: IntegerNetwork, cipher: CircuitCipher, size: int) -> list[bytes]:
    """Arguments of one call of the last stage, encrypted for it: values do not change sizes."""
    stage = network.stages[OUTPUT].stage
    shapes = grids(network.architecture.stages(), size)
    shapes_of_arguments = [
        (1, channels, 1, shapes[source].width)
        for source, channels in zip(stage.sources, stage.source_channels, strict=True)
        for _ in range(3)
    ]
    if stage.modulated:
        shapes_of_arguments.append((1, network.architecture.code, 1, 1))
    circuit = cipher._program.get_client_circuit(OUTPUT)
    return [
        bytes(circuit.prepare_input(NativeValue(np.zeros(s, dtype=np.int64)), i).serialize())
        for i, s in enumerate(shapes_of_arguments)
    ]


if __name__ == "__main__":
    main()
