"""The leveled engine on local Ray with 2 actors: `make bench-ckks`.

A batch of low pairs, one pair of 512 x 512 pixels, and one low pair by both engines. Bare calls of
the batch's tasks, in one process alone and in two at once, follow its job: what Ray, the driver and
the other actor cost is the job's time over theirs. Linear layers on residues
are timed beside the same sums by SEAL's own products.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _sealapi_cpp as sealapi
import numpy as np

from benchmarks.bare import LOCAL, BareProcess
from benchmarks.faults import pairs_of_examples
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
from benchmarks.run import Finished, fetch_pictures, load, prepared, run_submitted, submit_pairs
from benchmarks.stored import pin_in_store
from jobs.client.preparation import PreparedPair
from jobs.execution.forecast import Forecaster, Offer
from jobs.execution.loading import EvaluatorLoader
from jobs.storage import layout
from jobs.storage.records import read_job
from jobs.storage.store import open_store
from nst.ciphertext import Envelope
from nst.engines.ckks.parameters import Parameters
from nst.engines.ckks.plan import CONTENT_STAGE, STYLE_STAGE, LeveledPlan
from nst.engines.ckks.residues import Ring, Stack
from nst.engines.rates import Rates, rates_of
from nst.model import Model
from nst.pictures.picture import to_image
from nst.pictures.size import Size

ENGINE, ACTORS = "ckks", 2
BATCH, LARGE, PAIR = 24, Size(512, 512), "coffee"
RATES = Path(__file__).resolve().parents[1] / "nst" / "engines" / ENGINE / "rates.json"
STAGES = STYLE_STAGE, CONTENT_STAGE
ROWS, OUTPUTS = 48, 8
"""Channels that go into and come out of the linear layers that are timed."""


def serve(store_url: str, job_id: str) -> None:
    """Body of a `BareProcess`: seconds of a stage by name, with arguments of a job's."""
    store = open_store(store_url)
    job = read_job(store, job_id)
    evaluator = EvaluatorLoader(store_url, pin_in_store(store, job))()
    inputs = {
        name: Envelope.unpack(store.read(layout.encrypted_input(job_id, key)), name).parts[0]
        for name, key in ((STYLE_STAGE, job.pairs[0].style), (CONTENT_STAGE, job.pairs[0].content))
    }
    code = evaluator.run(STYLE_STAGE, [inputs[STYLE_STAGE]])
    arguments = {STYLE_STAGE: [inputs[STYLE_STAGE]], CONTENT_STAGE: [inputs[CONTENT_STAGE], code]}
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        evaluator.run(line.strip(), arguments[line.strip()])
        print(time.perf_counter() - start, flush=True)


class BareStages:
    """Bare calls of a job's two stages, in one process alone and in all at once."""

    def __init__(self, processes: list[BareProcess]) -> None:
        self._processes = processes
        self.alone: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self.together: dict[str, list[float]] = {stage: [] for stage in STAGES}

    @staticmethod
    @contextmanager
    def beside(store_url: str, job_id: str) -> Iterator[BareStages]:
        """Processes that have the job's model, keys and ciphertexts."""
        processes = [
            BareProcess(store_url, job_id, module="benchmarks.ckks") for _ in range(ACTORS)
        ]
        try:
            for process in processes:
                process.answer()
            yield BareStages(processes)
        finally:
            for process in processes:
                process.close()

    def measure(self) -> None:
        """Call each stage once alone and once in all processes."""
        for stage in STAGES:
            for some, kept in (
                (self._processes[:1], self.alone),
                (self._processes, self.together),
            ):
                for process in some:
                    process.ask(stage)
                kept[stage].extend(process.answer() for process in some)

    def mean(self, calls: dict[str, list[float]]) -> dict[str, float]:
        """Seconds of a call by stage."""
        return {stage: statistics.fmean(calls[stage]) for stage in STAGES}

    @property
    def peak_rss(self) -> int:
        """Largest resident memory of a process so far."""
        return max(process.peak_rss() for process in self._processes)


