"""The server's side: both branches of the network on ciphertexts, and nothing else.

A task is a whole branch for one batch of tiles, some half a minute of a core: what its stages make
never leaves the process, and is rotated once for all stages that read it. Nine neighbours cost four
rotations per channel: inputs are rotated by columns, sums of a row of the kernel by rows.

This module imports neither `nst.engines.ckks.client` nor TenSEAL's package, which hold key
generation, encryption and decryption; `nst.sealing` makes that a property of the process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any
from zipfile import BadZipFile

import _sealapi_cpp as sealapi
import numpy as np

from nst.engines.ckks.integers import IntegerLayers, Layer
from nst.engines.ckks.plan import CODE, CONTENT_STAGE, STYLE_STAGE, LeveledPlan
from nst.engines.ckks.residues import Reals, Ring, Stack, join, split
from nst.errors import CircuitError, first_line
from nst.network.architecture import CELL_CHANNELS

CLIENT_NAMES = (
    "Decryptor",
    "Encryptor",
    "KeyGenerator",
    "PublicKey",
    "SecretKey",
    "SerializableCiphertext",
    "SerializableGaloisKeys",
    "SerializableRelinKeys",
)
OUTPUTS = 24
"""Channels whose sums are in memory at once."""


def remove_client_names() -> None:
    """Take key generation, encryption and decryption out of SEAL's binding in this process."""
    for name in CLIENT_NAMES:
        if hasattr(sealapi, name):
            delattr(sealapi, name)


