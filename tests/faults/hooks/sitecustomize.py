"""Runs at the start of every Python process whose PYTHONPATH names this folder.

A pair is poisoned by hand: no ciphertext is known that makes an engine crash, so a process that
computes on one of those listed in `$NST_TEST_POISON` ends itself as a crash would end it.
"""

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
from pathlib import Path

EVALUATORS = {
    "nst.engines.concrete.server": "CircuitEvaluator",
    "nst.engines.ckks.server": "LeveledEvaluator",
}


class _Poison(importlib.abc.MetaPathFinder):
    """Replaces an evaluator's `run` when its module is imported."""

    def __init__(self):
        self.found = set()

    def find_spec(self, name, path=None, target=None):
        # `find_spec` asks all finders again, this one as well.
        if name not in EVALUATORS or name in self.found:
            return None
        self.found.add(name)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            evaluator = getattr(module, EVALUATORS[name])
            run = evaluator.run

            def run_unless_poisoned(self, stage, inputs):
                listed = Path(os.environ["NST_TEST_POISON"])
                poison = listed.read_text().split() if listed.exists() else []
                if any(hashlib.sha256(part).hexdigest() in poison for part in inputs):
                    os.kill(os.getpid(), signal.SIGKILL)
                return run(self, stage, inputs)

            evaluator.run = run_unless_poisoned

        spec.loader.exec_module = exec_module
        return spec


if "NST_TEST_POISON" in os.environ:
    sys.meta_path.insert(0, _Poison())
