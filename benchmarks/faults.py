"""Faults injected into jobs at draft, and what they cost: `make bench-faults`.

The jobs run on a local Ray cluster of a head and two nodes with one core each, and a SeaweedFS
server. `--fault NAME` (repeatable) runs single ones; results are merged into
`benchmarks/faults.json`, each with its own date and commit. `acceptance` is the long run: a job of
20 pairs while a node is killed every minute.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import EXAMPLES, FOLDER, load_png, provenance, psnr, write_result
from jobs.client.preparation import PreparedPair
from nst.pictures.picture import to_image
from tests.faults import injections
from tests.faults.site import POLL, Outcome, Site, as_record
from tests.s3_server import weed_binary

PAIRS = 3
"""Of the jobs that meet single faults."""
ACCEPTANCE, ACCEPTANCE_PAIRS = "acceptance", 20
KILL_EVERY, COMES_AFTER = 60.0, 10.0
"""Seconds between two deaths of a node, and until another comes in its place."""
LEAST_PSNR = 20.0
"""dB against the preview: pictures of noise have less than 12."""
FAULTS = {**injections.FAULTS, "store_full_for_long": injections.store_full_for_long}


def pairs_of_examples(folder: Path, count: int, shared_styles: bool = True) -> Path:
    """A CSV file of so many pairs of the bundled pictures.

    Args:
        folder: Made for it.
        count: How many pairs.
        shared_styles: Whether the first pairs have all one style, or each another.
    """
    styles = sorted((EXAMPLES / "style").glob("*.jpg"))
    contents = sorted((EXAMPLES / "content").glob("*.jpg")) + styles
    chosen = list(product(styles, contents))
    if not shared_styles:
        chosen = [(style, content) for content, style in product(contents, styles)]
    folder.mkdir()
    listed = folder / "pairs.csv"
    with listed.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["content", "style", "name"])
        for style, content in chosen[:count]:
            name = f"{content.parent.name}-{content.stem}--{style.stem}"
            rows.writerow([content, style, name])
    return listed


def acceptance(site: Site, ready: list[PreparedPair]) -> tuple[Outcome, dict[str, Any]]:
    """All pairs as one job, while a node is killed every minute and another one comes."""
    job, killed = site.job(ACCEPTANCE), 0
    driver = job.start()
    kill_at, add_at = time.monotonic() + KILL_EVERY, float("inf")
    while driver.running and time.monotonic() - job.started < site.patience:
        time.sleep(POLL)
        if time.monotonic() > kill_at:
            site.nodes.kill_one()
            killed += 1
            kill_at, add_at = kill_at + KILL_EVERY, time.monotonic() + COMES_AFTER
        if time.monotonic() > add_at:
            site.nodes.add()
            add_at = float("inf")
    seconds = job.finish(driver)
    outcome = injections.survived(job, seconds)
    decibels = {
        pair.name: psnr(
            np.asarray(to_image(pair.preview(site.model))), load_png(job.out / f"{pair.name}.png")
        )
        for pair in ready
    }
    assert min(decibels.values()) > LEAST_PSNR, f"not what the preview shows: {decibels}"
    return outcome, {
        "nodes_killed": killed,
        "kill_every_s": KILL_EVERY,
        "another_node_after_s": COMES_AFTER,
        "seconds": round(seconds, 1),
        "seconds_undisturbed": round(site.undisturbed_s, 1),
        "psnr_db_to_preview": {name: round(value, 1) for name, value in decibels.items()},
    }


def merge(record: dict[str, Any]) -> None:
    """Put one result into the file, in place of an earlier one of the same fault."""
    path = FOLDER / "faults.json"
    kept = json.loads(path.read_text())["faults"] if path.exists() else []
    order = [*FAULTS, ACCEPTANCE]
    faults = [entry for entry in kept if entry["fault"] != record["fault"]] + [record]
    faults.sort(key=lambda entry: order.index(entry["fault"]))
    server = subprocess.run(
        [str(weed_binary()), "version"], capture_output=True, text=True, check=True
    )
    common = provenance("make bench-faults")
    common["versions"]["seaweedfs"] = server.stdout.strip()
    write_result("faults", {**common, "faults": faults})


def run(site: Site, name: str, ready: list[PreparedPair]) -> None:
    """Run one fault, print and record it."""
    start = time.monotonic()
    if name == ACCEPTANCE:
        outcome, more = acceptance(site, ready)
    else:
        outcome, more = FAULTS[name](site), {"seconds_undisturbed": round(site.undisturbed_s, 1)}
    origin = provenance("")
    record = {
        **as_record(outcome), **more, "quality": site.quality,
        "date": origin["date"], "commit": origin["commit"],
    }  # fmt: skip
    merge(record)
    took = time.monotonic() - start
    print(f"{json.dumps(as_record(outcome))}  ({took:.0f} s)", flush=True)


def main() -> None:
    """Run the faults that are asked for; exits 1 if one was not survived."""
    everything = [*FAULTS, ACCEPTANCE]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", action="append", choices=everything)
    parser.add_argument("--quality", default="draft")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument(
        "--patience", type=float, default=3600, help="Seconds after which a job hangs."
    )
    arguments = parser.parse_args()
    names = arguments.fault or everything
    failed = []
    # Each group has pairs of its own, encrypted once and run undisturbed once.
    for group, count in ((list(FAULTS), arguments.pairs), ([ACCEPTANCE], ACCEPTANCE_PAIRS)):
        wanted = [name for name in group if name in names]
        if not wanted:
            continue
        with (
            tempfile.TemporaryDirectory(prefix="nst-faults-") as folder,
            Site(Path(folder), arguments.quality, patience=arguments.patience) as site,
        ):
            ready = site.submit(pairs_of_examples(Path(folder) / "pairs", count))
            print(f"undisturbed, {count} pairs: {site.undisturbed_s:.0f} s", flush=True)
            for name in wanted:
                try:
                    run(site, name, ready)
                except AssertionError as error:
                    failed.append(name)
                    print(f"{name}: NOT SURVIVED: {error}", flush=True)
                    merge({"fault": name, "not_survived": str(error).splitlines()[0]})
    if failed:
        raise SystemExit(f"not survived: {', '.join(failed)}")


if __name__ == "__main__":
    main()
