"""What a project's file may say without being asked about: nothing that data or credentials go to.

A folder may come from others, and with it its `nst-batch.toml`. A cluster runs the job and gets the
token of its Jobs API; a store gets ciphertexts, and an S3 server what a profile's key signs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from nst.errors import InputError
from nst.folders import default_folder, explaining, make_private
from nst.plain import plain

ASKED = frozenset({"cluster", "cluster-python", "endpoint-url", "profile", "store"})
"""Keys that a project's file gives only with its user's consent."""
FLAG, VARIABLE = "--trust-project", "NST_BATCH_TRUST_PROJECT"
"""What consents without being asked, for one call or for all."""


def require_trusted(
    file: str, values: Iterable[tuple[str, object]], ask: Callable[[str], bool] | None
) -> None:
    """Have the user consent to what a project's file says, once for a folder and what it says.

    Args:
        file: Name of the project's file.
        values: Keys that it sets and their values; those that the caller gives otherwise left out.
        ask: Shows a question and says whether the answer is yes; None where no one can answer.

    Raises:
        InputError: if there is no consent.
    """
    said = sorted({(key, json.dumps(value, default=str)) for key, value in values if key in ASKED})
    if not said or os.environ.get(VARIABLE):
        return
    folder = str(Path.cwd())
    digest = hashlib.sha256(json.dumps([folder, said]).encode()).hexdigest()
    mark = default_folder() / "trusted" / digest
    if mark.is_file():
        return
    shown = ", ".join(f"{key} = {plain(value, 200)}" for key, value in said)
    where = f"{plain(folder)}/{file}: {shown}"
    if ask is None:
        raise InputError(
            f"{where}: whoever wrote this would get your data or credentials, and this is no "
            f"terminal to ask at; check it, then add {FLAG} or set {VARIABLE}=1"
        )
    if not ask(f"{where}\nData and credentials would go there. Do you trust this file?"):
        raise InputError(f"{where}: not trusted; give these options yourself, or remove them")
    with explaining(mark):
        make_private(mark.parent)
        mark.touch(mode=0o600)
