"""Engines by name: each computes a network on ciphertexts in its own way (see `base`)."""

from __future__ import annotations

import json

from nst.engines.base import Engine, Plan
from nst.engines.concrete import ConcreteEngine
from nst.errors import CircuitError

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (ConcreteEngine(),)}


def get_engine(name: str) -> Engine:
    """The engine of that name; raises CircuitError if this version has none."""
    if name not in ENGINES:
        raise CircuitError(f"no engine {name!r} in this version; it has {', '.join(ENGINES)}")
    return ENGINES[name]


def parse_plan(blob: bytes, what: str) -> Plan:
    """A plan out of its JSON record, by the engine that it names.

    Raises:
        CircuitError: if it is damaged or of another version.
    """
    try:
        record = json.loads(blob)
        engine = str(record["engine"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CircuitError(f"{what} is damaged; build it again") from error
    return get_engine(engine).read_plan(record)
