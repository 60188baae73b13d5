"""The client's side of CKKS: key generation, encryption and decryption.

Inputs are encrypted with the secret key, so that half of a ciphertext is random numbers, and their
seed is sent in their place; evaluation keys likewise. Results of approximate schemes tell something
of the secret key with their noise: a decrypted result never goes back to who computed it.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import _sealapi_cpp as sealapi
import numpy as np

from nst.ciphertext import Envelope
from nst.engines.base import Features, KeyPair, PreparedInput, Published, Role
from nst.engines.ckks.packing import Complexes, Reals, content_cells, style_cells
from nst.engines.ckks.parameters import Parameters
from nst.engines.ckks.plan import LeveledPlan
from nst.engines.ckks.residues import Ring, join, split
from nst.errors import CircuitError, first_line
from nst.network.architecture import CELL, CONTENT

BUNDLE_BYTES = 1 << 20
"""Of a client bundle, unpacked: ours have some kilobytes."""
MOST_ELEMENTS = 64
"""Rotations that keys are made for: ours are less than twenty."""


@dataclass(frozen=True)
class ClientBundle:
    """What a client must know of a published model.

    Attributes:
        parameters: Ring, primes, scales.
        elements: Galois elements of the rotations that the server needs.
        gain: A feature is `gain * value + offset`, `[channels]`.
        offset: `[channels]`.
        pixel_scale: Of an encrypted content.
        style_scale: Of an encrypted style.
        bound: Values of a result are smaller.
    """

    parameters: Parameters
    elements: list[int]
    gain: Reals
    offset: Reals
    pixel_scale: float
    style_scale: float
    bound: float

    @staticmethod
    def read(path: Path) -> ClientBundle:
        """A bundle that `nst.engines.ckks.publish` wrote; raises CircuitError if it is damaged."""
        try:
            with ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > BUNDLE_BYTES:
                    raise ValueError("too large")
            with np.load(path, allow_pickle=False) as arrays:
                pixel_scale, style_scale, bound = arrays["scalars"].tolist()
                parameters = Parameters.from_dict(json.loads(str(arrays["parameters"])))
                parameters.require(parameters.levels)
                elements = arrays["elements"].tolist()
                # Each is a key of megabytes; primes are found here, so that no number is none.
                if len(elements) > MOST_ELEMENTS or not parameters.primes:
                    raise ValueError("too many rotations")
                return ClientBundle(
                    parameters,
                    elements,
                    arrays["gain"][:, None, None],
                    arrays["offset"][:, None, None],
                    pixel_scale,
                    style_scale,
                    bound,
                )
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise CircuitError(
                f"model {path.parent} is damaged ({first_line(error)}); publish it again"
            ) from error


def make_keys(client_bundle: Path) -> KeyPair:
    """A new key set (some seconds); see `nst.engines.base.Engine.make_keys`."""
    bundle = ClientBundle.read(client_bundle)
    ring = Ring(bundle.parameters)
    secret = sealapi.KeyGenerator(ring.context).secret_key()
    return KeyPair(ring.dump(secret), make_evaluation_keys(ring, secret, bundle.elements))


def make_evaluation_keys(ring: Ring, secret: sealapi.SecretKey, elements: list[int]) -> bytes:
    """Serialized keys for relinearization and for rotations by these Galois elements."""
    generator = sealapi.KeyGenerator(ring.context, secret)
    relinearization = generator.create_relin_keys()
    return join([ring.dump(relinearization), ring.dump(generator.create_galois_keys(elements))])


class LeveledCipher:
    """Encrypts pictures and decrypts results under one key set; a `Cipher`."""

    def __init__(self, published: Published, key_id: str, secret: bytes) -> None:
        """Load a key.

        Raises:
            CircuitError: if the key or the bundle is damaged.
        """
        plan = published.plan
        assert isinstance(plan, LeveledPlan)
        self.key_id, self.model_id, self._plan = key_id, plan.model_id, plan
        self._bundle = ClientBundle.read(published.client_bundle)
        if self._bundle.parameters != plan.parameters:
            raise CircuitError(
                f"model {published.folder} is damaged (other parameters); publish it again"
            )
        self._ring = ring = Ring(plan.parameters)
        key = ring.load(sealapi.SecretKey, secret, f"secret key {key_id}")
        self._encryptor = sealapi.Encryptor(ring.context, key)
        self._decryptor = sealapi.Decryptor(ring.context, key)
        self._encoder = sealapi.CKKSEncoder(ring.context)

    def encrypt_all(
        self, inputs: Iterable[Sequence[PreparedInput]]
    ) -> Generator[Envelope, None, None]:
        """See `Cipher`; a part is as many tiles of contents as there are lanes, or styles."""
        for shared in inputs:
            yield self._sealed(shared)

    def _sealed(self, inputs: Sequence[PreparedInput]) -> Envelope:
        layout, lanes = self._plan.layout, [lane for each in inputs for lane in self._lanes(each)]
        if inputs[0].role != CONTENT and len(inputs) == 1:
            lanes = lanes[:1] * layout.lanes
        parts = (
            self._encrypted(layout.interleave(lanes[first : first + layout.lanes]), inputs[0].role)
            for first in range(0, len(lanes), layout.lanes)
        )
        return Envelope(self.key_id, self.model_id, tuple(parts))

    def _lanes(self, prepared: PreparedInput) -> Iterator[Reals]:
        """A picture's lanes: one per tile."""
        layout, white = self._plan.layout, prepared.white
        tiles = layout.tiles(self._plan.size)
        if prepared.role != CONTENT:
            style = layout.pack_style(style_cells(white))
            yield from (style for _ in tiles[: layout.lanes])
            return
        cells = content_cells(white, layout.reach)
        yield from (layout.pack_tile(cells, tile) for tile in tiles)

    def _encrypted(self, slots: Complexes, role: Role) -> bytes:
        content = role == CONTENT
        scale = self._bundle.pixel_scale if content else self._bundle.style_scale
        limbs = self._plan.content_limbs if content else self._plan.style_limbs
        plain = sealapi.Plaintext()
        channels = []
        for values in slots:
            self._encoder.encode(values, self._ring.level(limbs), scale, plain)
            channels.append(self._ring.dump(self._encryptor.encrypt_symmetric(plain)))
        return join(channels)

    def decrypt_result(self, parts: Iterable[bytes], what: str) -> list[Features]:
        """See `Cipher`."""
        plan, layout = self._plan, self._plan.layout
        height, width = plan.height // CELL, plan.width // CELL
        channels = plan.architecture.result_channels
        count = plan.pairs_per_result
        out = [np.zeros((channels, height, width), np.float32) for _ in range(count)]
        tiles = layout.tiles(plan.size)
        number = -1
        for number, blob in enumerate(parts):
            part = f"part {number} of {what}"
            if number == plan.parts:
                break
            envelope = Envelope.unpack(blob, part)
            envelope.require(self.key_id, self.model_id, part)
            plan.require_result(envelope, part)
            slots = self._decrypted(envelope.parts[0], part)
            first = number * layout.lanes
            for lane in range(min(layout.lanes, count * len(tiles) - first)):
                picture, index = divmod(first + lane, len(tiles))
                tile = tiles[index]
                inside = layout.interior(slots, lane, tile)
                values = inside * self._bundle.gain + self._bundle.offset
                out[picture][:, tile.top :, tile.left :][:, : tile.height, : tile.width] = values
        if number + 1 != plan.parts:
            raise CircuitError(
                f"{what} has {number + 1} parts, not {plan.parts}; submit the pair again"
            )
        return out

    def _decrypted(self, blob: bytes, what: str) -> Complexes:
        """Slots of all channels of a part of a result."""
        plain = sealapi.Plaintext()
        channels = []
        for data in split(blob, self._plan.architecture.result_channels, what):
            ciphertext = self._ring.load(sealapi.Ciphertext, data, what)
            if self._ring.limbs(ciphertext) != 1:
                raise CircuitError(f"{what} is no result; submit the pair again")
            ciphertext.scale = 1.0
            try:
                self._decryptor.decrypt(ciphertext, plain)
            except (RuntimeError, ValueError) as error:
                raise CircuitError(
                    f"{what} is no result ({first_line(error)}); submit the pair again"
                ) from error
            channels.append(self._encoder.decode_complex(plain))
        slots = np.array(channels)
        if not np.abs(slots.view(np.float64)).max() < self._bundle.bound:
            raise CircuitError(
                f"{what} is out of bounds: its values left the modulus, or it was damaged; "
                "try the pair with a smaller size, or submit it again"
            )
        return slots
