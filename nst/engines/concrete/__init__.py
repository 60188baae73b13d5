"""Concrete (Zama): TFHE circuits, exact but for the rounding of activations."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from numpy import random

from nst.engines.base import (
    Cipher,
    Evaluator,
    Features,
    Json,
    KeyPair,
    Needs,
    Plan,
    PreparedContent,
    PreparedStyle,
    Published,
)
from nst.engines.rates import Rates, read_rates
from nst.errors import CircuitError

if TYPE_CHECKING:
    from nst.engines.concrete.plan import CircuitPlan
    from nst.network.finishing import Network
    from nst.network.integers import IntegerNetwork
    from nst.network.levels import QualityLevel
    from nst.pictures.picture import Picture
    from nst.pictures.size import Size

PACKAGE = "concrete-python"
CALL_BYTES_PER_PIXEL = 1_800_000
"""What the largest call reads and gives, per pixel of width."""
PAIR_BYTES_PER_PIXEL = 12_500
"""Of a pair in the store, per pixel of the result."""


class ConcreteEngine:
    """See `nst.engines.base.Engine`."""

    name = "concrete"
    package = "concrete"
    widest = 1024
    unseen_contrast = 0.7
    # A row is one task, which has to hold three rows of everything that it reads: a worker's memory
    # limits the width (see docs/architecture.md), and nothing does the height but time.
    client_modules: tuple[str, ...] = (
        "concrete.fhe",
        "concrete.ml",
        "nst.engines.concrete.client",
        "nst.engines.concrete.publish",
        "nst.engines.concrete.compilation",
        "nst.engines.concrete.preparation",
    )

    @property
    def runtime(self) -> str:
        """See `Engine`."""
        return f"{PACKAGE} {version(PACKAGE)}"

    def typical_needs(self, size: Size) -> Needs:
        """See `Engine`; as measured at low (benchmarks/low.json and benchmarks/bytes.json)."""
        padded = size.padded
        stored = PAIR_BYTES_PER_PIXEL * padded.width * padded.height
        # In memory words are whole, in the store a quarter of them is left.
        return Needs(CALL_BYTES_PER_PIXEL * padded.width, 4 * stored, stored)

    def model_id(self, network: Network, level: QualityLevel, size: Size) -> str:
        """See `Engine`."""
        from nst.engines.concrete.publish import model_id

        choices = (level.p_error, level.security, level.exact)
        return model_id(_integer(network), level.side, size.width, *choices)

    def style_size(self, level: QualityLevel) -> Size:
        """See `Engine`."""
        return level.square

    def load_network(self, path: Path) -> IntegerNetwork:
        """See `Engine`."""
        from nst.network.weights import load_weights

        return load_weights(path)

    def save_network(self, network: Network, path: Path, card: dict[str, Json]) -> None:
        """See `Engine`."""
        from nst.network.weights import save_weights

        save_weights(_integer(network), path, card)

    def publish(
        self, network: Network, level: QualityLevel, size: Size, folder: Path
    ) -> CircuitPlan:
        """See `Engine`."""
        from nst.engines.concrete.publish import publish

        return publish(_integer(network), level, size.width, folder)

    def read_plan(self, record: dict[str, Json]) -> CircuitPlan:
        """See `Engine`."""
        from nst.engines.concrete.plan import CircuitPlan

        return CircuitPlan.from_dict(record)

    def rates(self) -> Rates:
        """See `Engine`."""
        return read_rates(Path(__file__).with_name("rates.json"))

    def load(self, plan: Plan, server_bundle: bytes, evaluation_keys: bytes) -> Evaluator:
        """See `Engine`."""
        from nst.engines.concrete.plan import CircuitPlan
        from nst.engines.concrete.server import CircuitEvaluator

        assert isinstance(plan, CircuitPlan)
        return CircuitEvaluator(plan, server_bundle, evaluation_keys)

    def seal(self) -> None:
        """See `Engine`."""
        from nst.engines.concrete.server import remove_client_names

        remove_client_names()

    def prepare_style(self, network: Network, style: Picture) -> PreparedStyle:
        """See `Engine`."""
        from nst.engines.concrete.preparation import prepare_style

        return prepare_style(_integer(network), style)

    def prepare_content(
        self, network: Network, content: Picture, style: PreparedStyle
    ) -> PreparedContent:
        """See `Engine`."""
        from nst.engines.concrete.preparation import prepare_content

        return prepare_content(_integer(network), content, style)

    def simulate(
        self,
        network: Network,
        level: QualityLevel,
        content: PreparedContent,
        style: PreparedStyle,
        rng: random.Generator,
    ) -> Features:
        """See `Engine`."""
        from nst.engines.concrete.simulation import rounding_noise, simulate

        noise = None if level.exact else rounding_noise(level.p_error, rng)
        return simulate(_integer(network), content.input, style.input, noise)

    def make_keys(self, client_bundle: Path) -> KeyPair:
        """See `Engine`."""
        from nst.engines.concrete.client import make_keys

        return make_keys(client_bundle)

    def cipher(self, published: Published, key_id: str, secret: bytes) -> Cipher:
        """See `Engine`."""
        from nst.engines.concrete.client import CircuitCipher

        return CircuitCipher(published, key_id, secret)


def _integer(network: Network) -> IntegerNetwork:
    from nst.network.integers import IntegerNetwork

    if not isinstance(network, IntegerNetwork):
        raise CircuitError("these weights are of another engine; give weights of engine concrete")
    return network
