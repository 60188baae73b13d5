"""Leveled CKKS (Microsoft SEAL): approximate arithmetic on thousands of values at once."""

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
from nst.engines.ckks.packing import Layout
from nst.engines.ckks.parameters import Parameters
from nst.engines.rates import Rates, read_rates
from nst.errors import CircuitError
from nst.network.levels import SECURITY
from nst.pictures.size import LARGEST, Size

if TYPE_CHECKING:
    from nst.engines.ckks.network import LeveledNetwork
    from nst.engines.ckks.plan import LeveledPlan
    from nst.network.finishing import Network
    from nst.network.levels import QualityLevel
    from nst.pictures.picture import Picture

PACKAGE = "tenseal"
REACH, STYLE_SIDE = 6, 128
"""Of the networks that ship: guard ring in cells, side of a style in pixels."""
CONTENT_BYTES, STYLE_BYTES, CODE_BYTES, RESULT_BYTES = 32_900_000, 47_200_000, 87_700_000, 9_300_000
"""Of a part of theirs with the parameters that ship."""


class CkksEngine:
    """See `nst.engines.base.Engine`."""

    name = "ckks"
    package = "_sealapi_cpp"
    widest = LARGEST
    # Pixels are clipped, and values far from the modulus on all held-out pairs.
    unseen_contrast = 1.0
    client_modules: tuple[str, ...] = (
        # All of TenSEAL but the binding `_sealapi_cpp`, which `seal` strips.
        "tenseal",
        "_tenseal_cpp",
        "nst.engines.ckks.client",
        "nst.engines.ckks.publish",
        "nst.engines.ckks.preparation",
    )

    def __init__(self, parameters: Parameters | None = None) -> None:
        """An engine that publishes with these parameters, or with those that ship."""
        self.parameters = parameters or Parameters()

    @property
    def runtime(self) -> str:
        """See `Engine`."""
        return f"{PACKAGE} {version(PACKAGE)}"

    def typical_needs(self, size: Size) -> Needs:
        """See `Engine`; as measured with the parameters that ship."""
        layout = Layout.for_size(Parameters().slots, REACH, size.padded, STYLE_SIDE)
        parts = layout.parts(size.padded)
        result = RESULT_BYTES * parts
        stored = CONTENT_BYTES * parts + STYLE_BYTES + result
        return Needs(CONTENT_BYTES + CODE_BYTES + RESULT_BYTES, result, stored)

    def style_size(self, level: QualityLevel) -> Size:
        """See `Engine`: a power of two, which a sum over a style takes."""
        from nst.engines.ckks.packing import style_side

        return Size.square(style_side(level.side))

    def load_network(self, path: Path) -> LeveledNetwork:
        """See `Engine`."""
        from nst.engines.ckks.network import load_network

        return load_network(path)

    def save_network(self, network: Network, path: Path, card: dict[str, Json]) -> None:
        """See `Engine`."""
        _leveled(network).save(path, card)

    def model_id(self, network: Network, level: QualityLevel, size: Size) -> str:
        """See `Engine`."""
        from nst.engines.ckks.publish import laid_out, model_id

        if level.exact or level.security != SECURITY:
            raise CircuitError(
                f"engine {self.name} has no results to publish and {SECURITY} bits of security; "
                "leave these options out"
            )
        integers, layout = laid_out(_leveled(network), self.parameters, level.side, size)
        return model_id(integers, layout, self.parameters)

    def publish(
        self, network: Network, level: QualityLevel, size: Size, folder: Path
    ) -> LeveledPlan:
        """See `Engine`."""
        from nst.engines.ckks.publish import publish

        return publish(_leveled(network), self.parameters, level.side, size, self.runtime, folder)

    def read_plan(self, record: dict[str, Json]) -> LeveledPlan:
        """See `Engine`."""
        from nst.engines.ckks.plan import LeveledPlan

        return LeveledPlan.from_dict(record)

    def rates(self) -> Rates:
        """See `Engine`."""
        return read_rates(Path(__file__).with_name("rates.json"))

    def load(self, plan: Plan, server_bundle: bytes, evaluation_keys: bytes) -> Evaluator:
        """See `Engine`."""
        from nst.engines.ckks.plan import LeveledPlan
        from nst.engines.ckks.server import LeveledEvaluator

        assert isinstance(plan, LeveledPlan)
        return LeveledEvaluator(plan, server_bundle, evaluation_keys)

    def seal(self) -> None:
        """See `Engine`."""
        from nst.engines.ckks.server import remove_client_names

        remove_client_names()

    def prepare_style(self, network: Network, style: Picture) -> PreparedStyle:
        """See `Engine`."""
        from nst.engines.ckks.preparation import prepare_style

        return prepare_style(_leveled(network), self.parameters, style)

    def prepare_content(
        self, network: Network, content: Picture, style: PreparedStyle
    ) -> PreparedContent:
        """See `Engine`."""
        from nst.engines.ckks.preparation import prepare_content

        return prepare_content(_leveled(network), self.parameters, content, style)

    def simulate(
        self,
        network: Network,
        level: QualityLevel,
        content: PreparedContent,
        style: PreparedStyle,
        rng: random.Generator,
    ) -> Features:
        """See `Engine`."""
        from nst.engines.ckks.preparation import simulate

        return simulate(_leveled(network), self.parameters, content, style, rng)

    def make_keys(self, client_bundle: Path) -> KeyPair:
        """See `Engine`."""
        from nst.engines.ckks.client import make_keys

        return make_keys(client_bundle)

    def cipher(self, published: Published, key_id: str, secret: bytes) -> Cipher:
        """See `Engine`."""
        from nst.engines.ckks.client import LeveledCipher

        return LeveledCipher(published, key_id, secret)


def _leveled(network: Network) -> LeveledNetwork:
    from nst.engines.ckks.network import LeveledNetwork

    if not isinstance(network, LeveledNetwork):
        raise CircuitError("these weights are of another engine; give weights of engine ckks")
    return network
