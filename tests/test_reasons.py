"""Ray's errors as a user is told of them."""

from __future__ import annotations

from typing import Any

import pytest
from ray import exceptions

from cluster import executor as module
from cluster.executor import RayExecutor, _Running, _Slot
from cluster.reasons import why

ADVICE = "\n\nRefer to the documentation on how to address the out of memory issue: RAY_memory"
TRACE = 'The actor died because of an error raised in its creation task, ray::A()\n  File "x"\n'


def failed_to_load(line: str) -> exceptions.RayActorError:
    return exceptions.RayActorError("id", TRACE + line, actor_init_failed=True)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (exceptions.OutOfMemoryError("Task was killed due to low memory" + ADVICE), "--actors"),
        (exceptions.OutOfDiskError("x"), "TMPDIR"),
        (exceptions.ObjectStoreFullError("x"), "--shm-size"),
        (exceptions.AuthenticationError("No token"), "RAY_AUTH_TOKEN_PATH"),
        (exceptions.LocalRayletDiedError(), "Ray died"),
        (RuntimeError("Timed out waiting for file /tmp/x/gcs_server_port\nmore"), "TMPDIR"),
        (exceptions.RayActorError("id", "The actor died\n\tpid: 1\nadvice"), "The actor died"),
        (failed_to_load("nst.errors.StoreError: store s has no keys"), "store s has no keys"),
        (failed_to_load("ray.exceptions.OutOfMemoryError: advice"), "--actors"),
        (ValueError("first\nlast"), "last"),
        (KeyError(), "KeyError"),
    ],
)
def test_what_happened_stands_in_one_line(error: Exception, words: str) -> None:
    reason = why(error)
    assert words in reason
    assert "\n" not in reason and len(reason) < 200 and "Refer to" not in reason
    assert not reason.startswith(("nst.", "ray."))


def test_an_actor_that_the_memory_monitor_ended_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def get(_: object) -> None:
        raise exceptions.OutOfMemoryError("killed" + ADVICE)

    monkeypatch.setattr(module.ray, "get", get)
    monkeypatch.setattr(module.ray, "nodes", lambda: [{"NodeID": "n", "Alive": True}])
    hands: RayExecutor = RayExecutor(0, lambda: None)  # type: ignore[arg-type,return-value]
    filled: list[_Slot] = []
    monkeypatch.setattr(hands, "_fill", filled.append)
    tasks: dict[Any, _Running] = {"took": _Running(3, None, ()), "next": _Running(4, None, ())}
    slot = _Slot(None, None, "n", tasks)
    hands._task_ended(slot, "took")
    assert filled == [slot] and not slot.tasks
    first, second = hands._ended
    assert (first.index, first.blamed, second.index, second.blamed) == (3, True, 4, False)
    assert "--actors" in str(first.error)
