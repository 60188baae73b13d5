"""The faults: each runs one job on a site, harms it, and says what became of the job.

What must hold after any fault is asserted in `Job.conclude`; what a fault may cost is asserted
here, so that a test and the benchmark judge alike.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import psutil

from jobs.client import lifecycle
from jobs.client.drivers import pin_of
from jobs.client.fetch import fetch
from jobs.client.home import Home
from jobs.client.pairs import find_pairs
from jobs.client.preparation import prepare
from jobs.client.session import Session
from jobs.client.submit import submit
from jobs.storage import layout
from jobs.storage.s3_store import PART
from jobs.storage.store import open_store
from nst.ciphertext import Envelope
from nst.keyring import SECRET_FILE, KeyRing
from tests.faults.proxy import Proxy
from tests.faults.site import BUCKET, CLOCK, POISON, Driver, Job, Outcome, Site, prefix_of

OUTAGE = 20.0
"""Seconds without the S3 server."""
FULL = 10.0
"""Seconds for which the store takes nothing."""
CANCEL_SECONDS = 30.0
"""In which a cancelled job must stop and free its actors."""
STORM, STORM_SHARE = 30.0, 0.8
"""Seconds for which that share of all requests is told to slow down."""
LAG = 10.0
"""Seconds for which a listing does not show what happens."""
SMALL_SKEW, LARGE_SKEW = 600.0, 3600.0
"""Seconds by which a clock is ahead; S3 takes a quarter of an hour."""
HOG_BYTES = 4 << 30
"""What may be taken of the machine's memory before Ray ends an actor."""

FAULTS: dict[str, Callable[[Site], Outcome]] = {}


def fault(function: Callable[[Site], Outcome]) -> Callable[[Site], Outcome]:
    """List a fault under its function's name."""
    FAULTS[function.__name__] = function
    return function


def survived(job: Job, seconds: float) -> Outcome:
    """The outcome of a job that must have lost nothing but time."""
    outcome = job.conclude(seconds - job.site.undisturbed_s)
    assert (outcome.succeeded, outcome.failed, outcome.lost) == (outcome.pairs, 0, 0), outcome
    assert outcome.bit_identical, outcome
    return outcome


def one_failed(job: Job, seconds: float, words: str) -> Outcome:
    """The outcome of a job that must have lost its first pair for a reason, and no other."""
    outcome = job.conclude(seconds - job.site.undisturbed_s)
    assert (outcome.succeeded, outcome.failed, outcome.lost) == (outcome.pairs - 1, 1, 0), outcome
    assert outcome.bit_identical, outcome
    (reason,) = outcome.reasons.items()
    assert reason[0] == job.local.pairs[0].name and words in reason[1], outcome
    return outcome


@fault
def actor_killed(site: Site) -> Outcome:
    """`kill -9` of an actor."""
    job = site.job("actor_killed")
    driver = job.start()
    job.wait_for_work()
    site.nodes.actors()[0].kill()
    return survived(job, job.finish(driver))


@fault
def node_killed(site: Site) -> Outcome:
    """`kill -9` of every process of a node, with the results it holds; another one comes."""
    job = site.job("node_killed")
    driver = job.start()
    job.wait_for_work()
    site.nodes.kill_one()
    site.nodes.add()
    return survived(job, job.finish(driver))


@fault
def driver_killed(site: Site) -> Outcome:
    """`kill -9` of the driver; the job is resumed."""
    job = site.job("driver_killed")
    driver = job.start()
    # Beyond the first pair's end, if pairs end one after the other.
    job.wait_for_work(0.6)
    driver.kill()
    return survived(job, job.finish(job.start()))


@fault
def store_killed(site: Site) -> Outcome:
    """`kill -9` of the S3 server, which comes back after a while."""
    job = site.job("store_killed")
    driver = job.start()
    job.wait_for_work()
    site.s3.kill()
    time.sleep(OUTAGE)
    site.s3.start()
    return survived(job, job.finish(driver))


