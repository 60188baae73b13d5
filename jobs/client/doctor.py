"""Checks of everything a job needs, each with what to do about it."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from jobs.client.home import Home
from jobs.execution.forecast import distinct_pairs, largest_call
from jobs.execution.launch import require_reachable
from jobs.options import Target
from jobs.storage import layout
from jobs.storage.store import Store, address_of, check_format, connect
from nst.cpu import require_features
from nst.engines import get_engine
from nst.engines.base import Needs
from nst.engines.cache import ModelCache
from nst.engines.rates import Rates
from nst.errors import CircuitError, ClusterError, InputError, NstBatchError, StoreError, first_line
from nst.folders import HOME_VARIABLE
from nst.keyring import CARD_FILE, EVALUATION_FILE, SECRET_FILE, KeyCard
from nst.machine import available_memory, cores, memory_bandwidth
from nst.model import Model
from nst.pictures.size import Size

Status = Literal["ok", "warn", "FAIL"]

PYTHON = (3, 11)
REINSTALL = "install nst-batch again (in a checkout: make venv)"
PYARROW_END = 26
"""The first pyarrow that needs numpy 2, with which every Ray actor dies."""
PATIENCE = 5.0
"""Seconds for which a store that does not answer is asked again."""
PROBE_BYTES = 1 << 16
SKEW_WARN, SKEW_FAIL = 60.0, 600.0
"""Seconds; S3 refuses requests whose clock is a quarter of an hour off."""
BASE_BYTES = 600_000_000
"""Resident memory of Ray, driver and client together (see benchmarks/low.json)."""
RAY_BYTES = 300_000_000
"""What an actor takes besides: Ray's libraries, and what it has read of the shared object store."""
MEMORY_MARGIN = 1.2
HOME_BYTES = 100_000_000
"""Keys and model of a level, and what is remembered of jobs."""
TEMPORARY_BYTES = 200_000_000
"""Ray's logs and the circuits of actors."""
FEW_PAIRS = 10
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        status: `FAIL` stops a job, `warn` may.
        what: Its name.
        detail: What was found.
        advice: What to do, empty if nothing.
        unreachable: Whether it is a store or a cluster that cannot be used at all.
    """

    status: Status
    what: str
    detail: str
    advice: str = ""
    unreachable: bool = False


def diagnose(
    home: Home,
    stores: list[str],
    quality: str,
    actors: int,
    cluster: str = "",
    size: Size | None = None,
) -> Iterator[Check]:
    """All checks, one after the other.

    Args:
        home: The user's data directory.
        stores: URLs, with all options in them.
        quality: Level that jobs are to be run at.
        actors: Ray actors that run at once on this machine.
        cluster: Address of the Jobs API of a cluster that should answer, empty for none.
        size: Of contents and results; None for a square of the level's side.
    """
    yield from check_versions()
    yield check_ray()
    if cluster:
        yield check_cluster(cluster)
    yield from check_keys(home)
    yield from check_jobs(home)
    try:
        model = Model.load(quality, home.models, size)
        needs = needs_of(model)
        yield Check("ok", "quality", f"{quality}: {model.size} pixels")
    except NstBatchError as error:
        yield _failed("quality", error)
    else:
        each = RAY_BYTES + model.engine.rates().actor_bytes_of(needs.call)
        yield check_memory(available_memory(), actors, each, needs.result)
        yield check_bandwidth(memory_bandwidth(cores()), actors, model.engine.rates())
        yield check_space("disk of the data directory", home.root, HOME_BYTES, HOME_VARIABLE)
        temporary = Path(tempfile.gettempdir())
        yield check_space("disk of temporary files", temporary, TEMPORARY_BYTES, "TMPDIR")
        for url in stores:
            folder = address_of(url).folder
            if folder is not None:
                yield check_pairs_space(folder, needs.stored)
    for url in stores:
        yield from check_store(url)


def check_bandwidth(found: float, actors: int, rates: Rates) -> Check:
    """Whether memory is as fast as the tasks of so many actors read it.

    Args:
        found: Bytes per second of this machine.
        actors: Actors at the same time.
        rates: Of the engine.
    """
    text = f"{found / 1e9:.0f} GB/s"
    need = actors * rates.streamed_bytes_per_s
    if not need:
        return Check("ok", "bandwidth of memory", text)
    text += f", {actors} actors read {need / 1e9:.0f}"
    if found >= need:
        return Check("ok", "bandwidth of memory", text)
    slow = rates.slowdown(actors, found)
    return Check(
        "warn",
        "bandwidth of memory",
        f"{text}: tasks take {slow:.1f} times as long",
        "take fewer actors here, and more machines",
    )


def check_versions() -> Iterator[Check]:
    """Python and the packages whose versions matter."""
    here = sys.version_info
    found = f"{here[0]}.{here[1]}.{here[2]}"
    if here[:2] == PYTHON:
        yield Check("ok", "python", found)
    else:
        yield Check("FAIL", "python", found, f"install Python 3.11, then {REINSTALL}")
    for package in ("concrete-python", "ray", "pyarrow", "boto3"):
        try:
            found = version(package)
        except PackageNotFoundError:
            yield Check("FAIL", package, "is not installed", REINSTALL)
            continue
        if package == "pyarrow" and int(found.split(".")[0]) >= PYARROW_END:
            advice = f"run: pip install 'pyarrow<{PYARROW_END}'"
            yield Check("FAIL", package, f"{found} needs numpy 2; Ray actors die of it", advice)
        else:
            yield Check("ok", package, found)


def check_ray() -> Check:
    """Whether Ray can be imported and has its shared memory."""
    what = "ray on this machine"
    try:
        import ray
    except Exception as error:  # A broken installation raises anything.
        return Check("FAIL", what, f"cannot be imported: {first_line(error)}", REINSTALL)
    if not os.access(SHARED_MEMORY, os.W_OK):
        return Check(
            "warn", what, f"{SHARED_MEMORY} cannot be written", "in a container: --shm-size=2g"
        )
    return Check("ok", what, f"{ray.__version__} can be imported; jobs start it themselves")


def check_cluster(address: str) -> Check:
    """Whether a cluster's Jobs API answers, and takes the token that is at hand if it wants one."""
    try:
        require_reachable(Target(address))
    except NstBatchError as error:
        return _failed("cluster", error, unreachable=isinstance(error, ClusterError))
    return Check("ok", "cluster", f"{address} answers")