def run(folder: Path, pairs: list[PreparedPair], model: Model) -> tuple[dict[str, Any], Finished]:
    """Encrypt pairs, run their job, fetch; figures, and the job."""
    plan = model.plan
    local, submit_s = submit_pairs(folder, pairs, model)
    uploaded = folder_bytes(Path(local.store) / layout.whole_job(local.job_id))
    job = run_submitted(folder, local, ACTORS, submit_s)
    stored = folder_bytes(Path(local.store) / layout.whole_job(local.job_id))
    out = folder / f"out-{local.job_id}"
    fetch_s = fetch_pictures(job, out)
    decibels = [
        psnr(np.asarray(to_image(pair.preview(model))), load_png(out / f"{pair.name}.png"))
        for pair in pairs
    ]
    wall = max(t.end for t in job.trace) - min(t.start for t in job.trace)
    core_s = sum(task.cpu_s for task in job.trace)
    return {
        "pairs": len(pairs),
        "width": model.size.width,
        "height": model.size.height,
        "tasks": len(job.trace),
        "core_s": core_s,
        "core_s_per_pair": core_s / len(pairs),
        "core_ms_per_pixel": 1000 * core_s / len(pairs) / model.size.width / model.size.height,
        "wall_s": wall,
        "psnr_db": min(decibels),
        "psnr_db_median": statistics.median(decibels),
        "submit_s": submit_s,
        "fetch_s": fetch_s,
        "uploaded_bytes": uploaded,
        "result_bytes": stored - uploaded,
        "stored_bytes": stored,
        "evaluation_key_bytes": plan.evaluation_key_bytes,
        "largest_actor_rss_bytes": job.memory.roles["actor"].largest_rss_bytes,
        "peak_rss_bytes": job.memory.rss,
    }, job


def against(bare: BareStages, job: Finished, model: Model) -> dict[str, Any]:
    """A job's time against bare calls of its tasks, and against what `estimate` says of it."""
    alone, together = bare.mean(bare.alone), bare.mean(bare.together)
    wall = max(t.end for t in job.trace) - min(t.start for t in job.trace)
    rates = rates_of_calls(model, together, bare.peak_rss)
    forecaster = Forecaster(model.plan, rates, Offer(cores_per_node=ACTORS, bandwidth=LOCAL))
    pairs = read_job(job.session.store, job.local.job_id).pairs
    predicted = forecaster.simulate(forecaster.graph(pairs), ACTORS).wall_s
    return {
        "bare_alone_s": bare.alone,
        "bare_together_s": bare.together,
        "of_bare_alone": sum(alone[t.stage] for t in job.trace) / ACTORS / wall,
        "of_bare_together": sum(together[t.stage] for t in job.trace) / ACTORS / wall,
        "predicted_s": predicted,
        "prediction_error": predicted / wall - 1,
        "rates": rates.model_dump(),
    }


def rates_of_calls(model: Model, seconds: dict[str, float], peak: int) -> Rates:
    """The shipped rates with stages and memory as they were measured here."""
    machine = provenance("")["machine"]
    return model.engine.rates().model_copy(
        update={
            "machine": f"{machine['cpu']}, {machine['cores']} cores",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "command": "make bench-ckks",
            "actor_bytes": peak,
            "bytes_per_source_byte": 0.0,
            "stages": rates_of(model.plan.stages, seconds),
        }
    )


def by_concrete(folder: Path) -> dict[str, Any]:
    """The pair at low by the other engine."""
    model = load(folder, "low")
    pairs = [pair for pair in prepared(EXAMPLES, model) if pair.name == PAIR]
    local, submit_s = submit_pairs(folder, pairs, model)
    job = run_submitted(folder, local, ACTORS, submit_s)
    core_s = sum(task.cpu_s for task in job.trace)
    size = model.size
    return {"core_s": core_s, "core_ms_per_pixel": 1000 * core_s / size.width / size.height}


