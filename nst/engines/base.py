"""What an engine is: one way of computing a network on ciphertexts.

An engine is a folder beside this file and an entry in `nst.engines.ENGINES`. Its modules are split
by who may import them:

- **both sides**: the plan of a published model (`Plan`): plain data, costs, task graph;
- **the server**: an `Evaluator` of tasks; it can neither make keys nor decrypt;
- **the client**: what pictures look like before encryption (`Preparation`), keys and a `Cipher`;
- **the owner**: `Engine.publish`, which turns a network into a `Published` model.

A published model has two bundles. The server's holds what computes on ciphertexts, the client's
what it takes to encrypt and decrypt; neither side needs the other's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy import random
from numpy.typing import NDArray

from nst.ciphertext import Envelope
from nst.engines.rates import Rates
from nst.engines.tasks import PairIds, Seconds, StageShape, TaskGraph
from nst.network.architecture import Branch
from nst.network.finishing import Network
from nst.parsing import Json as Json
from nst.pictures.size import Size

if TYPE_CHECKING:
    from nst.network.levels import QualityLevel
    from nst.pictures.picture import Picture

Role = Branch
"""What an encrypted picture is in its pair."""
Features = NDArray[np.float32]
"""Output `[C, H, W]` of the last encrypted stage, decrypted or computed in the clear."""


@dataclass(frozen=True)
class StoredBytes:
    """What goes through the store: bytes of one part, and how many parts there are.

    Attributes:
        content_part: One part of an encrypted content.
        style_part: One part of an encrypted style.
        result_part: One part of an encrypted result, as it is stored.
        content_parts: Parts of a content.
        style_parts: Parts of a style.
        result_parts: Parts of a result.
    """

    content_part: int
    style_part: int
    result_part: int
    content_parts: int
    style_parts: int
    result_parts: int

    @property
    def content(self) -> int:
        """Bytes of an encrypted content."""
        return self.content_part * self.content_parts

    @property
    def style(self) -> int:
        """Bytes of an encrypted style."""
        return self.style_part * self.style_parts

    @property
    def result(self) -> int:
        """Bytes of an encrypted result."""
        return self.result_part * self.result_parts


@dataclass(frozen=True)
class Needs:
    """Bytes that a job takes for each of its actors or pairs.

    Attributes:
        call: What an actor's largest call reads and gives.
        result: One result as tasks make it, all parts.
        stored: A pair in the store: content, style and result.
    """

    call: int
    result: int
    stored: int


class Plan(Protocol):
    """A published model as plain data: its identity, its costs, and the task graph of pairs."""

    @property
    def engine(self) -> str:
        """Name of the engine."""
        ...

    @property
    def model_id(self) -> str:
        """Hash of what the model computes, 16 hex digits."""
        ...

    @property
    def runtime(self) -> str:
        """Package and version that built it, and that it runs under; see `Engine.runtime`."""
        ...

    @property
    def cpu_features(self) -> tuple[str, ...]:
        """What its server bundle asks of a CPU (see `nst.cpu`); empty if nothing is known."""
        ...

    @property
    def size(self) -> Size:
        """Of a content and its result, padded to the network's grid."""
        ...

    @property
    def style_size(self) -> Size:
        """Of a style."""
        ...

    @property
    def evaluation_key_bytes(self) -> int:
        """Serialized evaluation keys of one key set."""
        ...

    @property
    def pairs_per_result(self) -> int:
        """How many pairs may share ciphertexts, each in a lane of its own."""
        ...

    @property
    def stored(self) -> StoredBytes:
        """Sizes of encrypted pictures and results in the store, however many pairs share them."""
        ...

    @property
    def stages(self) -> Sequence[StageShape]:
        """All stages in order of evaluation."""
        ...

    def at(self, size: Size) -> Plan:
        """The plan for contents of another size that the same model computes.

        Raises:
            CircuitError: if the model does not compute that size.
        """
        ...

    def graph(self, pairs: Sequence[PairIds], seconds: Seconds) -> TaskGraph:
        """Lay out the tasks of a job's pairs, in the order of their results.

        Args:
            pairs: What is to be done.
            seconds: From `Rates.seconds`.
        """
        ...

    def pack_result(self, key_id: str, part: bytes) -> Envelope:
        """One part of a result in the form in which it is stored."""
        ...

    def require_result(self, envelope: Envelope, what: str) -> None:
        """Raise CircuitError unless an envelope may be a stored part of a result."""
        ...

    def to_dict(self) -> dict[str, Json]:
        """JSON-able record; `Engine.read_plan` is its inverse."""
        ...

    def summary(self) -> dict[str, Json]:
        """What `circuits inspect` prints: costs in the engine's own terms."""
        ...


class Evaluator(Protocol):
    """A model with the evaluation keys of one key set, loaded by a server process."""

    def run(self, stage: str, inputs: Sequence[bytes]) -> bytes:
        """One task: serialized input ciphertexts to one serialized output ciphertext.

        Raises:
            CircuitError: if the ciphertexts do not fit the stage.
        """
        ...


@dataclass(frozen=True)
class PreparedInput:
    """A picture in the form in which an engine encrypts it; equal ones are encrypted once.

    Attributes:
        picture: Of the size that the model takes.
        role: What it is in its pair.
        contrast: Factor on the whitened picture.
    """

    picture: Picture
    role: Role
    contrast: float = 1.0

    @property
    def white(self) -> NDArray[np.float32]:
        """The whitened picture `[3, H, W]` at its contrast."""
        return self.picture.white * np.float32(self.contrast)