class LeveledEvaluator:
    """A published model with one user's evaluation keys; an `Evaluator`."""

    def __init__(self, plan: LeveledPlan, server_bundle: bytes, evaluation_keys: bytes) -> None:
        """Load weights and keys.

        Raises:
            CircuitError: if either is damaged or made for other parameters.
        """
        self._plan, self._layout = plan, plan.layout
        self._ring = ring = Ring(plan.parameters)
        try:
            with np.load(BytesIO(server_bundle), allow_pickle=False) as arrays:
                self._layers = IntegerLayers.from_arrays(dict(arrays))
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise CircuitError(
                f"model {plan.model_id} is damaged ({first_line(error)}); publish it again"
            ) from error
        relinearization, rotation = split(evaluation_keys, 2, "the evaluation keys")
        self._relin = ring.load(sealapi.RelinKeys, relinearization, "the relinearization key")
        self._galois = ring.load(sealapi.GaloisKeys, rotation, "the rotation keys")
        missing = [e for e in plan.galois_elements if not self._galois.has_key(e)]
        if missing:
            raise CircuitError(
                f"the evaluation keys lack {len(missing)} rotations of model {plan.model_id}; "
                "make keys for it"
            )
        self._seal = sealapi.Evaluator(ring.context)
        self._lock = threading.Lock()

    def run(self, stage: str, inputs: Sequence[bytes]) -> bytes:
        """See `Evaluator`; stages are `style`: encrypted style to code, and `content`: tile and
        code to features.
        """
        try:
            with self._lock:
                if stage == STYLE_STAGE:
                    (style,) = inputs
                    made = self._style(style)
                elif stage == CONTENT_STAGE:
                    content, code = inputs
                    made = self._content(content, code)
                else:
                    raise CircuitError(f"model {self._plan.model_id} has no stage {stage!r}")
                return join([self._ring.dump(each) for each in made])
        except (RuntimeError, ValueError) as error:
            raise CircuitError(
                f"stage {stage} refused its ciphertexts ({first_line(error)})"
            ) from error

    def _style(self, blob: bytes) -> Iterator[Any]:
        """Channels of the style code."""
        layers, row_step = self._layers, self._layout.style_row_step
        limbs = layers.style[0].limbs
        summed = Stack(self._ring, layers.pool.weight.shape[1], layers.pool.limbs)
        known = Stack(self._ring, 3 * CELL_CHANNELS, limbs)
        for channel, source in enumerate(self._read(blob, CELL_CHANNELS, limbs, "the style")):
            summed.put(channel, source)
            self._put(known, 3 * channel, source)
        row = CELL_CHANNELS
        for layer in layers.style:
            before = known
            last = layer is layers.style[-1]
            known = Stack(self._ring, 0 if last else 3 * len(layer.bias), layer.limbs - 1)
            for channel, made in enumerate(self._stage(layer, before, row_step)):
                summed.put(row, made)
                row += 1
                if not last:
                    self._put(known, 3 * channel, made)
        del before
        common = layers.pool.common
        # A constant that is added before the sum counts once per cell.
        each = layers.pool.bias / (common * layers.style_cells**2)
        for sums in summed.multiplied(layers.pool.weight / common, each):
            yield self._squared(self._mean(self._ring.ciphertext(sums), common))

    def _content(self, blob: bytes, code: bytes) -> Iterator[Any]:
        """Channels of the last stage."""
        layers = self._layers.content
        limbs, codes = layers[0].limbs, self._plan.architecture.code
        known = Stack(self._ring, codes + 3 * layers[-1].weight.shape[1], limbs)
        for row, source in enumerate(self._read(code, codes, limbs, CODE)):
            known.put(row, source)
        row = codes
        for source in self._read(blob, CELL_CHANNELS, limbs, "the content"):
            self._put(known, row, source)
            row += 3
        for layer in layers[:-1]:
            for made in self._stage(layer, known, self._layout.row_step):
                self._put(known, row, made)
                row += 3
        yield from self._stage(layers[-1], known, self._layout.row_step)

    def _read(self, blob: bytes, channels: int, limbs: int, what: str) -> Iterator[Any]:
        """Ciphertexts of an input."""
        for data in split(blob, channels, what):
            ciphertext = self._ring.load(sealapi.Ciphertext, data, what)
            if ciphertext.size() != 2 or self._ring.limbs(ciphertext) != limbs:
                raise CircuitError(f"{what} is no input of this stage; submit the pair again")
            yield ciphertext

    def _put(self, known: Stack, row: int, source: Any) -> None:
        """A channel with its left and right neighbours, in three rows from this one on."""
        step = self._layout.column_step
        for index, turn in enumerate((-step, 0, step)):
            known.put(row + index, self._rotated(source, turn) if turn else source)

    def _stage(self, layer: Layer, known: Stack, row_step: int) -> Iterator[Any]:
        """Channels of a 3 x 3 stage, each with a limb less than what it reads; takes that off."""
        for first in range(0, len(layer.bias), OUTPUTS):
            matrix, bias = kernel_rows(layer, slice(first, first + OUTPUTS))
            parts = known.multiplied(matrix, bias)
            if first + OUTPUTS >= len(layer.bias):
                known.drop()
            for above, here, below in parts.reshape(-1, 3, *parts.shape[1:]):
                total = self._ring.ciphertext(here)
                for part, turn in ((above, -row_step), (below, row_step)):
                    turned = self._rotated(self._ring.ciphertext(part), turn)
                    self._seal.add_inplace(total, turned)
                yield self._squared(total)

    def _mean(self, ciphertext: Any, factor: int) -> Any:
        """The sum over all cells of a style, times a power of two, divided by the last prime."""
        while factor > 1:
            self._seal.add_inplace(ciphertext, ciphertext)
            factor //= 2
        for step in self._layout.pooling_steps:
            self._seal.add_inplace(ciphertext, self._rotated(ciphertext, step))
        return self._divided(ciphertext)

    def _rotated(self, ciphertext: Any, step: int) -> Any:
        out = sealapi.Ciphertext()
        self._seal.apply_galois(ciphertext, self._plan.element(step), self._galois, out)
        return out

    def _squared(self, ciphertext: Any) -> Any:
        """The squares of both parts of each slot, times four, divided by the last prime.

        With its conjugate, `z = x + iy` gives `2x` and `2iy`; the squares of these are `4x^2` and
        `-4y^2`, and one relinearization does for both.
        """
        conjugate, unit = sealapi.Ciphertext(), self._ring.unit(self._ring.limbs(ciphertext))
        self._seal.complex_conjugate(ciphertext, self._galois, conjugate)
        other = sealapi.Ciphertext()
        self._seal.sub(ciphertext, conjugate, other)
        self._seal.add_inplace(ciphertext, conjugate)
        self._seal.square_inplace(ciphertext)
        self._seal.square_inplace(other)
        self._seal.multiply_plain_inplace(other, unit)
        self._seal.sub_inplace(ciphertext, other)
        self._seal.relinearize_inplace(ciphertext, self._relin)
        return self._divided(ciphertext)

    def _divided(self, ciphertext: Any) -> Any:
        """Divided by the last prime, which goes."""
        self._seal.rescale_to_next_inplace(ciphertext)
        # Values have no scale of SEAL's: the primes are in the integers.
        ciphertext.scale = 1.0
        return ciphertext


def kernel_rows(layer: Layer, outputs: slice) -> tuple[Reals, Reals]:
    """The matrix that makes sums of each row of a stage's kernel.

    Returns:
        Whole numbers `[3 outputs, code + 3 in]` for rows of the code, then of every channel's left,
        own and right cell; and what is added, `[3 outputs]`.
    """
    weight = layer.weight[outputs]
    count, inside = weight.shape[:2]
    matrix = weight.transpose(0, 2, 1, 3).reshape(count, 3, 3 * inside)
    bias = np.zeros((count, 3))
    bias[:, 1] = layer.bias[outputs]
    if layer.modulation is not None:
        modulation = np.zeros((count, 3, layer.modulation.shape[1]))
        modulation[:, 1] = layer.modulation[outputs]
        matrix = np.concatenate([modulation, matrix], 2)
    return np.ascontiguousarray(matrix.reshape(3 * count, -1)), bias.ravel()
