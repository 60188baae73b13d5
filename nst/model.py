"""A quality level at a size, as its user has it: network, published model, keys to it."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from numpy.random import Generator

from nst.engines import get_engine
from nst.engines.base import (
    Cipher,
    Engine,
    Features,
    Plan,
    PreparedContent,
    PreparedStyle,
    Published,
)
from nst.engines.cache import WEIGHTS_FILE, ModelCache
from nst.errors import CircuitError
from nst.keyring import AskPassphrase, KeyCard, KeyRing
from nst.network.finishing import Network, finish
from nst.network.levels import DEFAULT_ENGINE as DEFAULT_ENGINE
from nst.network.levels import SECURITY, QualityLevel, get_level
from nst.pictures.color import Floats
from nst.pictures.picture import Picture
from nst.pictures.size import Size


class Model:
    """What is needed of a quality level on the client; circuits are built on first use.

    `nst.offered.OfferedModel` is one whose weights only its owner has.

    Attributes:
        level: Name, weights, size of styles.
        size: Of contents and results in pixels, not padded.
        network: Trained weights.
        engine: What computes it on ciphertexts.
        offer_id: Of the offer that it comes from; empty for a model of one's own.
    """

    offer_id = ""

    def __init__(
        self,
        level: QualityLevel,
        network: Network,
        cache: ModelCache,
        size: Size | None = None,
        engine: Engine | None = None,
    ) -> None:
        """Keep what is given; `size` None is a square of the level's side."""
        self.level, self.network, self._cache = level, network, cache
        self.size = size or level.square
        self.engine = engine or get_engine(DEFAULT_ENGINE)

    @staticmethod
    def load(
        quality: str,
        cache: Path,
        size: Size | None = None,
        engine: str = DEFAULT_ENGINE,
        security: int = SECURITY,
        publishable: bool = False,
    ) -> Model:
        """A level's model.

        Args:
            quality: Name of the level.
            cache: Folder of published models.
            size: Of contents and results; None for a square of the level's side.
            engine: Name of the engine.
            security: Bits of security.
            publishable: Whether its results may be published; see `QualityLevel.exactly`.

        Raises:
            InputError: if there is no such level, or the size is too small or too large.
            CircuitError: if its weights are missing or damaged.
        """
        computes = get_engine(engine)
        level = replace(get_level(quality, engine), security=security)
        if publishable:
            level = level.exactly()
        checked = size.checked(computes.widest) if size else None
        network = computes.load_network(level.weights)
        return Model(level, network, ModelCache(cache), checked, computes)

    @property
    def style_size(self) -> Size:
        """Of styles in pixels."""
        return self.engine.style_size(self.level)

    @cached_property
    def published(self) -> Published:
        """Plan and bundles; raises CircuitError if they cannot be built."""
        return self._cache.publish(self.engine, self.network, self.level, self.size)

    @property
    def plan(self) -> Plan:
        """Costs and task graph; see `published` for errors."""
        return self.published.plan

    @cached_property
    def seconds(self) -> dict[str, float]:
        """By stage, core-seconds of one task at the rates that ship."""
        return self.engine.rates().seconds(self.plan.stages)

    @property
    def model_id(self) -> str:
        """Its identity, known before it is built."""
        return self.engine.model_id(self.network, self.level, self.size.padded)

    @property
    def built(self) -> Plan | None:
        """Its plan if it is in the cache, undamaged; nothing is built."""
        try:
            return self._cache.open(self.model_id).plan.at(self.size.padded)
        except CircuitError:
            return None

    def as_submitted(self, model_id: str) -> Model:
        """The model that a job was made with: this one, or one that the cache still has.

        Raises:
            CircuitError: if neither has that id.
        """
        if model_id == self.model_id:
            return self
        cached = self._cache.open(model_id)
        engine = get_engine(cached.plan.engine)
        network = engine.load_network(cached.folder / WEIGHTS_FILE)
        other = Model(self.level, network, self._cache, self.size, engine)
        other.published = Published(cached.folder, cached.plan.at(self.size.padded))
        return other

    def key_set(self, ring: KeyRing, job_id: str = "", ask: AskPassphrase | None = None) -> KeyCard:
        """The newest key set for this model; makes one if there is none.

        Args:
            ring: Key sets.
            job_id: The only job that a new one is for; empty for the newest.
            ask: Asked for the passphrase of the newest, if it has one: the job's gets the same.

        Raises:
            InputError: if the passphrase is wrong or missing.
        """
        newest = ring.find(self.plan.model_id)
        if newest and not job_id:
            return newest
        passphrase = None
        if newest and ring.is_protected(newest.key_id):
            ring.secret(newest.key_id, ask)
            passphrase = ask(newest.key_id) if ask else None
        return ring.create(self.published, self.level.name, passphrase, job_id)

    def cipher(self, ring: KeyRing, key_id: str, ask: AskPassphrase | None = None) -> Cipher:
        """Encryption and decryption under a key set; see `KeyRing.cipher` for errors."""
        return ring.cipher(key_id, self.published, ask)

    def prepare_style(self, style: Picture) -> PreparedStyle:
        """See `Engine.prepare_style`."""
        return self.engine.prepare_style(self.network, style)

    def prepare_content(self, content: Picture, style: PreparedStyle) -> PreparedContent:
        """See `Engine.prepare_content`."""
        return self.engine.prepare_content(self.network, content, style)

    def simulate(self, content: PreparedContent, style: PreparedStyle, rng: Generator) -> Floats:
        """A result `[3, H, W]` in [0, 1] as an encrypted run gives it; see `Engine.simulate`."""
        features = self.engine.simulate(self.network, self.level, content, style, rng)
        return self.finish(content.input.picture, style.input.picture, features)

    def finish(self, content: Picture, style: Picture, features: Features) -> Floats:
        """Features to an RGB result `[3, H, W]` in [0, 1], of the padded size."""
        return finish(self.network, content, style, features)
