"""Makes a process a server: no key generation, encryption or decryption can be imported in it."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from nst.engines import ENGINES

CLIENT_MODULES = ("nst.keyring", "nst.model", "nst.offered", "nst.stylizer")
"""What only a client needs, whatever the engine."""


def client_modules() -> tuple[str, ...]:
    """Modules that a sealed process cannot import."""
    return CLIENT_MODULES + tuple(m for e in ENGINES.values() for m in e.client_modules)


def seal() -> None:
    """Make client code unimportable in this process.

    Raises:
        RuntimeError: if client code has been imported already.
    """
    forbidden = client_modules()
    loaded = [m for m in forbidden if sys.modules.get(m) is not None]
    if loaded:
        raise RuntimeError(f"a server process has imported client code: {', '.join(loaded)}")
    for module in forbidden:
        sys.modules[module] = None  # type: ignore[assignment]
    for engine in ENGINES.values():
        if find_spec(engine.package):
            engine.seal()
