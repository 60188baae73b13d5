"""What Ray's errors mean for a user, whom Ray gives advice on its own settings."""

from __future__ import annotations

import re

from nst.errors import first_line, last_line

MEANINGS = {
    "OutOfDiskError": "the disk of Ray's temporary folder is full; free some space there, or set "
    "TMPDIR to another disk",
    "ObjectStoreFullError": "Ray's shared memory is full; give it more (in a container: "
    "--shm-size), or take fewer --actors",
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
    r"Timed out waiting for file|[Ff]ailed to start|node (timed out|has not been)"
)
"""How Ray says that it did not come up."""
NO_MEMORY = re.compile(r"NODE_OUT_OF_MEMORY|running low on memory")
MEMORY_OF_NODE = re.compile(r"was ([\d.]+ ?[KMGT]i?B) / ([\d.]+ ?[KMGT]i?B)")
TRACED = frozenset({"RayTaskError", "RayActorError"})
"""Those that end in another process's stack trace."""
_OWN_NAME = re.compile(r"^(nst\.errors|ray\.exceptions)\.(\w+): ")


def why(error: BaseException, needs: int = 0) -> str:
    """What happened, in one line.

    Args:
        error: Ray's, or any other. Of one that carries another process's stack trace the last line
            says it, after the name of what was raised there.
        needs: Bytes of an actor, 0 if that is not known.
    """
    line, text = last_line(error), str(error)
    named = _OWN_NAME.match(line)
    kinds = [kind.__name__ for kind in type(error).__mro__] + ([named[2]] if named else [])
    ours = type(error).__module__.startswith("ray")
    if "OutOfMemoryError" in kinds or (ours and NO_MEMORY.search(text)):
        return _no_memory(text, needs)
    for kind in kinds:
        if kind in MEANINGS:
            return MEANINGS[kind]
    if (ours or type(error) is RuntimeError) and NOT_STARTED.search(text):
        return (
            "Ray did not start; free some space in its temporary folder and in /dev/shm, or set "
            "TMPDIR to another disk"
        )
    if not getattr(error, "actor_init_failed", True):
        return f"actors die before they are ready ({first_line(error)}); see their memory"
    if type(error).__module__ == "ray.exceptions" and not TRACED.intersection(kinds):
        return first_line(error)  # What follows is advice on Ray.
    return _OWN_NAME.sub("", line)


def reason_of_death(error: Exception, needs: int) -> str:
    """Why an actor is gone, in one line; what Ray says lists other processes' command lines.

    Args:
        error: Ray's.
        needs: Bytes of an actor, 0 if that is not known.
    """
    short = type(error).__name__ == "OutOfMemoryError" or NO_MEMORY.search(str(error))
    return _no_memory(str(error), needs) if short else "its worker died"


def _no_memory(text: str, needs: int) -> str:
    wants = f"; a worker needs {needs / 1e9:.1f} GB" if needs else ""
    found = MEMORY_OF_NODE.search(text)
    had = f", {found[1]} of {found[2]} of the machine were in use" if found else ""
    return f"its worker was killed for lack of memory{wants}{had}; take fewer --actors"
