"""One 64 x 64 photograph x painting, encrypted, on local Ray with 2 actors: `make bench-low`.

In pauses of the job each stage is called bare on one core; the job's PBS/s from first to last row
task is compared with that rate times the actors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.bare import BareCalls, efficiency, predicted_s
from benchmarks.measure import (
    EXAMPLES,
    FOLDER,
    folder_bytes,
    load_png,
    provenance,
    psnr,
    side_by_side,
    working_folder,
    write_result,
)
from benchmarks.run import fetch_pictures, load, prepared, run_submitted, submit_pairs
from nst.pictures.picture import to_image

PAIR = "coffee"
ACTORS = 2
EVERY_S = 60.0
"""Seconds between two pauses, which at low take some 20 themselves."""


def main(quality: str = "low") -> None:
    """Run, print and record."""
    with working_folder() as folder:
        model = load(folder, quality)
        pairs = [p for p in prepared(EXAMPLES, model) if p.name == PAIR]
        local, submit_s = submit_pairs(folder, pairs, model)
        with BareCalls(local.store, local.job_id, ACTORS, EVERY_S) as bare:
            job = run_submitted(folder, local, ACTORS, submit_s, bare.watch)
        predicted = predicted_s(local.store, local.job_id, bare.found, ACTORS)
        stored = folder_bytes(Path(local.store) / "jobs")
        fetch_s = fetch_pictures(job, folder / "out")
        decrypted = load_png(folder / "out" / f"{PAIR}.png")
    (pair,) = pairs
    clear = np.asarray(to_image(pair.preview(model)))
    pictures = [np.asarray(to_image(p.input.picture.rgb)) for p in (pair.content, pair.style)]
    side_by_side([*pictures, clear, decrypted], FOLDER / "low.png")
    result = {
        **provenance("make bench-low"),
        "pair": PAIR,
        "core_s": sum(t.cpu_s for t in job.trace),
        "peak_rss_bytes": job.memory.rss,
        "largest_process_rss_bytes": job.memory.largest,
        "processes": {role: vars(use) for role, use in job.memory.roles.items()},
        "peak_live_ciphertext_bytes": job.state.peak_live_bytes,
        "stored_bytes": stored,
        "psnr_db": psnr(clear, decrypted),
        "submit_s": submit_s,
        "fetch_s": fetch_s,
        "driver_s": job.driver_s,
        **efficiency(job.trace, bare.found, ACTORS),
        "predicted_wall_s": predicted,
        "note": "low.png: content, style, preview, decrypted result",
    }
    print(write_result("low", result))
    for key in ("wall_s", "core_s", "pbs", "pbs_per_s", "psnr_db", "parallel_efficiency"):
        print(f"{key:20} {result[key]:.4g}")


if __name__ == "__main__":
    main()
