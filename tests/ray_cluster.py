"""A real Ray cluster of several nodes on this machine, whose files are in a folder of its own."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from cluster.local import socket_base

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@contextmanager
def ray_cluster(**head: Any) -> Iterator[tuple[Cluster, Path]]:
    """Start a head that computes nothing; the caller adds nodes.

    Args:
        head: Options of the head, beside its CPUs.

    Yields:
        The cluster, and the folder of all its files.
    """
    with (
        # Ray's processes may still be writing their logs there when it is removed.
        tempfile.TemporaryDirectory(
            prefix="nst-", dir=socket_base(), ignore_cleanup_errors=True
        ) as folder,
        # The address file is below RAY_TMPDIR, as no earlier Ray need have made /tmp/ray; sockets
        # of Ray's dashboard are below TMPDIR.
        mock.patch.dict(
            os.environ,
            {
                "RAY_TMPDIR": folder,
                "TMPDIR": folder,
                "RAY_worker_niceness": "0",
                "RAY_USAGE_STATS_ENABLED": "0",
                "OMP_NUM_THREADS": "1",
            },
        ),
    ):
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.ERROR)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, **head},
        )
        try:
            yield cluster, Path(folder)
        finally:
            cluster.shutdown()
