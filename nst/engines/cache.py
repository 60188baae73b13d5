"""Published models in the user's data directory, by id: built once, checked whenever opened."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

from nst.engines import parse_plan
from nst.engines.base import CLIENT_FILE, PLAN_FILE, SERVER_FILE, Engine, Published
from nst.errors import CircuitError
from nst.folders import explaining
from nst.network.finishing import Network
from nst.network.levels import QualityLevel
from nst.pictures.size import Size
from nst.private import private_folder, sweep

MANIFEST = "sha256.json"
"""Digests of the other files, written last: without it a model is not there."""
WEIGHTS_FILE = "network.safetensors"
"""The network, of which results need the last layer: the level may have other weights by then."""
FILES = (PLAN_FILE, SERVER_FILE, CLIENT_FILE, WEIGHTS_FILE)

log = logging.getLogger("nst-batch")


class ModelCache:
    """A folder with a sub-folder per published model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def publish(
        self, engine: Engine, network: Network, level: QualityLevel, size: Size
    ) -> Published:
        """Find a model, or build it; a damaged one is built again.

        Args:
            engine: What computes it.
            network: Trained weights.
            level: Size of the style, error probability.
            size: Of contents and results in pixels, not padded.

        Raises:
            CircuitError: if the weights do not fit the engine.
            InputError: if the folder cannot be written.
        """
        padded = size.padded
        identifier = engine.model_id(network, level, padded)
        folder = self.folder / identifier
        if folder.exists():
            try:
                return self._at(self.open(identifier), padded)
            except CircuitError as error:
                log.warning("%s; built again", error)
                with explaining(folder, "replace"):
                    shutil.rmtree(folder)
        sweep(self.folder)
        with explaining(folder):
            self._build(engine, network, level, padded, folder)
        return self._at(self.open(identifier), padded)

    @staticmethod
    def _build(
        engine: Engine, network: Network, level: QualityLevel, padded: Size, folder: Path
    ) -> None:
        """Put a model into its folder as a whole."""
        try:
            with private_folder(folder) as partial:
                engine.publish(network, level, padded, partial)
                engine.save_network(network, partial / WEIGHTS_FILE, {})
                digests = {name: _digest(partial / name) for name in FILES}
                (partial / MANIFEST).write_text(json.dumps(digests))
        except OSError:
            # Another process built the same model meanwhile; its files are as good.
            if not (folder / MANIFEST).exists():
                raise

    def open(self, model_id: str) -> Published:
        """A model that has been built, at the size that it was built for.

        Raises:
            CircuitError: if it is missing, damaged or of another version.
        """
        folder = self.folder / model_id
        try:
            digests = json.loads((folder / MANIFEST).read_text())
            damaged = [name for name in FILES if digests[name] != _digest(folder / name)]
            if damaged:
                raise ValueError(f"{damaged[0]} was changed")
            plan = parse_plan((folder / PLAN_FILE).read_bytes(), f"{folder / PLAN_FILE}")
        except FileNotFoundError as error:
            raise CircuitError(f"model {model_id} is not in {self.folder}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CircuitError(f"model {folder} is damaged ({error})") from error
        return Published(folder, plan)

    @staticmethod
    def _at(published: Published, size: Size) -> Published:
        return Published(published.folder, published.plan.at(size))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
