"""Batch jobs: command line, client's side, store, and execution on the server."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.api import Client, Job, Results
    from jobs.client.pairs import Pair

__all__ = ["Client", "Job", "Pair", "Results"]


def __getattr__(name: str) -> Any:
    # Not before it is asked for: server processes import this package and must hold no client code.
    if name in __all__:
        from jobs import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