def check_keys(home: Home) -> Iterator[Check]:
    """Key sets: complete, readable by their owner alone, and for models of this version."""
    folders = [p for p in sorted(home.keys.glob("*")) if not p.name.startswith(".")]
    yield from (open_to := list(_folder_faults(home)))
    if open_to and not folders:
        return
    if not folders:
        yield Check("ok", "keys", f"none yet in {home.keys}; submit makes them")
        return
    faults = [fault for folder in folders for fault in _key_faults(home, folder)]
    yield from faults
    if not faults and not open_to:
        yield Check(
            "ok", "keys", f"{len(folders)} in {home.keys}, readable by you alone",
            "back this folder up: a result without its key is lost",
        )  # fmt: skip


def check_jobs(home: Home) -> Iterator[Check]:
    """What this machine knows of jobs: without it a job cannot be watched or fetched."""
    count = 0
    try:
        for job_id, local in home.inspect():
            count += 1
            try:
                if isinstance(local, InputError):
                    raise local
                home.pictures(job_id)
            except InputError as error:
                yield _failed(f"job {job_id}", error, status="warn")
    except InputError as error:
        yield _failed("jobs", error)
    else:
        yield Check("ok", "jobs", f"{count} in {home.root / 'jobs'}")


def _folder_faults(home: Home) -> Iterator[Check]:
    """Whoever may write into the data directory can put other keys in place of the user's."""
    for path in (home.root, home.keys, home.models, home.root / "jobs"):
        if not path.is_dir():
            continue
        found = path.stat()
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid != os.geteuid():
            detail = f"{path} belongs to another user"
            yield Check("FAIL", f"folder {path.name}", detail, f"set {HOME_VARIABLE} to your own")
        elif mode & 0o077:
            status: Status = "FAIL" if mode & 0o022 else "warn"
            detail = f"{path} has mode {mode:o}: others may {'write' if mode & 0o022 else 'read'}"
            yield Check(status, f"folder {path.name}", detail, f"chmod 700 {path}")


