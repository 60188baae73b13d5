"""`nst-batch` as a process that ends itself, as `kill -9` would, at a point of its work.

`python -m tests.faults.nst_batch POINT ARGUMENTS...`; without a point it ends as it does.
`$NST_TEST_WEIGHTS`, if set, is level `toy`, and `$NST_TEST_LEVELED_WEIGHTS` what the toy ring of
engine `ckks` computes.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs.client.fetch
import jobs.storage.s3_store
from jobs.cli.main import main
from nst.engines import ENGINES
from nst.network import levels
from nst.network.levels import QualityLevel
from tests.leveled_toy import TOY_ENGINE
from tests.toy import TOY_SIZE

WEIGHTS, LEVELED_WEIGHTS = "NST_TEST_WEIGHTS", "NST_TEST_LEVELED_WEIGHTS"
P_ERROR = 0.05
"""Results are compared to the bit with each other, however noisy they are."""


def die() -> None:
    """End this process on the spot."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(count: int, call: Callable[..., Any], counts: Callable[..., bool]) -> Any:
    """`call`, which is this process's end after so many calls that count."""
    seen = 0

    def called(*arguments: Any, **named: Any) -> Any:
        nonlocal seen
        result = call(*arguments, **named)
        seen += counts(*arguments)
        if seen == count:
            die()
        return result

    return called


def die_in_second_part() -> None:
    """End this process while it uploads a large blob."""
    store = jobs.storage.s3_store.S3Store
    connect = store._connect

    def connected(self: Any) -> Any:
        client = connect(self)
        sent = 0

        def send(**_: Any) -> None:
            nonlocal sent
            sent += 1
            if sent == 2:
                die()

        client.meta.events.register("before-send.s3.UploadPart", send)
        return client

    store._connect = connected  # type: ignore[method-assign]


def arm(point: str) -> None:
    """Prepare the end of this process."""
    store = jobs.storage.s3_store.S3Store
    if point == "upload-part":
        die_in_second_part()
    elif point == "upload-input":
        store.write = die_after(  # type: ignore[method-assign]
            1, store.write, lambda _, key, *__: "/inputs/" in key
        )
    elif point == "fetch-picture":
        module = jobs.client.fetch
        module.write_png = die_after(1, module.write_png, lambda *_: True)
    elif point:
        raise ValueError(point)


if __name__ == "__main__":
    if WEIGHTS in os.environ:
        levels.LEVELS["toy"] = QualityLevel("toy", TOY_SIZE, Path(os.environ[WEIGHTS]), P_ERROR)
    if LEVELED_WEIGHTS in os.environ:
        levels.ONE_FOR_ALL["ckks"] = Path(os.environ[LEVELED_WEIGHTS])
        ENGINES["ckks"] = TOY_ENGINE
    arm(sys.argv.pop(1))
    main()
