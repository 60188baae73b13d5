"""Engines by name: each computes a network on ciphertexts in its own way (see `base`)."""

from __future__ import annotations

from nst.engines.base import Engine, Plan
from nst.engines.ckks import CkksEngine
from nst.engines.concrete import ConcreteEngine
from nst.errors import CircuitError
from nst.parsing import parse_json

_ALL: tuple[Engine, ...] = (ConcreteEngine(), CkksEngine())
ENGINES: dict[str, Engine] = {engine.name: engine for engine in _ALL}


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
        record = parse_json(blob)
        if not isinstance(record, dict):
            raise ValueError("no record")
        engine = str(record["engine"])
    except (ValueError, KeyError) as error:
        raise CircuitError(f"{what} is damaged; build it again") from error
    return get_engine(engine).read_plan(record)
