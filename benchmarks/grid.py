"""3 contents x 2 styles at draft as one job: each style is computed once: `make bench-grid`.

Then one of the six pairs runs alone on the same encrypted pictures, and must give the same
picture, to the last bit.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import (
    EXAMPLES,
    FOLDER,
    load_png,
    provenance,
    psnr,
    working_folder,
    write_result,
)
from benchmarks.run import (
    Finished,
    circuits,
    fetch_pictures,
    load,
    prepared,
    run_submitted,
    submit_pairs,
)
from jobs.client.gallery import SHEET
from jobs.client.submit import new_id
from jobs.storage import layout
from jobs.storage.records import read_job, write_record
from nst.engines.tasks import is_style_group
from nst.pictures.picture import to_image

CONTENTS, STYLES = ("astronaut", "cat", "coffee"), ("cat", "coffee")
ACTORS = 2


def main(quality: str = "draft") -> None:
    """Run, print and record; fails if a style was computed more than once."""
    with working_folder() as folder:
        model = load(folder, quality)
        for side, stems in (("content", CONTENTS), ("style", STYLES)):
            (folder / "pairs" / side).mkdir(parents=True)
            for stem in stems:
                shutil.copy(EXAMPLES / side / f"{stem}.jpg", folder / "pairs" / side)
        pairs = prepared(folder / "pairs", model, grid=True)
        local, submit_s = submit_pairs(folder, pairs, model)
        plan = circuits(model.plan)
        job = run_submitted(folder, local, ACTORS, submit_s)
        fetch_pictures(job, folder / "out")
        shutil.copy(folder / "out" / SHEET, FOLDER / "grid.png")
        decrypted = {p.name: load_png(folder / "out" / f"{p.name}.png") for p in pairs}
        pbs = {circuit.name: circuit.pbs_per_row for circuit in plan.circuits}
        counted = Counter[str]()
        for task in job.trace:
            counted["style" if is_style_group(task.group) else "content"] += pbs[task.stage]

        decibels = {
            p.name: psnr(np.asarray(to_image(p.preview(model))), decrypted[p.name]) for p in pairs
        }
        expected = len(STYLES) * plan.pbs_style
        result = {
            **provenance("make bench-grid"),
            "pairs": len(pairs),
            "styles": len(STYLES),
            "pbs_style_counted": counted["style"],
            "pbs_style_if_once_each": expected,
            "pbs_style_if_once_a_pair": len(pairs) * plan.pbs_style,
            "pbs_content_counted": counted["content"],
            "pbs_content_expected": len(pairs) * plan.pbs_content,
            "psnr_db_to_preview": decibels,
            "core_s": sum(t.cpu_s for t in job.trace),
            "actors": ACTORS,
            "peak_rss_bytes": job.memory.rss,
            "peak_live_ciphertext_bytes": job.state.peak_live_bytes,
        }
        print(write_result("grid", result), flush=True)
        if counted["style"] != expected:
            raise SystemExit("a style was computed more than once")
        first = local.pairs[0].name
        lone = run_alone(folder, job)
        result["pixels_equal_to_single_pair"] = float(np.mean(lone == decrypted[first]))
        result["psnr_db_to_single_pair"] = psnr(lone, decrypted[first])
        print(write_result("grid", result))


def run_alone(folder: Path, job: Finished) -> NDArray[np.uint8]:
    """The first pair of a job as a job of its own, on the very same ciphertexts."""
    home, store, local = job.session.home, job.session.store, job.local
    record = read_job(store, local.job_id)
    alone = record.model_copy(update={"job_id": new_id(), "pairs": record.pairs[:1]})
    for input_id in (alone.pairs[0].content, alone.pairs[0].style):
        blob = store.read(layout.encrypted_input(local.job_id, input_id))
        store.write(layout.encrypted_input(alone.job_id, input_id), blob)
    single = local.model_copy(update={"job_id": alone.job_id, "pairs": local.pairs[:1]})
    pictures = home.pictures(local.job_id)
    home.add_job(single, [pictures[position] for position in range(len(pictures))])
    write_record(store, layout.job(alone.job_id), alone)
    fetch_pictures(run_submitted(folder, single, ACTORS, 0.0), folder / "alone")
    return load_png(folder / "alone" / f"{local.pairs[0].name}.png")


if __name__ == "__main__":
    main()
