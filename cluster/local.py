"""Ray for one job: started on this machine, or a cluster that is running already."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from nst.errors import InputError

LONGEST_BASE = 24
"""Characters of a folder for temporary files below which the names of Ray's sockets fit."""
CONNECT_SECONDS = 10.0
TOKEN_ADVICE = "ray._private.authentication.authentication_token_setup"
"""Logger that says how to do without the token that Ray makes."""
HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""For GLIBC_TUNABLES: `malloc` asks for transparent huge pages. Calls read whole evaluation keys,
tens of megabytes, all the time; with pages of 4 KiB two actors slow each other down by 4 %."""
ACTOR_MALLOC = f"{HUGE_PAGES}:glibc.malloc.mmap_threshold=1048576"
"""Of actors besides: a call's ciphertexts, megabytes each, go back to the system with its end and
leave no holes in the heap."""


@contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """Start Ray on this machine and stop it at the end.

    Args:
        cpus: Logical CPUs to offer, one an actor.
    """
    # Ray gives workers nice 15 by default, and they would starve beside any busy process.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Actors run one single-threaded task each; idle OpenMP threads would only spin.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GLIBC_TUNABLES", ACTOR_MALLOC)
    logging.getLogger(TOKEN_ADVICE).setLevel(logging.ERROR)
    import ray

    # Ray's processes may still be writing their logs there when it is removed.
    with tempfile.TemporaryDirectory(
        prefix="nst-ray-", dir=socket_base(), ignore_cleanup_errors=True
    ) as folder:
        ray.init(
            # Never a cluster that RAY_ADDRESS or a file in /tmp points to.
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=folder,
        )
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def running_ray(address: str) -> Iterator[None]:
    """Connect to a Ray cluster, and leave it at the end.

    Args:
        address: `auto`, or host and port of the cluster's head, from one of its nodes.

    Raises:
        InputError: if no cluster answers there.
    """
    import ray
    from ray.exceptions import RayError

    try:
        if ":" in address:
            # Ray itself would go on trying for two minutes.
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        raise InputError(
            f"no Ray cluster answers at {address}: run this on one of its nodes, after `ray start` "
            "and with its token"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def socket_base() -> str:
    """Where a temporary folder with sockets goes: their paths have 107 characters at most."""
    base = tempfile.gettempdir()
    return base if len(base) <= LONGEST_BASE else "/tmp"


def cpus() -> int:
    """Logical CPUs that the connected cluster offers now."""
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 0))
