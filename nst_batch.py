"""The way in: this installation's packages come before others of the same names.

`jobs` and `cluster` are names that a user's project may have as well, on PYTHONPATH or in the
folder it runs in. `python -P -m nst_batch MODULE ARGUMENTS...` runs a module of ours.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent
PACKAGES = frozenset({"nst", "jobs", "cluster"})


class _Finder(MetaPathFinder):
    """Finds our packages where this file is, whatever `sys.path` says."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(ROOT)]) if name in PACKAGES else None


sys.meta_path.insert(0, _Finder())


def main() -> None:
    """The command line."""
    from jobs.cli.main import main as command

    command()


if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
