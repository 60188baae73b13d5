"""What Ray's errors mean for a user, whom Ray gives advice on its own settings."""

from __future__ import annotations

import re

from nst.errors import first_line, last_line

MEANINGS = {
    "OutOfMemoryError": "memory is used up, and Ray ended an actor; give fewer --actors, or more "
    "memory for each",
    "OutOfDiskError": "the disk of Ray's temporary folder is full; free some space there, or set "
    "TMPDIR to another disk",
    "ObjectStoreFullError": "Ray's shared memory is full; give it more (in a container: "
    "--shm-size), or fewer --actors",
    "AuthenticationError": "Ray's token is missing or wrong; set RAY_AUTH_TOKEN, or "
    "RAY_AUTH_TOKEN_PATH to a file that is there, as on the cluster",
    "RuntimeEnvSetupError": "Ray could not prepare its workers; see the cluster's logs",
    "LocalRayletDiedError": "Ray died on this node; see its memory and disk, then: "
    "nst-batch retry JOB",
    "NodeDiedError": "a node was lost; see the cluster, then: nst-batch retry JOB",
    "WorkerCrashedError": "a worker died; see its memory, then: nst-batch retry JOB",
}
"""By the name of Ray's class; what reads a reason needs no Ray."""
NOT_STARTED = re.compile(
    r"Timed out waiting for file|Failed to start|failed to start|node (timed out|has not been)"
)
"""How Ray begins to say that it did not come up."""
_OWN_NAME = re.compile(r"^(nst\.errors|ray\.exceptions)\.(\w+): ")


def why(error: BaseException) -> str:
    """What happened, in one line.

    Args:
        error: Ray's, or any other. Of one that carries another process's stack trace the last line
            says it, after the name of what was raised there.
    """
    for kind in type(error).__mro__:
        if kind.__name__ in MEANINGS:
            return MEANINGS[kind.__name__]
    if type(error).__module__.startswith("ray") or type(error) is RuntimeError:
        if NOT_STARTED.search(str(error)):
            return (
                "Ray did not start; free some space in its temporary folder and in /dev/shm, or "
                "set TMPDIR to another disk"
            )
        if not getattr(error, "actor_init_failed", True):
            return f"actors die before they are ready ({first_line(error)}); see their memory"
    line = last_line(error)
    named = _OWN_NAME.match(line)
    if named and named[2] in MEANINGS:
        return MEANINGS[named[2]]
    return _OWN_NAME.sub("", line)
