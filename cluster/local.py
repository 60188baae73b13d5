"""Ray for one job: started on this machine, or a cluster that is running already."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

from nst.errors import InputError
from nst.temporary import TemporaryFolder

LONGEST_BASE = 22
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

    Whoever joins a Ray runs code in it. So this one is its user's alone, on a machine of many: a
    random token in no file, listeners on the loopback interface, files that nobody else reads.

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
    from ray._private import ray_constants

    with (
        _ray_folder() as folder,
        # Of workers: what they leave when they are killed goes with the folder.
        _environment(TMPDIR=folder),
        _settings_read_again(),
        # Ray's own default is one token for all, in a file in HOME with the modes of the umask.
        _environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32)),
        # Ray listens on all interfaces wherever it could be a cluster's node; workers inherit it.
        _environment(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0"),
        _attribute(ray_constants, "ENABLE_RAY_CLUSTER", False),
    ):
        _read_settings()
        with _umask(0o077), _our_folder():
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


def _read_settings() -> None:
    """Have Ray's compiled part read the environment, which it does once per process by itself."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _settings_read_again() -> Iterator[None]:
    """At the end: a process that still asked for a token would refuse its next cluster's calls."""
    try:
        yield
    finally:
        _read_settings()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Variables for this process and those that it starts, as they were before at the end."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _attribute(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """Another value of a module's, which was read when it was imported; as before at the end."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    """The modes that files of this process, and of those that it starts, do not get."""
    previous = os.umask(mask)
    try:
        yield
    finally:
        os.umask(previous)


@contextmanager
def _our_folder() -> Iterator[None]:
    """Work where our packages are: Ray's workers look there before any other folder."""
    before = Path.cwd()
    os.chdir(Path(__file__).resolve().parents[1])
    try:
        yield
    finally:
        os.chdir(before)


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
            # IPv6 stands in brackets.
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        with _our_folder():
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
    bases = (tempfile.gettempdir(), "/tmp", "/dev/shm", "/var/tmp")
    short = (x for x in bases if len(x) <= LONGEST_BASE and os.access(x, os.W_OK | os.X_OK))
    return next((x for x in short if shutil.disk_usage(x).free), "/tmp")


@contextmanager
def _ray_folder() -> Iterator[str]:
    """A new folder where the system has its temporary files, by a path that is short enough.

    Ray opens it to everybody; the one around it stays closed.
    """
    with TemporaryFolder("nst-ray-") as around, ExitStack() as stack:
        folder = Path(around) / "r"
        folder.mkdir()
        if tempfile.gettempdir() != (base := socket_base()):
            # On clusters TMPDIR is long, and /tmp small: nothing but a link goes there.
            link = Path(stack.enter_context(TemporaryFolder("nst-ray-", base))) / "r"
            link.symlink_to(folder)
            folder = link
        yield str(folder)


def cpus() -> int:
    """Logical CPUs that the connected cluster offers now."""
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 0))