@fault
def store_full(site: Site) -> Outcome:
    """The store takes nothing for a while."""
    job = site.job("store_full")
    driver = job.start()
    job.wait_for_work()
    site.s3.set_full(BUCKET, True)
    try:
        time.sleep(FULL)
    finally:
        site.s3.set_full(BUCKET, False)
    return survived(job, job.finish(driver))


def store_full_for_long(site: Site) -> Outcome:
    """The store takes nothing until the driver has given up; the job is resumed."""
    job = site.job("store_full_for_long")
    driver = job.start()
    job.wait_for_work()
    site.s3.set_full(BUCKET, True)
    try:
        code = driver.wait(site.patience)
    finally:
        site.s3.set_full(BUCKET, False)
    log = driver.log.read_text()
    assert code != 0 and "free space" in log and "Traceback" not in log, log[-2000:]
    site.wait_until_quiet()
    return survived(job, job.finish(job.start()))


@fault
def two_drivers(site: Site) -> Outcome:
    """Two drivers take up the same job at once."""
    job = site.job("two_drivers")
    drivers = [job.start(actors=site.actors // 2) for _ in range(2)]
    return survived(job, job.finish(*drivers))


@fault
def client_killed_during_upload(site: Site) -> Outcome:
    """`kill -9` of the client while it uploads keys, and again while it uploads pictures."""
    start = time.monotonic()
    store_url = site.url("client_killed_during_upload")
    command = ("submit", site.source, *site.options, "--no-wait", "--store", store_url)
    before = {local.job_id for local in site.home.jobs()}
    site.run_until("upload-part", *command)
    site.run_until("upload-input", *command)
    lost = time.monotonic() - start
    store = open_store(store_url)
    assert store.list("jobs/"), "nothing was uploaded"
    begun = {local.job_id for local in site.home.jobs()} - before
    assert begun, "the client does not know what it began"
    for job_id in begun:
        gone = site.run("delete", job_id, "--yes")
        assert gone.exit_code == 0, gone.output
    site.require_no_orphans(store)
    job = site.job("client_killed_during_upload")
    return survived(job, job.finish(job.start()) + lost)


@fault
def client_killed_during_fetch(site: Site) -> Outcome:
    """`kill -9` of the client after its first picture."""
    start = time.monotonic()
    out = site.folder / "out-killed"
    site.run_until("fetch-picture", "fetch", site.finished.local.job_id, "--out", out)
    assert len(list(out.glob("*.png"))) == 1
    lost = time.monotonic() - start
    again = site.run("fetch", site.finished.local.job_id, "--out", out, "--force")
    assert again.exit_code == 0, again.output
    pictures = {p.name: p.read_bytes() for p in out.glob("*.png")}
    pairs = len(site.origin.pairs)
    found = sum(picture.stem in site.undisturbed for picture in out.glob("*.png"))
    same = pictures == site.pictures
    assert same and found == pairs, sorted(pictures)
    assert not list(out.glob(".*")), "a part of a file was left"
    return Outcome("client_killed_during_fetch", pairs, found, 0, 0, same, round(lost, 1))


def _without_keys(site: Site, name: str, keys: bytes | None, words: str) -> Outcome:
    """A job whose evaluation keys are replaced or missing."""
    job = site.job(name)
    key = layout.evaluation_keys(job.local.key_id)
    job.store.delete(key)
    if keys is not None:
        job.store.write(key, keys)
    seconds = job.finish(job.start(), code=1)
    reason = job.state.reason
    assert job.state.status == "failed" and words in reason and "\n" not in reason, reason
    outcome = job.conclude(seconds)
    assert (outcome.succeeded, outcome.failed, outcome.lost) == (0, outcome.pairs, 0), outcome
    return outcome


@fault
def evaluation_key_missing(site: Site) -> Outcome:
    """The store has no evaluation keys."""
    return _without_keys(site, "evaluation_key_missing", None, "keys/")


@fault
def evaluation_key_truncated(site: Site) -> Outcome:
    """The store has the first half of the evaluation keys."""
    whole = KeyRing(site.home.keys).evaluation_keys(site.origin.key_id)
    half = whole[: len(whole) // 2]
    return _without_keys(site, "evaluation_key_truncated", half, "evaluation keys")


@fault
def evaluation_key_of_another_set(site: Site) -> Outcome:
    """The store has, under their name, evaluation keys that fit the circuits and no ciphertext."""
    ring = KeyRing(site.folder / "other-keys")
    card = ring.create(site.model.published, site.quality)
    other = ring.evaluation_keys(card.key_id)
    return _without_keys(site, "evaluation_key_of_another_set", other, "evaluation keys")


def _flip_bit(site: Site, job: Job, key: str) -> None:
    """Rot one bit of an object, behind the back of all that calculates checksums."""
    client = site.s3.client()
    name = f"{prefix_of(job.store)}/{key}"
    found = client.get_object(Bucket=BUCKET, Key=name)
    blob = bytearray(found["Body"].read())
    blob[len(blob) // 2] ^= 0x10
    client.put_object(Bucket=BUCKET, Key=name, Body=bytes(blob), Metadata=found["Metadata"])


@fault
def input_byte_corrupted(site: Site) -> Outcome:
    """One bit of an encrypted picture is another one."""
    job = site.job("input_byte_corrupted")
    key = layout.encrypted_input(job.local.job_id, job.record.pairs[0].content)
    _flip_bit(site, job, key)
    return one_failed(job, job.finish(job.start()), "does not match its SHA-256")


@fault
def result_byte_corrupted(site: Site) -> Outcome:
    """One bit of an encrypted result is another one when it is fetched."""
    job, name = site.finished, site.origin.pairs[0].name
    keys = job.store.list(layout.results(job.local.job_id))
    key = next(k for k in keys if site.origin.pairs[0].result in k and k.endswith(".ct"))
    _flip_bit(site, job, key)
    try:
        results, reasons = site.fetch(job.local, job.store, site.folder / "out-corrupted")
    finally:
        _flip_bit(site, job, key)
    assert set(reasons) == {name} and "does not match its SHA-256" in reasons[name], reasons
    same = all(np.array_equal(found, site.undisturbed[n]) for n, found in results.items())
    return Outcome(
        "result_byte_corrupted", len(site.origin.pairs), len(results), 1, 0, same, 0.0, reasons
    )


@fault
def pair_poisoned(site: Site) -> Outcome:
    """A pair kills every actor that computes on it."""
    job = site.job("pair_poisoned")
    key = layout.encrypted_input(job.local.job_id, job.record.pairs[0].content)
    part = Envelope.unpack(job.store.read(key), "poison").parts[0]
    poison = Path(os.environ[POISON])
    poison.write_text(hashlib.sha256(part).hexdigest())
    try:
        return one_failed(job, job.finish(job.start()), "worker died")
    finally:
        poison.unlink()


@fault
def cancelled(site: Site) -> Outcome:
    """The job is cancelled in mid-run."""
    job = site.job("cancelled")
    driver = job.start()
    job.wait_for_work()
    start = time.monotonic()
    asked = site.run("cancel", job.local.job_id)
    assert asked.exit_code == 0, asked.output
    driver.wait(CANCEL_SECONDS)
    site.wait_until_quiet()
    took = time.monotonic() - start
    assert took < CANCEL_SECONDS, f"stopped after {took:.0f} s"
    outcome = job.conclude(took)
    assert outcome.lost == 0 and outcome.failed > 0, outcome
    return outcome


def _refused_then_resumed(job: Job, driver: Driver, words: str) -> float:
    """A driver that must have given up, saying why in one line; the job is resumed."""
    code = driver.wait(job.site.patience)
    said = driver.log.read_text()
    assert code != 0 and words in said and "Traceback" not in said, said[-2000:]
    job.site.wait_until_quiet()
    return job.finish(job.start())


@contextmanager
def _clock_ahead(seconds: float) -> Iterator[None]:
    """The clocks of a driver and its actors that start in this block are ahead."""
    file = Path(os.environ[CLOCK])
    file.write_text(str(seconds))
    try:
        yield
    finally:
        file.unlink()


@fault
def clock_skew(site: Site) -> Outcome:
    """The server's clock is an hour ahead, which S3 refuses; then ten minutes, which it takes."""
    job = site.job("clock_skew")
    with _clock_ahead(LARGE_SKEW):
        driver = job.start()
        code = driver.wait(site.patience)
    said = driver.log.read_text()
    assert code != 0 and "clock is wrong" in said and "Traceback" not in said, said[-2000:]
    with _clock_ahead(SMALL_SKEW):
        driver = job.start()
        job.wait_for_work()
        driver.kill()
        site.wait_until_quiet()
        seconds = job.finish(job.start())
    return survived(job, seconds)


@fault
def credentials_expired(site: Site) -> Outcome:
    """The credentials of the server and of the client end in mid-run; the job is resumed."""
    with Proxy(site.s3.endpoint) as proxy:
        job = site.job("credentials_expired", endpoint=proxy.endpoint)
        driver = job.start()
        job.wait_for_work()
        proxy.refuse = lambda method, path: (400, "ExpiredToken")
        code = driver.wait(site.patience)
        said, asked = driver.log.read_text(), site.run("status", job.local.job_id)
        proxy.refuse = lambda method, path: None
        assert code != 0 and "ExpiredToken" in said and "Traceback" not in said, said[-2000:]
        assert asked.exit_code == 3 and "ExpiredToken" in asked.output, asked.output
        site.wait_until_quiet()
        return survived(job, job.finish(job.start()))


@fault
def slow_down_storm(site: Site) -> Outcome:
    """The store answers most requests with 503 SlowDown for a while."""
    drawn = random.Random(0)

    def storm(method: str, path: str) -> tuple[int, str] | None:
        return (503, "SlowDown") if drawn.random() < STORM_SHARE else None

    with Proxy(site.s3.endpoint) as proxy:
        job = site.job("slow_down_storm", endpoint=proxy.endpoint)
        driver = job.start()
        job.wait_for_work(0.1)
        proxy.refuse = storm
        time.sleep(STORM)
        proxy.refuse = lambda method, path: None
        seconds = job.finish(driver)
        assert proxy.refused, "no request met the storm"
        return survived(job, seconds)


@fault
def uploads_left_behind(site: Site) -> Outcome:
    """Writers died in the middle of uploads: of keys, a model and a picture, and under the job."""
    job = site.job("uploads_left_behind")
    client, prefix = site.s3.client(), prefix_of(job.store)
    record, pin = job.record, pin_of(site.home, job.local)
    for key in (
        layout.evaluation_keys(record.key_id),
        layout.model_server(record.model_id, pin.bundle),
        layout.encrypted_input(record.job_id, record.pairs[0].content),
        layout.result_part(record.job_id, "0" * 12, record.pairs[0].result, 0),
    ):
        where = {"Bucket": BUCKET, "Key": f"{prefix}/{key}"}
        upload = client.create_multipart_upload(**where)["UploadId"]
        client.upload_part(**where, UploadId=upload, PartNumber=1, Body=bytes(PART))
    return survived(job, job.finish(job.start()))


@fault
def listing_lags(site: Site) -> Outcome:
    """Listings show the store of a while ago, and the driver is killed; the job is resumed."""
    with Proxy(site.s3.endpoint) as proxy:
        job = site.job("listing_lags", endpoint=proxy.endpoint)
        proxy.lag = LAG
        driver = job.start()
        job.wait_for_work(0.6)
        driver.kill()
        seconds = job.finish(job.start())
        # Whoever fetches or deletes at once sees less than there is, and again later the rest.
        time.sleep(LAG)
        proxy.lag = 0.0
        return survived(job, seconds)


@fault
def head_restarted(site: Site) -> Outcome:
    """`kill -9` of all of Ray, head and nodes; another Ray starts, and the job is resumed."""
    job = site.job("head_restarted")
    driver = job.start()
    job.wait_for_work()
    site.nodes.kill_all()
    code = driver.wait(site.patience)
    assert code != 0
    site.start_nodes()
    return survived(job, job.finish(job.start()))


@fault
def actor_out_of_memory(site: Site) -> Outcome:
    """An actor takes memory until Ray ends it for that."""
    memory = psutil.virtual_memory()
    share = (memory.total - memory.available + HOG_BYTES) / memory.total
    limits = {
        "RAY_memory_usage_threshold": f"{share:.3f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    with mock.patch.dict(os.environ, limits):
        site.nodes.replace_all()
    job = site.job("actor_out_of_memory")
    key = layout.encrypted_input(job.local.job_id, job.record.pairs[0].content)
    part = Envelope.unpack(job.store.read(key), "poison").parts[0]
    poison = Path(os.environ[POISON])
    poison.write_text(f"{hashlib.sha256(part).hexdigest()} memory")
    try:
        driver = job.start()
        seconds = job.finish(driver)
    finally:
        poison.unlink()
        site.nodes.replace_all()
    said = driver.log.read_text()
    assert "killed for lack of memory" in said, said[-2000:]
    return survived(job, seconds)


@fault
def client_disk_full(site: Site) -> Outcome:
    """The client's disk is full while it builds a model, makes keys, keeps pictures, and fetches.

    Each says so in one line and leaves no half of anything; then there is room again.
    """
    start = time.monotonic()
    store = open_store(site.url("client_disk_full"), create=True)
    home, out = site.folder / "full-home", site.folder / "out-full"
    home.mkdir()
    out.mkdir()
    options = ("submit", site.source, *site.options, "--no-wait", "--store", store.url)
    with mock.patch.dict(os.environ, NST_BATCH_HOME=str(home)):
        assert site.run_on_full_disk(16 << 10, home, *options) == []
        shutil.copytree(site.home.models, home / "models")
        left = site.run_on_full_disk(16 << 10, home, *options)
        assert not [name for name in left if name.endswith(SECRET_FILE)], left
        shutil.copytree(site.home.keys, home / "keys")
        # Room for the record of the job, none for its pictures.
        left = site.run_on_full_disk(8 << 10, home, *options)
        assert not [name for name in left if name.startswith("jobs/")], left
    assert store.list("jobs/") == []
    job_id = site.finished.local.job_id
    assert site.run_on_full_disk(0, out, "fetch", job_id, "--out", out) == []
    lost = time.monotonic() - start
    again = site.run("fetch", job_id, "--out", out)
    assert again.exit_code == 0, again.output
    pictures = {p.name: p.read_bytes() for p in out.glob("*.png")}
    same, pairs = pictures == site.pictures, len(site.origin.pairs)
    found = sum(name.removesuffix(".png") in site.undisturbed for name in pictures)
    assert same and found == pairs, sorted(pictures)
    return Outcome("client_disk_full", pairs, found, 0, 0, same, round(lost, 1))


@fault
def two_users(site: Site) -> Outcome:
    """Another user has a job in the same store at the same time, and deletes it."""
    job = site.job("two_users")
    home = Home(site.folder / "other-home")
    shutil.copytree(site.home.models, home.models)
    session = Session.open(home, job.local.store)
    pairs, _ = find_pairs(site.source)
    ready, _ = prepare(pairs, site.model, "crop")
    other = submit(session, site.model, ready, [])
    assert other.key_id != job.local.key_id
    address, log = site.nodes.address, site.folder / "two_users-other.log"
    pin = pin_of(home, other)
    arguments = [other.store, other.job_id, "--actors", "1", *pin.options]
    seconds = job.finish(job.start(actors=1), Driver(arguments, address, log))
    mine = site.run("status", other.job_id)
    assert mine.exit_code == 2 and "was not submitted from" in mine.output, mine.output
    report = fetch(session, other, site.folder / "out-other", force=False)
    assert not report.failed and not report.doubtful and len(report.done) == len(pairs), report
    lifecycle.delete(session, home.job(other.job_id))
    assert job.store.exists(layout.evaluation_keys(job.local.key_id))
    return survived(job, seconds)