def _key_faults(home: Home, folder: Path) -> Iterator[Check]:
    what = f"key {folder.name}"
    lost = [n for n in (SECRET_FILE, EVALUATION_FILE, CARD_FILE) if not (folder / n).is_file()]
    if lost:
        yield Check("FAIL", what, f"{', '.join(lost)} missing", "restore it from your backup")
        return
    for path in (folder, folder / SECRET_FILE):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.stat().st_uid != os.geteuid():
            detail = f"{path} belongs to another user"
            yield Check("FAIL", what, detail, "delete it, or restore yours from your backup")
        if mode & 0o077:
            right = 0o700 if path.is_dir() else 0o600
            yield Check("FAIL", what, f"{path} has mode {mode:o}", f"chmod {right:o} {path}")
    try:
        card = KeyCard.parse((folder / CARD_FILE).read_bytes())
    except (OSError, ValueError):
        yield Check("FAIL", what, f"{CARD_FILE} is damaged", "restore it from your backup")
        return
    model = home.models / card.model_id
    if not model.is_dir():
        return
    try:
        plan = ModelCache(home.models).open(card.model_id).plan
        runtime = get_engine(plan.engine).runtime
    except CircuitError as error:
        yield Check("warn", what, str(error), f"delete {model}; it is built again when needed")
        return
    try:
        require_features(plan.cpu_features, f"model {card.model_id}")
    except CircuitError as error:
        detail = str(error).partition(";")[0]
        advice = f"to run jobs on this machine, delete {model}; it is built again when needed"
        yield Check("warn", what, detail, advice)
    if plan.runtime != runtime:
        yield Check(
            "warn", what, f"is for a model of {plan.runtime}, this is {runtime}",
            "fetch its results with that version; new jobs get new keys",
        )  # fmt: skip


