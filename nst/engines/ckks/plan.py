"""A published leveled model as plain data: its identity, costs, and the task graph of pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from nst.ciphertext import FULL_BITS, Envelope
from nst.engines.base import Json, StoredBytes
from nst.engines.ckks.network import ENGINE, LeveledArchitecture
from nst.engines.ckks.packing import Layout
from nst.engines.ckks.parameters import Parameters
from nst.engines.tasks import (
    InputPart,
    PairIds,
    Seconds,
    StageShape,
    Task,
    TaskGraph,
    lay_out,
)
from nst.errors import CircuitError
from nst.network.architecture import CELL, CELL_CHANNELS
from nst.pictures.size import Size

FORMAT = 1
STYLE_STAGE, CONTENT_STAGE = "style", "content"
CODE = "the style code"
SWITCH = 0.1
"""Work of a key switch per pair of limbs: milliseconds, about, in a ring of degree 2^14."""
PRODUCT = 1 / 400
"""Likewise of a weight times a channel per limb."""


@dataclass(frozen=True)
class CiphertextBytes:
    """Sizes of serialized ciphertexts as SEAL compresses them, of one channel each.

    Attributes:
        style: An encrypted style.
        content: A tile of an encrypted content.
        code: The style code.
        result: A tile of a result.
    """

    style: int
    content: int
    code: int
    result: int


@dataclass(frozen=True)
class LeveledPlan:
    """A leveled model laid out for contents of some sizes; a `Plan`.

    Attributes:
        model_id: Hash of integers, parameters and layout.
        runtime: See `Plan`.
        architecture: Sizes of the network.
        parameters: Ring, primes, scales.
        layout: Tiles, lanes, guard ring.
        width: Width of a content and its result in pixels.
        height: Their height.
        evaluation_key_bytes: Serialized (seeded) evaluation keys.
        channel_bytes: Sizes of a channel's ciphertexts.
    """

    model_id: str
    runtime: str
    architecture: LeveledArchitecture
    parameters: Parameters
    layout: Layout
    width: int
    height: int
    evaluation_key_bytes: int
    channel_bytes: CiphertextBytes

    @property
    def engine(self) -> str:
        """See `Plan`."""
        return ENGINE

    @property
    def cpu_features(self) -> tuple[str, ...]:
        """See `Plan`: integers ask for no CPU."""
        return ()

    @property
    def size(self) -> Size:
        """See `Plan`."""
        return Size(self.width, self.height)

    @property
    def style_size(self) -> Size:
        """See `Plan`."""
        return Size.square(self.layout.style_cells * CELL)

    @property
    def tiles(self) -> int:
        """Tiles of a content."""
        return len(self.layout.tiles(self.size))

    @property
    def parts(self) -> int:
        """Parts of a content and of its result."""
        return self.layout.parts(self.size)

    @property
    def style_limbs(self) -> int:
        """Of an encrypted style."""
        return self.parameters.levels + 1

    @property
    def content_limbs(self) -> int:
        """Of an encrypted content and of the style code."""
        return self.architecture.stages + 1

    def element(self, step: int) -> int:
        """What names a rotation among the keys: a power of -3 modulo twice the degree.

        SEAL's own rotations are powers of 3; an odd one would turn the imaginary unit around.
        """
        modulus = 2 * self.parameters.degree
        return pow(modulus - 3, step % self.parameters.slots, modulus)

    @property
    def galois_elements(self) -> list[int]:
        """Of all rotations, and of the conjugation."""
        conjugation = 2 * self.parameters.degree - 1
        return [*(self.element(step) for step in self.layout.steps), conjugation]

    @property
    def pairs_per_result(self) -> int:
        """See `Plan`."""
        return self.layout.pictures(self.size)

    @property
    def stored(self) -> StoredBytes:
        """See `Plan`; a part holds as many tiles as there are lanes."""
        each, a = self.channel_bytes, self.architecture
        return StoredBytes(
            content_part=each.content * CELL_CHANNELS,
            style_part=each.style * CELL_CHANNELS,
            result_part=each.result * a.result_channels,
            content_parts=self.parts,
            style_parts=1,
            result_parts=self.parts,
        )

    @property
    def stages(self) -> tuple[StageShape, ...]:
        """See `Plan`; work is milliseconds, about (see `SWITCH`)."""
        return (
            StageShape(STYLE_STAGE, 1, self._style_work, True),
            StageShape(CONTENT_STAGE, self.parts, self._content_work, False),
        )

    @property
    def _style_work(self) -> float:
        a, limbs = self.architecture, self.style_limbs
        inside, work = CELL_CHANNELS, 0.0
        for out in a.style:
            work += self._stage_work(inside, out, inside, limbs)
            inside, limbs = out, limbs - 1
        pooled = len(self.layout.pooling_steps) + 2
        products = a.code * (CELL_CHANNELS + sum(a.style))
        return work + self._work(a.code * pooled, products, limbs)

    @property
    def _content_work(self) -> float:
        a, limbs = self.architecture, self.content_limbs
        fresh, work = CELL_CHANNELS, 0.0
        for inside, out in a.content():
            work += self._stage_work(fresh, out, inside, limbs)
            fresh, limbs = out, limbs - 1
        return work

    def _stage_work(self, fresh: int, out: int, inside: int, limbs: int) -> float:
        """Of a 3 x 3 stage that turns its fresh sources by columns and its sums by rows."""
        return self._work(2 * fresh + 4 * out, 9 * inside * out, limbs)

    def _work(self, switches: int, products: int, limbs: int) -> float:
        """Of so many key switches and products of channels, at so many limbs."""
        ring = self.parameters.degree / 2**14
        transforms = switches * (limbs + 2) * (limbs + 1) * math.log2(self.parameters.degree) / 14
        return ring * (SWITCH * transforms + PRODUCT * products * limbs)

    def at(self, size: Size) -> LeveledPlan:
        """See `Plan`: another size is another number of parts."""
        if size.padded != size:
            raise CircuitError(f"contents of {size} are not padded; give {size.padded}")
        return replace(self, width=size.width, height=size.height)

    def graph(self, pairs: Sequence[PairIds], seconds: Seconds) -> TaskGraph:
        """See `Plan`: a task per style, and one per part of each result."""
        tasks: list[Task] = []
        each, a = self.channel_bytes, self.architecture

        def add_style(style: str, group: str, rank: int) -> int:
            task = Task(
                index=len(tasks),
                stage=STYLE_STAGE,
                group=group,
                part=0,
                sources=(InputPart(style, 0),),
                seconds=seconds[STYLE_STAGE],
                output_bytes=each.code * a.code,
                rank=rank,
                depth=0,
                checkpoint=True,
            )
            tasks.append(task)
            return task.index

        def add_result(content: str, group: str, rank: int, code: int) -> Sequence[int]:
            first = len(tasks)
            for part in range(self.parts):
                task = Task(
                    index=first + part,
                    stage=CONTENT_STAGE,
                    group=group,
                    part=part,
                    sources=(InputPart(content, part), code),
                    seconds=seconds[CONTENT_STAGE],
                    output_bytes=each.result * a.result_channels,
                    rank=rank,
                    depth=1,
                )
                tasks.append(task)
            return range(first, len(tasks))

        return lay_out(pairs, tasks, add_style, add_result)

    def pack_result(self, key_id: str, part: bytes) -> Envelope:
        """See `Plan`."""
        return Envelope(key_id, self.model_id, (part,))

    def require_result(self, envelope: Envelope, what: str) -> None:
        """See `Plan`."""
        if envelope.word_bits != FULL_BITS or len(envelope.parts) != 1:
            raise CircuitError(f"{what} is no part of a result; retry the pair")

    def to_dict(self) -> dict[str, Json]:
        """See `Plan`."""
        return {
            "engine": ENGINE,
            "format": FORMAT,
            **asdict(self),
            "parameters": self.parameters.to_dict(),
            "architecture": {**asdict(self.architecture), "style": list(self.architecture.style)},
        }

    @staticmethod
    def from_dict(record: dict[str, Any]) -> LeveledPlan:
        """Inverse of `to_dict`.

        Raises:
            CircuitError: if it is damaged, insecure, or was written by another version.
        """
        try:
            fields = dict(record)
            fields.pop("engine")
            if (written := fields.pop("format")) != FORMAT:
                raise CircuitError(
                    f"plan has format {written}, this version of {ENGINE} reads {FORMAT}; "
                    "publish the model again"
                )
            sizes = dict(fields.pop("architecture"))
            architecture = LeveledArchitecture(**{**sizes, "style": tuple(sizes["style"])})
            parameters = Parameters.from_dict(fields.pop("parameters"))
            layout = Layout(**fields.pop("layout"))
            each = CiphertextBytes(**fields.pop("channel_bytes"))
            plan = LeveledPlan(
                architecture=architecture,
                parameters=parameters,
                layout=layout,
                channel_bytes=each,
                **fields,
            )
        except (KeyError, TypeError) as error:
            raise CircuitError(f"plan is damaged ({error}); publish the model again") from error
        parameters.require(architecture.levels)
        if layout.slots != parameters.slots or min(layout.rows, layout.columns) <= 2 * layout.reach:
            raise CircuitError("plan is damaged (its tiles do not fit); publish the model again")
        return plan

    def summary(self) -> dict[str, Json]:
        """See `Plan`."""
        stored, layout, p = self.stored, self.layout, self.parameters
        return {
            "engine": ENGINE,
            "model_id": self.model_id,
            "runtime": self.runtime,
            "width": self.width,
            "height": self.height,
            "style_side": self.style_size.width,
            "ring_degree": p.degree,
            "modulus_bits": p.bits,
            "prime_bits": [p.first_bits, *reversed(p.level_bits), p.special_bits],
            "levels": p.levels,
            "pairs_per_ciphertext": layout.pictures(self.size),
            "tiles": self.tiles,
            "parts": self.parts,
            "tile_rows": layout.rows,
            "tile_columns": layout.columns,
            "guard_ring": layout.reach,
            "rotations": len(self.galois_elements),
            "evaluation_key_bytes": self.evaluation_key_bytes,
            "content_bytes": stored.content,
            "style_bytes": stored.style,
            "result_bytes": stored.result,
            "stages": [{"name": s.name, "tasks": s.tasks, "work": s.work} for s in self.stages],
        }
