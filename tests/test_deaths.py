"""Why an actor is gone, in our words."""

from __future__ import annotations

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

from cluster.reasons import reason_of_death

OF_RAY = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.1, ID: abc) where the task was running was 15.20GB / 16.00GB (0.95),
which exceeds the memory usage threshold of 0.95. Ray killed this worker (ID: def). Top 10 users:
PID MEM(GB) COMMAND
77  9.10    python train.py --token secret-of-another
"""


@pytest.mark.parametrize(
    "error", [OutOfMemoryError(OF_RAY), RayActorError(error_msg=f"NODE_OUT_OF_MEMORY {OF_RAY}")]
)
def test_lack_of_memory_is_said_with_what_was_needed_and_there(error: Exception) -> None:
    assert reason_of_death(error, 1_500_000_000) == (
        "its worker was killed for lack of memory; a worker needs 1.5 GB, 15.20GB of 16.00GB of "
        "the machine were in use; take fewer --actors"
    )


def test_nothing_of_other_processes_is_told() -> None:
    for text in (OF_RAY, "NODE_OUT_OF_MEMORY\npython other.py --token secret"):
        assert "secret" not in reason_of_death(OutOfMemoryError(text), 0)


@pytest.mark.parametrize(
    "error", [RayActorError(error_msg="SIGKILL\nsecret"), WorkerCrashedError()]
)
def test_another_death_is_only_a_death(error: Exception) -> None:
    assert reason_of_death(error, 1) == "its worker died"
