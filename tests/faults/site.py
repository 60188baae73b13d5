"""A place for jobs that is like a real one: nodes, an S3 server, a client, each a process to kill.

`Site` starts them on this machine, encrypts pairs once with the real client, and runs the job of
these pairs once undisturbed. Every fault then gets the same ciphertexts as a job of its own, in a
store of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
from click.testing import CliRunner, Result

from jobs.cli.main import main
from jobs.client.drivers import pin_of
from jobs.client.fetch import fetch
from jobs.client.home import PICTURES, Home, LocalJob
from jobs.client.pairs import find_pairs
from jobs.client.preparation import PreparedPair, prepare
from jobs.client.session import Session
from jobs.client.submit import new_id, submit
from jobs.storage import layout
from jobs.storage.records import JobRecord, JobState, read_record, read_state, write_record
from jobs.storage.store import Store, open_store
from nst.engines.base import Features
from nst.keyring import SECRET_FILE
from nst.model import DEFAULT_ENGINE, Model
from nst.network.finishing import Floats
from nst.pictures.picture import Picture
from nst.pictures.size import Size
from tests.ray_cluster import ray_cluster
from tests.s3_server import S3Server

ROOT = Path(__file__).resolve().parent.parent.parent
HOOKS = Path(__file__).resolve().parent / "hooks"
BUCKET = "nst-faults"
POISON, CLOCK = "NST_TEST_POISON", "NST_TEST_CLOCK"
"""Variables that name files for `hooks`: ciphertexts that kill, seconds by which a clock is off."""
POLL = 0.05
QUIET_SECONDS = 60.0
"""For actors to disappear after the end of a job, on machines that are busy otherwise."""
SUCCEEDED = ("done", "succeeded")
TERMINAL = (*SUCCEEDED, "failed", "cancelled")
ACTOR = "ray::EvaluatorActor"
"""What Ray calls the process of an actor that computes."""


@dataclass
class Outcome:
    """What became of a job that met a fault.

    Attributes:
        fault: Which.
        pairs: Pairs of the job.
        succeeded: Pairs with a result.
        failed: Pairs that failed or were cancelled, with a reason.
        lost: Pairs in no terminal state.
        bit_identical: Whether all results decrypt to those of the undisturbed run; None if there
            are none.
        seconds_lost: Wall time beyond the undisturbed run's; until the reason was there, if the
            job could not be done.
        reasons: By name of pair, why it failed.
    """

    fault: str
    pairs: int
    succeeded: int
    failed: int
    lost: int
    bit_identical: bool | None
    seconds_lost: float
    reasons: dict[str, str] = field(default_factory=dict)


class Nodes:
    """A Ray cluster: a head that computes nothing and nodes with one core each."""

    def __init__(self, cluster: Any, folder: Path, count: int) -> None:
        """Add nodes to what `tests.ray_cluster` has started."""
        self._cluster, self.folder = cluster, folder
        for _ in range(count):
            self.add()

    @property
    def address(self) -> str:
        """Host and port of the head."""
        return str(self._cluster.address)

    @property
    def count(self) -> int:
        """Nodes beside the head."""
        return len(self._cluster.worker_nodes)

    def add(self) -> None:
        """Another node with one core."""
        self._cluster.add_node(num_cpus=1)

    def kill_all(self) -> None:
        """`kill -9` of all processes of the head and of all nodes, as a restart of it does."""
        for node in self._cluster.list_all_nodes():
            for process in _tree(node):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def replace_all(self) -> None:
        """New nodes for the old ones, which read this process's environment."""
        for node in list(self._cluster.worker_nodes):
            self._cluster.remove_node(node)
            self.add()

    def actors(self) -> list[psutil.Process]:
        """The processes of all actors that compute."""
        return [process for node in self._cluster.list_all_nodes() for process in _actors(node)]

    def kill_one(self) -> None:
        """`kill -9` of all processes of a node that has an actor."""
        node = max(self._cluster.worker_nodes, key=lambda node: len(_actors(node)))
        for process in _tree(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def logs(self) -> Iterator[Path]:
        """All files that Ray has written."""
        return (path for path in self.folder.rglob("*") if path.is_file())


def _tree(node: Any) -> list[psutil.Process]:
    """The processes of a node."""
    out = []
    for started in node.all_processes.values():
        for entry in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(entry.process.pid)
                out += [process, *process.children(recursive=True)]
    return out


def _actors(node: Any) -> list[psutil.Process]:
    """Those of them that are actors that compute."""
    found = []
    for process in _tree(node):
        with contextlib.suppress(psutil.Error):
            if ACTOR in " ".join(process.cmdline()):
                found.append(process)
    return found


class Driver:
    """A driver process."""

    def __init__(self, arguments: list[str], address: str, log: Path) -> None:
        """Start one.

        Args:
            arguments: See `jobs.execution.driver`.
            address: The cluster's.
            log: What it prints goes there.
        """
        self.log = log
        command = [sys.executable, "-m", "jobs.execution.driver", *arguments, "--cluster"]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, "RAY_ADDRESS": address},
                cwd=ROOT,
            )

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self.process.poll() is None

    def wait(self, patience: float) -> int:
        """Its exit code."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"the driver still ran after {patience:.0f} s: {self.log.read_text()[-2000:]}"
            ) from None

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait()


class Job:
    """A job of the site's ciphertexts in a store of its own."""

    def __init__(self, site: Site, fault: str, local: LocalJob, store: Store) -> None:
        self.site, self.fault, self.local, self.store = site, fault, local, store
        self.out = site.folder / f"out-{fault}"
        self.started = time.monotonic()
        self.drivers: list[Driver] = []

    @property
    def record(self) -> JobRecord:
        """What the server knows of it."""
        return read_record(self.store, layout.job(self.local.job_id), JobRecord)

    @property
    def state(self) -> JobState:
        """How far it is."""
        return read_state(self.store, self.local.job_id)

    def start(self, actors: int | None = None) -> Driver:
        """A driver for it."""
        log = self.site.folder / f"{self.fault}-{len(self.drivers)}.log"
        arguments = [
            self.local.store,
            self.local.job_id,
            "--actors",
            str(actors or self.site.actors),
        ]
        arguments += pin_of(self.site.home, self.local).options
        driver = Driver(arguments, self.site.nodes.address, log)
        self.drivers.append(driver)
        # As the client notes it: `cancel` asks for the driver by its process id.
        local = self.local.model_copy(update={"driver_pid": driver.process.pid})
        self.site.home.save_job(local)
        return driver

    def wait_for_work(self, share: float = 0.25) -> None:
        """Until so much of its work is done; AssertionError if that takes too long."""

        def far_enough() -> bool:
            state = self.state
            assert not state.finished, f"{self.fault}: ended before the fault: {state.reason}"
            return state.share > share

        wait_until(far_enough, self.site.patience, f"{self.fault}: no progress")

    def finish(self, *drivers: Driver, code: int | None = 0) -> float:
        """Wait for drivers; seconds since the job was started."""
        for driver in drivers:
            found = driver.wait(self.site.patience)
            assert code is None or found == code, driver.log.read_text()[-2000:]
        return time.monotonic() - self.started

    def statuses(self) -> dict[str, tuple[str, str]]:
        """By name of pair, its status and the reason, as a user is told them."""
        shown = self.site.run("status", self.local.job_id, "--json")
        assert shown.exit_code in (0, 1), shown.output
        return {p["name"]: (p["status"], p["reason"]) for p in json.loads(shown.stdout)["pairs"]}

    def fetched(self) -> tuple[dict[str, Features], dict[str, str]]:
        """By name, the decrypted results and why there is none."""
        return self.site.fetch(self.local, self.store, self.out)

    def conclude(self, seconds: float) -> Outcome:
        """See what became of it, and that it leaves nothing behind; AssertionError if it does."""
        statuses = self.statuses()
        results, reasons = self.fetched()
        ends = [status for status, _ in statuses.values()]
        succeeded = [name for name, (status, _) in statuses.items() if status in SUCCEEDED]
        assert set(results) <= set(succeeded), "a picture of a pair that did not succeed"
        identical = [np.array_equal(results[n], self.site.undisturbed[n]) for n in results]
        self.site.wait_until_quiet()
        leaks = self.site.leaks(self.store)
        assert not leaks, f"{self.fault}: {leaks}"
        self.delete()
        return Outcome(
            fault=self.fault,
            pairs=len(statuses),
            succeeded=len(results),
            failed=sum(end in ("failed", "cancelled") for end in ends)
            + len(set(succeeded) - set(results)),
            lost=sum(end not in TERMINAL for end in ends),
            bit_identical=all(identical) if identical else None,
            seconds_lost=round(seconds, 1),
            reasons={**{n: r for n, (_, r) in statuses.items() if r}, **reasons},
        )

    def delete(self) -> None:
        """Delete it as a user would, and see that nothing of it is left in the store."""
        gone = self.site.run("delete", self.local.job_id, "--yes")
        assert gone.exit_code == 0, gone.output
        self.site.require_no_orphans(self.store)