def check_memory(available: int | None, actors: int, bytes_each: int, output_bytes: int) -> Check:
    """Free memory against what a job takes on this machine.

    Args:
        available: Bytes, None if unknown.
        actors: How many run at once, one per core.
        bytes_each: What one of them takes.
        output_bytes: Ciphertexts of one result, which a job holds in flight.
    """
    need = BASE_BYTES + actors * bytes_each + output_bytes
    if available is None:
        advice = f"see that {_gb(need)} are free"
        return Check("warn", "memory", "free memory is unknown on this system", advice)
    detail = f"{_gb(available)} free, {actors} actors need {_gb(need)}"
    fitting = int((available / MEMORY_MARGIN - BASE_BYTES - output_bytes) // bytes_each)
    if available >= need * MEMORY_MARGIN:
        return Check("ok", "memory", detail)
    advice = (
        f"submit with --actors {fitting}" if fitting >= 1 else "free memory, or use another machine"
    )
    return Check("warn" if available >= need else "FAIL", "memory", detail, advice)


def check_space(what: str, folder: Path, need: int, remedy: str) -> Check:
    """Free disk at a folder, which need not exist yet, against bytes needed."""
    free = _free_disk(folder)
    detail = f"{_gb(free)} free at {folder}"
    if free >= need:
        return Check("ok", what, detail)
    return Check("FAIL", what, detail, f"free {_gb(need)}, or set {remedy} to another folder")


def check_pairs_space(folder: Path, pair: int) -> Check:
    """Free disk at a store in a folder against the bytes of a pair."""
    room = _free_disk(folder) // pair
    what, detail = "disk of the store", f"{_gb(pair)} per pair, room for {room} at {folder}"
    if room >= FEW_PAIRS:
        return Check("ok", what, detail)
    return Check("warn" if room else "FAIL", what, detail, "free some space or use another --store")


def check_store(url: str) -> Iterator[Check]:
    """Whether a store can do all that a job asks of it; nothing stays in it.

    Args:
        url: A folder or an `s3://` URL.
    """
    what = f"store {url.partition('?')[0]}"
    try:
        store = connect(url, PATIENCE)
        yield from _credentials(store, what)
        yield _probe(store, what)
    except StoreError as error:
        yield _failed(what, error, unreachable=True)
        return
    try:
        yield _conditional(store, what)
        yield _clock(store, what)
    except StoreError as error:
        yield _failed(what, error)


def _credentials(store: Store, what: str) -> Iterator[Check]:
    found = store.credentials()
    if found is None:
        return
    source, ends = found
    advice = "the driver cannot renew them; use a profile or a role for jobs of hours"
    if ends:
        yield Check("warn", f"{what}: credentials", f"temporary ones from {source}", advice)
    else:
        yield Check("ok", f"{what}: credentials", f"from {source}")


def _probe(store: Store, what: str) -> Check:
    """Write, read, list and delete; raises StoreError if any is refused."""
    fresh = not store.exists(layout.STORE)
    if not fresh:
        check_format(store)
    token, blob = secrets.token_hex(8), os.urandom(PROBE_BYTES)
    key = layout.probe(token)
    begun = time.monotonic()
    try:
        store.write(key, blob)
        if store.read(key, len(blob)) != blob or store.list(key) != [key]:
            raise StoreError(f"{what} gives other bytes than it was given; use another --store")
        # As `nst-batch delete` does, which not every server takes that deletes one by one.
        store.delete_prefix(layout.probes(token))
    finally:
        store.delete(key)
    if store.exists(key):
        raise StoreError(f"{what} shows what was deleted; use another --store")
    took = time.monotonic() - begun
    kind = "new, " if fresh else ""
    return Check("ok", what, f"{kind}writes, reads, lists and deletes ({took:.1f} s)")


def _conditional(store: Store, what: str) -> Check:
    token = secrets.token_hex(8)
    key = layout.probe(token)
    try:
        first, second = store.create(key, b"1"), store.create(key, b"2")
    finally:
        store.delete_prefix(layout.probes(token))
    what = f"{what}: conditional writes"
    if first and not second:
        return Check("ok", what, "the second of two is refused")
    return Check(
        "FAIL", what, "this store ignores If-None-Match; results could be published twice",
        "use a server that honours it, such as Amazon S3 or SeaweedFS 4.48",
    )  # fmt: skip


def _clock(store: Store, what: str) -> Check:
    skew = store.clock() - time.time()
    what, detail = f"{what}: clock", f"{abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
    if abs(skew) < SKEW_WARN:
        return Check("ok", what, detail)
    status: Status = "warn" if abs(skew) < SKEW_FAIL else "FAIL"
    return Check(status, what, detail, "set this machine's clock: timedatectl set-ntp true")


def needs_of(model: Model) -> Needs:
    """Bytes that jobs of a model take: exactly if it is built, else about so many."""
    plan = model.built
    if plan is None:
        return model.engine.typical_needs(model.size)
    seconds, stored = model.engine.rates().seconds(plan.stages), plan.stored
    graph = plan.graph(distinct_pairs(1, plan.pairs_per_result), seconds)
    return Needs(
        call=largest_call(graph),
        result=sum(graph.tasks[i].output_bytes for parts in graph.outputs.values() for i in parts),
        stored=stored.content + stored.style + stored.result,
    )


def _free_disk(folder: Path) -> int:
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _failed(
    what: str, error: NstBatchError, unreachable: bool = False, status: Status = "FAIL"
) -> Check:
    """A named error as a check; such errors say what to do after the last semicolon."""
    detail, _, advice = str(error).rpartition("; ")
    # This is what that advice asks for.
    if advice.startswith("run: nst-batch doctor"):
        advice = "see the server's log"
    return Check(status, what, detail or advice, advice if detail else "", unreachable)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
