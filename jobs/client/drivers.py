"""Drivers of jobs as the client sees them: a process of this machine, or a job of a Ray cluster."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from tenacity import Retrying, retry_if_exception_message, stop_after_delay, wait_fixed

from jobs.client.home import Home, LocalJob
from jobs.client.session import Session
from jobs.execution.loading import ModelPin
from jobs.execution.notify import URL_VARIABLE
from jobs.options import Target
from jobs.proxies import proxy_hint
from jobs.storage import layout
from jobs.storage.records import JobState, write_record
from jobs.storage.store import address_of
from nst.engines.base import PLAN_FILE
from nst.engines.cache import ModelCache
from nst.errors import CircuitError, ClusterError, InputError, first_line
from nst.folders import PASSPHRASE_VARIABLE

MODULE = "jobs.execution.driver"
ENTRY = Path(__file__).resolve().parents[2] / "nst_batch.py"
"""What runs it, whatever the working directory or PYTHONPATH has of the same name."""
CONNECT_SECONDS = 10.0
NO_AGENT = "No available agent"
"""What the Jobs API says until a cluster that has just started knows of its nodes."""
AGENT_SECONDS, AGENT_EVERY = 60.0, 1.0
"""How long to ask again then, and how often."""
STOP_SECONDS = 10.0
"""For a driver to end by itself before it is killed."""
ASK_EVERY = 5.0
"""Seconds between two questions to a cluster whether a driver runs."""


def require_reachable(target: Target) -> None:
    """Raise ClusterError if a cluster does not answer: before hours of encryption, not after."""
    if target.cluster:
        with _jobs_api(target.cluster):
            pass


class Driver(Protocol):
    """The driver that was started last for a job."""

    def alive(self) -> bool:
        """Whether it runs, or may run for all that is known."""
        ...

    def logs(self) -> str:
        """What it has printed."""
        ...

    def stop(self) -> None:
        """End it, if it runs."""
        ...


def start(
    session: Session, local: LocalJob, target: Target, actors: int, notify_url: str = ""
) -> Driver:
    """Start a driver for a job, whose state says `queued` from here on.

    Args:
        session: Where the job is; what tells of its driver is saved with it here.
        local: The job.
        target: Where.
        actors: How many actors; on a cluster, 0 is one per CPU.
        notify_url: Where the driver posts the end; empty for nowhere.

    Raises:
        CircuitError: if this machine does not have the job's model.
        ClusterError: if a cluster does not answer or refuses.
        StoreError: if the state cannot be written.
    """
    store = session.store
    state = JobState(status="queued", pairs_total=len(local.pairs), heartbeat=store.clock())
    write_record(store, layout.state(local.job_id), state)
    try:
        if target.cluster:
            _start_on_cluster(session.home, local, target, actors, notify_url)
        else:
            start_here(session.home, local, actors, notify_url)
    except Exception:
        store.delete(layout.state(local.job_id))
        raise
    return driver_of(session.home, session.home.job(local.job_id))


def driver_of(home: Home, local: LocalJob) -> Driver:
    """The driver that was started last for a job."""
    return ClusterDriver(local) if local.cluster else LocalDriver(home, local)


def start_here(
    home: Home, local: LocalJob, actors: int, notify_url: str = ""
) -> subprocess.Popen[bytes]:
    """Start a job's driver on this machine, in a session of its own so that Ctrl-C spares it."""
    log = home.driver_log(local.job_id)
    # The driver is a server: what opens the secret key is none of its business.
    pin = pin_of(home, local)
    kept = (PASSPHRASE_VARIABLE, URL_VARIABLE)
    environment = {k: v for k, v in os.environ.items() if k not in kept}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-P", ENTRY, MODULE, local.store, local.job_id,
                "--actors", str(actors), *pin.options, "--folder", pin.folder,
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment | _told(notify_url),
            cwd=ENTRY.parent,
        )  # fmt: skip
    changed = {"driver_pid": process.pid, "cluster": "", "cluster_python": "", "submission": ""}
    home.save_job(local.model_copy(update=changed))
    return process


def pin_of(home: Home, local: LocalJob) -> ModelPin:
    """What a driver may load for a job, out of the user's own models.

    Raises:
        CircuitError: if the model is missing or damaged here: a store's is not trusted.
    """
    try:
        published = ModelCache(home.models).open(local.model_id)
    except CircuitError as error:
        raise CircuitError(
            f"{error}, and a driver loads no other than this machine's own; submit the pairs again"
        ) from error
    plan, bundle = (
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (published.folder / PLAN_FILE, published.server_bundle)
    )
    folder = str(published.folder.absolute())
    return ModelPin(local.model_id, local.key_id, plan, bundle, folder)


