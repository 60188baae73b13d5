"""The network, its training, its circuits, and both sides of the cryptography.

Knows nothing of Ray or of any storage; `jobs` and `cluster` build on it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nst.stylizer import EncryptedPair, Stylizer

__all__ = ["EncryptedPair", "Stylizer"]


def __getattr__(name: str) -> Any:
    # Only on demand: server processes import this package and must hold no client code.
    if name in __all__:
        from nst import stylizer

        return getattr(stylizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
