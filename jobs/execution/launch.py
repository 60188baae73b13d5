"""Starting drivers: as a process of this machine, or as a job of a Ray cluster.

The client of a user with a model of their own does that, and a service for its customers.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from tenacity import Retrying, retry_if_exception_message, stop_after_delay, wait_fixed

from jobs.execution.loading import ModelPin
from jobs.execution.notify import URL_VARIABLE
from jobs.options import Target
from jobs.proxies import proxy_hint
from jobs.storage.store import address_of
from nst.errors import ClusterError, InputError, first_line
from nst.folders import PASSPHRASE_VARIABLE

MODULE = "jobs.execution.driver"
ENTRY = Path(__file__).resolve().parents[2] / "nst_batch.py"
"""What runs it, whatever the working directory or PYTHONPATH has of the same name."""
CONNECT_SECONDS = 10.0
NO_AGENT = "No available agent"
"""What the Jobs API says until a cluster that has just started knows of its nodes."""
AGENT_SECONDS, AGENT_EVERY = 60.0, 1.0
"""How long to ask again then, and how often."""


@dataclass(frozen=True)
class Launch:
    """A job's driver before it runs.

    Attributes:
        store: URL of the job's store.
        job_id: The job.
        pin: The model and key set that it may load.
        actors: How many; on a cluster, 0 is one per CPU.
        notify_url: Where it posts the end; empty for nowhere.
    """

    store: str
    job_id: str
    pin: ModelPin
    actors: int
    notify_url: str = ""

    def here(
        self, output: IO[bytes], end_with: int = subprocess.DEVNULL, extra: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start it on this machine, in a session of its own so that Ctrl-C spares it.

        Args:
            output: Where it prints.
            end_with: Its standard input.
            extra: More arguments.
        """
        # The driver is a server: what opens the secret key is none of its business.
        kept = (PASSPHRASE_VARIABLE, URL_VARIABLE)
        environment = {k: v for k, v in os.environ.items() if k not in kept}
        return subprocess.Popen(
            [
                sys.executable, "-P", ENTRY, MODULE, self.store, self.job_id,
                "--actors", str(self.actors), *self.pin.options, "--folder", self.pin.folder,
                *extra,
            ],
            stdin=end_with,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment | self._told,
            cwd=ENTRY.parent,
        )  # fmt: skip

    def on_cluster(self, target: Target, folder: str = "") -> str:
        """Start it on a cluster; returns the id of its submission.

        No environment goes along but the webhook: the cluster has its own credentials.

        Args:
            target: The cluster.
            folder: Where its nodes find the model; empty for the job's store.

        Raises:
            ClusterError: if the cluster does not answer or refuses.
        """
        submission = f"nst-{self.job_id}-{secrets.token_hex(3)}"
        extra = {"runtime_env": {"env_vars": self._told}} if self._told else {}
        entrypoint = shlex.join(
            [
                target.python, "-P", "-m", ENTRY.stem, MODULE,
                address_of(self.store).portable().url, self.job_id,
                "--actors", str(self.actors), "--cluster", *self.pin.options,
                *(["--folder", folder] if folder else []),
            ]
        )  # fmt: skip
        # In (?s) a dot is a line's end as well: what follows are stack traces.
        patience = Retrying(
            retry=retry_if_exception_message(match=f"(?s).*{NO_AGENT}"),
            wait=wait_fixed(AGENT_EVERY),
            stop=stop_after_delay(AGENT_SECONDS),
            reraise=True,
        )
        with jobs_api(target.cluster) as client:
            patience(client.submit_job, entrypoint=entrypoint, submission_id=submission, **extra)
        return submission

    @property
    def _told(self) -> dict[str, str]:
        """The variable for a driver that is to post the end."""
        return {URL_VARIABLE: self.notify_url} if self.notify_url else {}


def require_reachable(target: Target) -> None:
    """Find out that a driver could not run: before hours of encryption, not after.

    Raises:
        ClusterError: if a cluster does not answer.
        InputError: if this installation has no Ray.
    """
    if find_spec("ray") is None:
        raise InputError(
            "this installation is a client's, without Ray; submit by a service's --model, or "
            "install nst-batch as a whole"
        )
    if target.cluster:
        with jobs_api(target.cluster):
            pass


@contextmanager
def jobs_api(address: str) -> Iterator[Any]:
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