class Site:
    """Nodes, an S3 server, a client, and the undisturbed run of its pairs."""

    def __init__(
        self,
        folder: Path,
        quality: str,
        actors: int = 2,
        patience: float = 600,
        engine: str = DEFAULT_ENGINE,
        size: Size | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            folder: Home of the client, logs and pictures.
            quality: Level of the pairs.
            engine: What computes them.
            size: Theirs, if it is not the level's.
            actors: Nodes with one core, and actors of a job.
            patience: Seconds after which a job hangs.
        """
        self.folder, self.quality = folder, quality
        self.actors, self.patience = actors, patience
        self.home = Home(folder / "home")
        self.model = Model.load(quality, self.home.models, size, engine)
        self.options = ["--quality", quality, "--engine", engine, "--size", str(self.model.size)]
        self.undisturbed: dict[str, Features] = {}
        self.pictures: dict[str, bytes] = {}
        self.undisturbed_s = 0.0
        self._open, self._cluster = contextlib.ExitStack(), contextlib.ExitStack()

    def __enter__(self) -> Site:
        with self._open as opened:
            self.s3 = S3Server()
            opened.callback(self.s3.close)
            self.s3.start()
            kept = {n: v for n, v in os.environ.items() if not n.startswith("AWS_")}
            path = os.pathsep.join([str(HOOKS), str(ROOT)])
            environment = {
                **kept,
                **self.s3.environment,
                "NST_BATCH_HOME": str(self.home.root),
                "PYTHONPATH": path,
                POISON: str(self.folder / "poison"),
                CLOCK: str(self.folder / "clock"),
            }
            opened.enter_context(mock.patch.dict(os.environ, environment, clear=True))
            self.s3.client().create_bucket(Bucket=BUCKET)
            self.start_nodes()
            opened.callback(lambda: self._cluster.close())
            self._open = opened.pop_all()
        return self

    def start_nodes(self) -> None:
        """Another cluster, head and nodes, in place of the one that there may be."""
        self._cluster.close()
        self.nodes = Nodes(*self._cluster.enter_context(ray_cluster()), self.actors)

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def submit(self, source: Path) -> list[PreparedPair]:
        """Encrypt the pairs of a folder or CSV file, once, and run their job undisturbed."""
        self.source = source
        pairs, skipped = find_pairs(source)
        ready, unreadable = prepare(pairs, self.model, "crop")
        assert not skipped and not unreadable, (skipped, unreadable)
        session = Session.open(self.home, self.url("origin"), create=True)
        self.origin = submit(session, self.model, ready, [])
        job = self.job("undisturbed")
        seconds = job.finish(job.start())
        self.undisturbed, reasons = job.fetched()
        assert not reasons and len(self.undisturbed) == len(pairs), reasons
        self.pictures = {p.name: p.read_bytes() for p in job.out.glob("*.png")}
        self.undisturbed_s = seconds
        self.finished = job
        return ready

    def mend(self) -> None:
        """Have all there that a fault before may have left broken."""
        if not self.s3.running:
            self.s3.start()
        while self.nodes.count < self.actors:
            self.nodes.add()

    def url(self, prefix: str, endpoint: str = "") -> str:
        """A store's URL, perhaps behind a proxy."""
        return f"s3://{BUCKET}/{prefix}?endpoint={endpoint or self.s3.endpoint}"

    def job(self, fault: str, pairs: int | None = None, endpoint: str = "") -> Job:
        """The first pairs as a new job, of the very same ciphertexts."""
        self.mend()
        origin = open_store(self.origin.store)
        store = open_store(self.url(fault, endpoint), create=True)
        record = read_record(origin, layout.job(self.origin.job_id), JobRecord)
        job_id = new_id()
        copy = record.model_copy(update={"job_id": job_id, "pairs": record.pairs[:pairs]})
        for key in origin.list("models/") + origin.list("keys/"):
            store.write(key, origin.read(key))
        for input_id in {i for p in copy.pairs for i in (p.content, p.style)}:
            blob = origin.read(layout.encrypted_input(self.origin.job_id, input_id))
            store.write(layout.encrypted_input(job_id, input_id), blob)
        local = self.origin.model_copy(
            update={"job_id": job_id, "store": store.url, "pairs": self.origin.pairs[:pairs]}
        )
        self.home.save_job(local)
        pictures = self.home.root / "jobs" / self.origin.job_id / PICTURES
        shutil.copy(pictures, self.home.root / "jobs" / job_id)
        write_record(store, layout.job(job_id), copy)
        return Job(self, fault, local, store)

    def run(self, *arguments: str | Path) -> Result:
        """`nst-batch` in this process."""
        return CliRunner().invoke(main, [str(a) for a in arguments])

    def run_until(self, point: str, *arguments: str | Path) -> None:
        """`nst-batch` in a process of its own that dies at a point of `nst_batch.arm`."""
        command = [sys.executable, "-m", "tests.faults.nst_batch", point, *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, timeout=self.patience, check=False
        )
        assert done.returncode == -9, f"{point}: {done.returncode} {done.stderr[-2000:]}"

    def run_on_full_disk(self, free: int, folder: Path, *arguments: str | Path) -> list[str]:
        """`nst-batch` where a folder is on a disk with so many bytes left; the files there after.

        AssertionError unless it says so in one line.
        """
        command = ["unshare", "-rm", sys.executable, "-m", "tests.faults.full_disk", str(free)]
        command += [str(folder), *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, timeout=self.patience, check=False
        )
        assert done.returncode == 0, f"no file system of one's own: {done.stderr[-2000:]}"
        told = json.loads(done.stdout)
        (line,) = [line for line in told["said"].splitlines() if line.startswith("error: ")]
        assert told["code"] == 2 and "No space left" in line, told
        assert "Traceback" not in told["said"], told
        files: list[str] = told["files"]
        assert not [name for name in files if ".making-" in name], files
        return files

    def fetch(
        self, local: LocalJob, store: Store, out: Path
    ) -> tuple[dict[str, Features], dict[str, str]]:
        """Fetch as the client does; by name, the results that were decrypted and what failed."""
        seen: list[Features] = []
        finish = Model.finish

        def seeing(model: Model, content: Picture, style: Picture, features: Features) -> Floats:
            seen.append(features)
            return finish(model, content, style, features)

        with mock.patch.object(Model, "finish", seeing):
            report = fetch(Session(self.home, store), local, out, True)
        return dict(zip(report.done, seen, strict=True)), report.failed

    def wait_until_quiet(self) -> None:
        """Until no actor is left; AssertionError if some stay."""
        wait_until(lambda: not self.nodes.actors(), QUIET_SECONDS, "actors were left behind")

    def require_no_orphans(self, store: Store) -> None:
        """AssertionError if a store holds anything of a job, or half of an upload."""
        assert store.list("jobs/") == []
        prefix = f"{prefix_of(store)}/"
        listed = self.s3.client().list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)
        assert not listed.get("Uploads"), [u["Key"] for u in listed["Uploads"]]

    def leaks(self, store: Store) -> list[str]:
        """Where a name, a credential or a piece of the secret key is that must not be there."""
        words = {
            "a pair's name": [p.name.encode() for p in self.origin.pairs],
            "the client's folder": [str(self.home.root).encode(), str(self.source).encode()],
            "a credential": [self.s3.secret_key.encode()],
            "the secret key": self._key_windows(),
        }
        client, prefix = self.s3.client(), prefix_of(store)
        # As they are: the store would refuse those that a fault has damaged.
        blobs = {
            key: client.get_object(Bucket=BUCKET, Key=f"{prefix}/{key}")["Body"].read()
            for key in store.list("")
        }
        for path in [*self.folder.glob("*.log"), *self.nodes.logs()]:
            with contextlib.suppress(OSError):
                blobs[str(path)] = path.read_bytes()
        return [
            f"{what} in {where}"
            for where, blob in blobs.items()
            for what, secrets in words.items()
            if any(secret in blob for secret in secrets)
        ]

    def _key_windows(self) -> list[bytes]:
        """Pieces of the secret key: Concrete serializes a key as one 64-bit word a bit."""
        secret = (self.home.keys / self.origin.key_id / SECRET_FILE).read_bytes()
        if self.origin.engine != DEFAULT_ENGINE:
            # SEAL compresses its keys: every piece of the file tells.
            return [secret[at : at + 64] for at in range(1024, len(secret) - 64, 4096)]
        words = np.frombuffer(secret[: len(secret) // 8 * 8], dtype="<u8")
        binary = np.concatenate([[0], (words <= 1).astype(np.int8), [0]])
        edges = np.flatnonzero(np.diff(binary))
        runs = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 400]
        assert runs, "the secret key was not recognized in its file"
        return [words[a + 64 : a + 128].tobytes() for a, _ in runs]


def prefix_of(store: Store) -> str:
    """What the names of a store's objects in the bucket begin with."""
    return store.url.partition("?")[0].removeprefix(f"s3://{BUCKET}/")


def wait_until(condition: Callable[[], bool], patience: float, complaint: str) -> float:
    """Seconds until a condition holds; AssertionError if it does not in time."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < patience, f"{complaint} after {patience:.0f} s"
        time.sleep(POLL)
    return time.monotonic() - start


def as_record(outcome: Outcome) -> dict[str, Any]:
    """An outcome as `benchmarks/faults.json` lists it: of reasons, the different ones."""
    record = dataclasses.asdict(outcome)
    reasons = sorted(set(record.pop("reasons").values()))
    return {**record, "reasons": reasons} if reasons else record
