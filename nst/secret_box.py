"""A secret key under a passphrase: scrypt makes the key, AES-256-GCM encrypts and authenticates.

Both come from the `cryptography` package. The parameters belong to the format, not to the file:
a file that was tampered with cannot ask for weaker ones, nor for gigabytes of memory.
"""

from __future__ import annotations

import os
import struct
import unicodedata

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from nst.errors import InputError

MAGIC = b"NSTB"
FORMAT = 1
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**17, 8, 1
"""128 MiB and some 0.4 s a guess on one core; OWASP's recommendation."""
KEY_BYTES, SALT_BYTES, NONCE_BYTES, TAG_BYTES = 32, 16, 12, 16
SHORTEST = 8
"""Characters of a passphrase at least."""
_HEADER = struct.Struct(f"<4sI{SALT_BYTES}s{NONCE_BYTES}s")


def is_box(blob: bytes) -> bool:
    """Whether bytes are a secret under a passphrase, damaged or not."""
    return blob.startswith(MAGIC)


def lock(secret: bytes, passphrase: str, label: str) -> bytes:
    """Encrypt a secret under a passphrase; takes 128 MiB of memory and some 0.4 s.

    Args:
        secret: Any bytes.
        passphrase: At least `SHORTEST` characters.
        label: What the secret is; a box opens under its own label only.

    Raises:
        InputError: if the passphrase is too short.
    """
    if len(passphrase) < SHORTEST:
        raise InputError(
            f"a passphrase needs {SHORTEST} characters at least; take four random words or more"
        )
    salt, nonce = os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES)
    header = _HEADER.pack(MAGIC, FORMAT, salt, nonce)
    return header + AESGCM(_key(passphrase, salt)).encrypt(nonce, secret, _bound(header, label))


def unlock(box: bytes, passphrase: str, label: str) -> bytes:
    """Inverse of `lock`; takes as long.

    Raises:
        InputError: if the passphrase is wrong, or the box damaged, changed or under another
            label (which a wrong passphrase cannot be told from), or of another format.
    """
    if len(box) < _HEADER.size + TAG_BYTES:
        raise InputError(f"{label} is damaged (truncated); restore it from your backup")
    magic, form, salt, nonce = _HEADER.unpack_from(box)
    if magic != MAGIC or form != FORMAT:
        raise InputError(
            f"{label} has passphrase format {form}, this version reads {FORMAT}; "
            "use the version that wrote it"
        )
    header, sealed = box[: _HEADER.size], box[_HEADER.size :]
    try:
        return AESGCM(_key(passphrase, salt)).decrypt(nonce, sealed, _bound(header, label))
    except InvalidTag as error:
        raise InputError(
            f"wrong passphrase for {label}, or its file is damaged; "
            "try again, or restore it from your backup"
        ) from error


def _key(passphrase: str, salt: bytes) -> bytes:
    # Keyboards and systems differ in how they compose an é. What an environment variable holds
    # beside UTF-8 arrives as surrogates.
    text = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogateescape")
    return Scrypt(salt=salt, length=KEY_BYTES, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(text)


def _bound(header: bytes, label: str) -> bytes:
    """What is authenticated beside the secret."""
    return header + label.encode()
