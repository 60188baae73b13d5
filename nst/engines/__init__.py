"""Engines by name: each computes a network on ciphertexts in its own way (see `base`)."""

from __future__ import annotations

from nst.engines.base import Engine
from nst.engines.concrete import ConcreteEngine
from nst.errors import CircuitError

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (ConcreteEngine(),)}


def get_engine(name: str) -> Engine:
    """The engine of that name; raises CircuitError if this version has none."""
    if name not in ENGINES:
        raise CircuitError(f"no engine {name!r} in this version; it has {', '.join(ENGINES)}")
    return ENGINES[name]
