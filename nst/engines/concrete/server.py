"""The server's side: evaluate circuits on ciphertexts, and nothing else.

This module uses Concrete's runtime directly and imports neither `nst.engines.concrete.client`
nor `concrete.fhe`, which hold key generation, encryption and decryption; `nst.sealing` makes that a
property of the process.
"""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import concrete.compiler as runtime

from nst.engines.concrete.fft_plan import fix_fft_plan
from nst.engines.concrete.plan import CircuitPlan
from nst.errors import CircuitError, first_line
from nst.temporary import TemporaryFolder

CLIENT_NAMES = (
    "ClientCircuit",
    "ClientKeyset",
    "ClientProgram",
    "Keyset",
    "KeysetCache",
    "LweSecretKey",
    "TfhersExporter",
)


def remove_client_names() -> None:
    """Take key generation and decryption out of Concrete's runtime in this process."""
    native = sys.modules["mlir._mlir_libs._concretelang._compiler"]
    for name in CLIENT_NAMES:
        for holder in (runtime, native):
            if hasattr(holder, name):
                delattr(holder, name)


class CircuitEvaluator:
    """The circuits of one model with one user's evaluation keys, loaded once; an `Evaluator`."""

    def __init__(self, plan: CircuitPlan, server_zip: bytes, evaluation_keys: bytes) -> None:
        """Load circuits and keys.

        Raises:
            CircuitError: if either is damaged or made for another version of Concrete.
        """
        here = version("concrete-python")
        if plan.concrete_version != here:
            raise CircuitError(
                f"circuits {plan.model_id} were compiled with Concrete {plan.concrete_version}, "
                f"this machine has {here}; install the same version on both"
            )
        fix_fft_plan()
        self._folder = TemporaryFolder("nst-circuits-")
        archive = Path(self._folder.name) / "server.zip"
        archive.write_bytes(server_zip)
        try:
            shutil.unpack_archive(archive, self._folder.name, "zip")
            archive.unlink()
            self._library = runtime.Library(self._folder.name)
            self._program = runtime.ServerProgram(self._library, False)
            self._keys = runtime.ServerKeyset.deserialize(evaluation_keys)
        except (OSError, RuntimeError, ValueError, shutil.ReadError) as error:
            raise CircuitError(
                f"circuits {plan.model_id} or their evaluation keys cannot be loaded "
                f"({first_line(error)}); submit the job again"
            ) from error
        self._lock = threading.Lock()

    def run(self, stage: str, inputs: Sequence[bytes]) -> bytes:
        """One row task: serialized input ciphertexts to one serialized output ciphertext.

        Raises:
            CircuitError: if the ciphertexts do not fit the stage.
        """
        try:
            arguments = [runtime.TransportValue.deserialize(row) for row in inputs]
            # Two calls at once have given other bits than one after the other (bench-sharing).
            with self._lock:
                result = self.evaluate(stage, arguments)
            _survive_broken_pipes()
            return bytes(result.serialize())
        except (RuntimeError, ValueError) as error:
            raise CircuitError(
                f"stage {stage} refused its ciphertexts ({first_line(error)})"
            ) from error

    def evaluate(self, stage: str, arguments: list[Any]) -> Any:
        """The call itself, between ciphertexts in Concrete's form, beside those of other threads.

        Raises:
            RuntimeError: if the ciphertexts do not fit the stage.
        """
        # A circuit keeps copies of what it was called with; getting one takes milliseconds.
        (result,) = self._program.get_server_circuit(stage).call(arguments, self._keys)
        return result


def _survive_broken_pipes() -> None:
    """Ignore SIGPIPE, as Python does from its start.

    LLVM, which Concrete's runtime is built on, sets a handler of its own with a process's first
    circuit, and that ends the process when it writes to a pipe or connection that is closed.
    """
    # Python sets handlers in its main thread only; that is where an actor runs its circuits.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