def residue_products(parameters: Parameters) -> list[dict[str, float]]:
    """Milliseconds of a weight times a channel, by limbs: on residues, and by SEAL's products."""
    ring, rng, out = Ring(parameters), np.random.default_rng(0), []
    secret = sealapi.KeyGenerator(ring.context).secret_key()
    encryptor, seal = sealapi.Encryptor(ring.context, secret), sealapi.Evaluator(ring.context)
    encoder, weight = sealapi.CKKSEncoder(ring.context), rng.integers(1, 99, (OUTPUTS, ROWS))
    for limbs in range(2, parameters.levels + 2):
        sources, plain = [], sealapi.Plaintext()
        for _ in range(ROWS):
            encoder.encode(rng.normal(size=parameters.slots), ring.level(limbs), 2.0**20, plain)
            sources.append(sealapi.Ciphertext())
            encryptor.encrypt_symmetric(plain, sources[-1])
        stack = Stack(ring, ROWS, limbs)
        for row, source in enumerate(sources):
            source.scale = 1.0
            stack.put(row, source)
        start = time.perf_counter()
        stack.multiplied(weight.astype(np.float64), np.zeros(OUTPUTS))
        residues_s = time.perf_counter() - start
        total, term = sealapi.Ciphertext(), sealapi.Ciphertext()
        start = time.perf_counter()
        for source, factor in zip(sources, weight[0], strict=True):
            encoder.encode(float(factor), ring.level(limbs), 1.0, plain)
            seal.multiply_plain(source, plain, term)
            if source is sources[0]:
                seal.multiply_plain(source, plain, total)
            else:
                seal.add_inplace(total, term)
        seal_s = time.perf_counter() - start
        each, other = 1000 * residues_s / ROWS / OUTPUTS, 1000 * seal_s / ROWS
        out.append({"limbs": limbs, "residues_ms": each, "seal_ms": other, "ratio": other / each})
    return out


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--only-batch", action="store_true", help="leave what is recorded else")
    arguments = parser.parse_args()
    with working_folder() as folder:
        low = load(folder, "low", engine=ENGINE)
        listed = pairs_of_examples(folder / "listed", arguments.batch, shared_styles=False)
        batch, job = run(folder, prepared(listed, low), low)
        with BareStages.beside(job.local.store, job.local.job_id) as bare:
            bare.measure()
            batch |= {**against(bare, job, low), **provenance("make bench-ckks")}
        print(json.dumps(batch, indent=2))
        RATES.write_text(Rates.model_validate(batch["rates"]).model_dump_json(indent=2) + "\n")
        if arguments.only_batch:
            known = json.loads((FOLDER / "ckks.json").read_text())
            print(write_result("ckks", known | {"low_batch": batch}))
            return
        (same,) = (pair for pair in prepared(EXAMPLES, low) if pair.name == PAIR)
        single, _ = run(folder, [same], low)
        wide = load(folder, "mid", LARGE, ENGINE)
        (pair,) = (pair for pair in prepared(EXAMPLES, wide) if pair.name == PAIR)
        large, job = run(folder, [pair], wide)
        print(json.dumps(large, indent=2))
        decrypted = load_png(folder / f"out-{job.local.job_id}" / f"{PAIR}.png")
        assert isinstance(wide.plan, LeveledPlan)
        products = residue_products(wide.plan.parameters)
        concrete = by_concrete(folder)
    clear = np.asarray(to_image(pair.preview(wide)))
    side_by_side(
        [np.asarray(to_image(pair.content.input.picture.rgb)), clear, decrypted],
        FOLDER / "ckks.png",
        zoom=1,
    )
    result = {
        **provenance("make bench-ckks"),
        "low_batch": batch,
        "low_alone": single,
        "large": large,
        "concrete_low": concrete,
        "products": products,
        "note": "ckks.png: content, preview, decrypted result of the large pair",
    }
    each = concrete["core_ms_per_pixel"]
    result["ratio_to_concrete_per_pixel"] = each / large["core_ms_per_pixel"]
    result["ratio_of_a_low_pair_in_a_batch"] = each / batch["core_ms_per_pixel"]
    result["ratio_of_a_low_pair_alone"] = each / single["core_ms_per_pixel"]
    print(write_result("ckks", result))


if __name__ == "__main__":
    main()