def _told(notify_url: str) -> dict[str, str]:
    """The variable for a driver that is to post the end."""
    return {URL_VARIABLE: notify_url} if notify_url else {}


class LocalDriver:
    """A process of this machine."""

    def __init__(self, home: Home, local: LocalJob) -> None:
        self.pid, self.job_id = local.driver_pid, local.job_id
        self.log = home.driver_log(local.job_id)

    def alive(self) -> bool:
        """See `Driver`; a process that has ended but is not yet collected does not run."""
        process = Path(f"/proc/{self.pid}")
        try:
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            arguments = (process / "cmdline").read_bytes().split(b"\0")
        except (OSError, IndexError):
            return False
        # Another process may have got its number since.
        return self.pid > 0 and state != "Z" and self.job_id.encode() in arguments

    def logs(self) -> str:
        """See `Driver`."""
        try:
            return self.log.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise InputError(f"cannot read {self.log} ({error.strerror})") from error

    def stop(self) -> None:
        """See `Driver`; its actors end with it."""
        deadline = time.monotonic() + STOP_SECONDS
        while self.alive():
            late = time.monotonic() > deadline
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL if late else signal.SIGTERM)
            time.sleep(0.5)


class ClusterDriver:
    """A job of a Ray cluster, through its Jobs API."""

    def __init__(self, local: LocalJob) -> None:
        self.address, self.submission = local.cluster, local.submission
        self._asked, self._alive = -ASK_EVERY, True

    def alive(self) -> bool:
        """See `Driver`; asks every few seconds, and a cluster that is silent may have it."""
        if time.monotonic() - self._asked > ASK_EVERY:
            self._asked = time.monotonic()
            with contextlib.suppress(ClusterError), _jobs_api(self.address) as client:
                self._alive = not client.get_job_status(self.submission).is_terminal()
        return self._alive

    def logs(self) -> str:
        """See `Driver`; raises ClusterError if the cluster does not answer."""
        with _jobs_api(self.address) as client:
            return str(client.get_job_logs(self.submission))

    def stop(self) -> None:
        """See `Driver`; raises ClusterError if the cluster does not answer."""
        with _jobs_api(self.address) as client:
            client.stop_job(self.submission)


def _start_on_cluster(
    home: Home, local: LocalJob, target: Target, actors: int, notify_url: str
) -> None:
    submission = f"nst-{local.job_id}-{secrets.token_hex(3)}"
    # No environment goes along but the webhook: the cluster has its own credentials, and the
    # passphrase stays.
    variables = _told(notify_url)
    extra = {"runtime_env": {"env_vars": variables}} if variables else {}
    entrypoint = shlex.join(
        [
            target.python, "-P", "-m", ENTRY.stem, MODULE,
            address_of(local.store).portable().url, local.job_id,
            "--actors", str(actors), "--cluster", *pin_of(home, local).options,
        ]
    )  # fmt: skip
    # In (?s) a dot is a line's end as well: what follows are stack traces.
    patience = Retrying(
        retry=retry_if_exception_message(match=f"(?s).*{NO_AGENT}"),
        wait=wait_fixed(AGENT_EVERY),
        stop=stop_after_delay(AGENT_SECONDS),
        reraise=True,
    )
    with _jobs_api(target.cluster) as client:
        patience(client.submit_job, entrypoint=entrypoint, submission_id=submission, **extra)
    changed = {
        "driver_pid": 0,
        "cluster": target.cluster,
        "cluster_python": target.python,
        "submission": submission,
    }
    home.save_job(local.model_copy(update=changed))


@contextmanager
def _jobs_api(address: str) -> Iterator[Any]:
    """A client of a cluster's Jobs API; what it raises becomes ClusterError."""
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise InputError(
            f"cluster {address}: no address of a Jobs API; give http://host:8265"
        ) from error
    hint = proxy_hint(url)
    try:
        if not hint:
            # Ray itself would go on trying for long.
            socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient

        try:
            yield JobSubmissionClient(url)
        except RayError as error:  # a token that is missing or wrong
            raise RuntimeError(str(error)) from error
    except (OSError, RuntimeError, ValueError) as error:
        # What follows the first line are stack traces of the cluster's.
        raise ClusterError(
            f"cluster {address}: {first_line(error)}{hint}; check --cluster (http://host:8265), "
            "its token, and that it runs"
        ) from error