@dataclass(frozen=True)
class PreparedStyle:
    """A style that is ready to be encrypted, and the style code that it gives in the clear.

    The code has size 0 where the network is its owner's alone.
    """

    input: PreparedInput
    code: NDArray[np.int64] | NDArray[np.float32]


@dataclass(frozen=True)
class PreparedContent:
    """A content that is ready to be encrypted, and the features that the server will make of it.

    They have size 0 where the network is its owner's alone.
    """

    input: PreparedInput
    features: Features


@dataclass(frozen=True)
class KeyPair:
    """A new key set, serialized: the secret key stays, the evaluation keys go to the server."""

    secret: bytes
    evaluation: bytes


class Cipher(Protocol):
    """Encrypts pictures and decrypts results under one key set."""

    def encrypt_all(
        self, inputs: Iterable[Sequence[PreparedInput]]
    ) -> Generator[Envelope, None, None]:
        """Encrypt pictures, in order; each envelope is given as soon as it is there.

        Args:
            inputs: For each envelope, the pictures of one role that share it, in order of their
                lanes: at most `Plan.pairs_per_result`. One style by itself serves all lanes.
        """
        ...

    def decrypt_result(self, parts: Iterable[bytes], what: str) -> list[Features]:
        """Features of every lane out of the packed parts of a result, in order.

        Args:
            parts: They are taken one after the other: a large result has more bytes than memory.
            what: Name of the result in an error.

        Raises:
            CircuitError: if they were made under another key set or by another model, are damaged,
                too few, too many, or no result at all.
        """
        ...


@dataclass(frozen=True)
class Published:
    """A published model on its owner's disk: the plan and the two bundles.

    Attributes:
        folder: Holds the three files.
        plan: At the size that was asked for.
    """

    folder: Path
    plan: Plan

    @property
    def server_bundle(self) -> Path:
        """What a server computes with."""
        return self.folder / SERVER_FILE

    @property
    def client_bundle(self) -> Path:
        """What a client needs to make keys, encrypt and decrypt."""
        return self.folder / CLIENT_FILE


PLAN_FILE, SERVER_FILE, CLIENT_FILE = "plan.json", "server.zip", "client.zip"


class Engine(Protocol):
    """One way of computing a network on ciphertexts. Methods import what they need."""

    name: str
    package: str
    """What has to be installed for it; without it, the others work."""
    client_modules: tuple[str, ...]
    """Modules that a server process must not be able to import."""
    widest: int
    """Pixels of a row of the largest content that it computes."""
    unseen_contrast: float
    """Contrast at which a client encrypts that cannot compute what becomes of a picture."""

    @property
    def runtime(self) -> str:
        """Package and version that this installation builds and runs models with."""
        ...

    def typical_needs(self, size: Size) -> Needs:
        """About what a model of this size takes, where none is published that tells exactly."""
        ...

    def model_id(self, network: Network, level: QualityLevel, size: Size) -> str:
        """Identity of the model of a network at a size."""
        ...

    def style_size(self, level: QualityLevel) -> Size:
        """Of the styles that a level's networks take."""
        ...

    def load_network(self, path: Path) -> Network:
        """Trained weights out of a file.

        Raises:
            CircuitError: if they are missing, damaged, or of another engine.
        """
        ...

    def save_network(self, network: Network, path: Path, card: dict[str, Json]) -> None:
        """Write weights that `load_network` reads, and a card of how they came to be."""
        ...

    def publish(self, network: Network, level: QualityLevel, size: Size, folder: Path) -> Plan:
        """Write the three files of a published model into an empty folder.

        Args:
            network: Trained weights, of the engine's own kind.
            level: Size of the style, error probability.
            size: Of contents and results, padded.
            folder: Where to.

        Raises:
            CircuitError: if the weights do not fit the engine's arithmetic.
        """
        ...

    def read_plan(self, record: dict[str, Json]) -> Plan:
        """Inverse of `Plan.to_dict`.

        Raises:
            CircuitError: if it is damaged or of another version.
        """
        ...

    def rates(self) -> Rates:
        """The measured rates that ship with this version."""
        ...

    def load(self, plan: Plan, server_bundle: bytes, evaluation_keys: bytes) -> Evaluator:
        """On the server: a model with evaluation keys.

        Raises:
            CircuitError: if either is damaged or made for another version.
        """
        ...

    def seal(self) -> None:
        """On the server: take key generation, encryption and decryption out of this process."""
        ...

    def prepare_style(self, network: Network, style: Picture) -> PreparedStyle:
        """On the client: bring a style to the form in which it is encrypted.

        Raises:
            InputError: if it cannot be computed safely.
        """
        ...

    def prepare_content(
        self, network: Network, content: Picture, style: PreparedStyle
    ) -> PreparedContent:
        """On the client: bring a content to the form in which it is encrypted.

        Raises:
            InputError: if it cannot be computed safely.
        """
        ...

    def simulate(
        self,
        network: Network,
        level: QualityLevel,
        content: PreparedContent,
        style: PreparedStyle,
        rng: random.Generator,
    ) -> Features:
        """On the client, in the clear: features as an encrypted run gives them, noise included.

        Args:
            network: Trained weights.
            level: Error probability.
            content: What would be encrypted.
            style: Likewise.
            rng: Where the noise is drawn from; another call is another run.
        """
        ...

    def make_keys(self, client_bundle: Path) -> KeyPair:
        """On the client: a new key set.

        Raises:
            CircuitError: if the bundle is damaged.
        """
        ...

    def cipher(self, published: Published, key_id: str, secret: bytes) -> Cipher:
        """On the client: encryption and decryption under a key set.

        Raises:
            CircuitError: if the bundle or the key is damaged.
        """
        ...
