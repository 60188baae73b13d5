"""Writes requirements-client.lock, -server.lock and -train.lock: parts of requirements.lock.

Run in the whole environment, whose packages say what they need: `make lock` does. An extra's
packages and all that these declare are taken, but for what they declare and do not use here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent
WHOLE = ROOT / "requirements.lock"
EXTRAS = ("client", "server", "train")
NOT_NEEDED = {
    "concrete-python": {"torch", "scipy", "jsonpickle", "networkx", "matplotlib", "z3-solver"},
    "ray": {"pyarrow", "pandas", "fsspec", "tensorboardx"},
}
"""By package, what it declares for parts of it that are not used: the frontend of Concrete, which
compiles circuits, and Ray's data sets and training."""
HEADER = """\
# The {extra} installation: a part of requirements.lock, written by `make lock`, not by hand. It is
# complete: install it with --no-deps.{reason}
"""
REASON = """ concrete-python declares PyTorch, which its frontend needs and its
# runtime does not."""


def lock_of(extra: str) -> str:
    """The lock of an extra: lines of the whole lock.

    Raises:
        LookupError: if a package is needed that the whole lock does not have.
    """
    versions = dict(_locked())
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    whole = extra == "train"
    wanted = project["optional-dependencies"][extra] + (project["dependencies"] if whole else [])
    left_out = {} if whole else NOT_NEEDED
    ahead, taken = [Requirement(text) for text in wanted], set[tuple[str, str]]()
    while ahead:
        requirement = ahead.pop()
        name = canonicalize_name(requirement.name)
        for part in ("", *requirement.extras):
            if (name, part) in taken:
                continue
            taken.add((name, part))
            ahead += _needs(name, part, left_out.get(name, set()))
    names = sorted({name for name, _ in taken})
    lines = [f"{spelled}=={version}" for spelled, version in (versions[name] for name in names)]
    return HEADER.format(extra=extra, reason="" if whole else REASON) + "\n".join(lines) + "\n"


def _locked() -> Iterator[tuple[str, tuple[str, str]]]:
    """By canonical name, each package of the whole lock as it is spelled, and its version."""
    for line in WHOLE.read_text().splitlines():
        found = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line)
        if found:
            yield canonicalize_name(found[1]), (found[1], found[2])


def _needs(name: str, extra: str, left_out: set[str]) -> Iterator[Requirement]:
    """What a package declares on this machine, but for what is not needed."""
    for text in requires(name) or []:
        requirement = Requirement(text)
        without = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        wanted = (
            without
            if not extra
            else (
                not without and requirement.marker and requirement.marker.evaluate({"extra": extra})
            )
        )
        if wanted and canonicalize_name(requirement.name) not in left_out:
            yield requirement


def main() -> None:
    """Write both."""
    for extra in EXTRAS:
        (ROOT / f"requirements-{extra}.lock").write_text(lock_of(extra))


if __name__ == "__main__":
    main()
