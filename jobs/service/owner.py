"""The key that an owner of models signs offers with."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobs.service.offers import fingerprint
from nst.errors import InputError
from nst.folders import explaining, make_private
from nst.private import write_private


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The key that an owner signs offers with; made if there is none.

    Raises:
        InputError: if it cannot be read or written.
    """
    with explaining(path):
        if not path.exists():
            make_private(path.parent)
            write_private(path, Ed25519PrivateKey.generate().private_bytes_raw())
    try:
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no signing key ({error}); restore it from your backup"
        ) from error


def owner_of(path: Path) -> str:
    """Fingerprint of the owner whose signing key this is; see `signing_key` for errors."""
    return fingerprint(signing_key(path).public_key().public_bytes_raw())
