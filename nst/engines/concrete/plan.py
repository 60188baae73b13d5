"""What compiled circuits cost, as plain data: read off the compiler once, stored beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from nst.ciphertext import FULL_BITS, Envelope
from nst.engines.base import Json, StoredBytes
from nst.engines.concrete import PACKAGE
from nst.engines.concrete.graph import StagePlan, build_graph
from nst.engines.concrete.switching import switched, word_bits
from nst.engines.tasks import PairIds, Seconds, StageShape, TaskGraph
from nst.errors import CircuitError
from nst.network.architecture import CELL, CONTENT, STYLE, Architecture, Branch, grids
from nst.pictures.size import Size

ENGINE = "concrete"
FORMAT = 5


def count_pbs(architecture: Architecture, side: int) -> int:
    """PBS per pair of square pictures with sides of so many pixels, style branch included.

    One per activation: known before anything is compiled; compiled circuits have as many.
    """
    stages = architecture.stages()
    shapes = grids(stages, side)
    return sum(s.out_channels * shapes[s.name].rows * shapes[s.name].width for s in stages)


@dataclass(frozen=True)
class CircuitPlan:
    """The compiled circuits of one quality level, for contents of one width; a `Plan`.

    The height is not compiled in: `at` gives the plan of a content of any other.

    Attributes:
        model_id: Hash of what the circuits compute (see `nst.engines.concrete.publish.model_id`).
        concrete_version: Compiled artefacts load under this version only.
        style_side: Side of the square style in pixels.
        width: Width of the content and its result in pixels.
        height: Their height.
        p_error: Error probability of one PBS, as compiled.
        evaluation_key_bytes: Serialized (compressed) evaluation keys.
        input_ciphertext_bytes: One encrypted content, all rows.
        output_ciphertext_bytes: One encrypted result, all rows, before it is switched to smaller
            words (see `nst.engines.concrete.switching`).
        lwe_dimension: Mask words of one encrypted value; a word more makes it 8 bytes each.
        output_width: Bits of a level of the result, the bit of padding above them not counted.
        circuits: In order of evaluation.
        cpu_features: Of the machine that compiled them, which is what Concrete compiles for; empty
            if that is not known.
    """

    model_id: str
    concrete_version: str
    style_side: int
    width: int
    height: int
    p_error: float
    evaluation_key_bytes: int
    input_ciphertext_bytes: int
    output_ciphertext_bytes: int
    lwe_dimension: int
    output_width: int
    circuits: tuple[StagePlan, ...]
    cpu_features: tuple[str, ...] = ()

    @property
    def engine(self) -> str:
        """See `Plan`."""
        return ENGINE

    @property
    def runtime(self) -> str:
        """See `Plan`."""
        return f"{PACKAGE} {self.concrete_version}"

    @property
    def size(self) -> Size:
        """See `Plan`."""
        return Size(self.width, self.height)

    @property
    def style_size(self) -> Size:
        """See `Plan`."""
        return Size.square(self.style_side)

    @property
    def stages(self) -> tuple[StageShape, ...]:
        """See `Plan`; work is operations on Concrete's `complexity` scale."""
        return tuple(
            StageShape(c.name, c.rows, c.operations / c.rows, c.in_style) for c in self.circuits
        )

    def entry(self, branch: Branch) -> str:
        """The stage that reads the branch's encrypted input and nothing else."""
        return next(c.name for c in self.circuits if c.sources == (branch,))

    @property
    def word_bits(self) -> int:
        """Bits that are left of the words of a stored result."""
        return word_bits(self.lwe_dimension, self.output_width)

    @property
    def pairs_per_result(self) -> int:
        """See `Plan`."""
        return 1

    @property
    def stored(self) -> StoredBytes:
        """See `Plan`; a part is a row, headers left out; of a result it is exact."""
        contents, styles = self.height // CELL, self.style_side // CELL
        content = self.input_ciphertext_bytes
        # Every encrypted pixel takes as much.
        style = content * self.style_side**2 // (self.width * self.height)
        result = self.output_ciphertext_bytes * self.word_bits // FULL_BITS
        return StoredBytes(
            content_part=content // contents,
            style_part=style // styles,
            result_part=result // contents,
            content_parts=contents,
            style_parts=styles,
            result_parts=contents,
        )

    @property
    def pbs_style(self) -> int:
        """PBS of one style branch, computed once per style."""
        return sum(c.pbs for c in self.circuits if c.in_style)

    @property
    def pbs_content(self) -> int:
        """PBS of one content path, computed once per pair."""
        return sum(c.pbs for c in self.circuits) - self.pbs_style

    @property
    def operations_per_pair(self) -> float:
        """Cost of a pair whose style is not shared, on Concrete's `complexity` scale."""
        return sum(c.operations for c in self.circuits)

    def at(self, size: Size) -> CircuitPlan:
        """See `Plan`: each row is a call, and the width is compiled in."""
        if size.width != self.width or size.padded != size:
            raise CircuitError(
                f"circuits {self.model_id} compute contents {self.width} pixels wide, not {size}; "
                "build circuits of that size"
            )

        def scaled(circuit: StagePlan) -> StagePlan:
            if circuit.in_style:
                return circuit
            rows = circuit.rows * size.height // self.height
            each = circuit.operations / circuit.rows
            return replace(
                circuit, rows=rows, pbs=circuit.pbs_per_row * rows, operations=each * rows
            )

        return replace(
            self,
            height=size.height,
            input_ciphertext_bytes=self.input_ciphertext_bytes * size.height // self.height,
            output_ciphertext_bytes=self.output_ciphertext_bytes * size.height // self.height,
            circuits=tuple(scaled(circuit) for circuit in self.circuits),
        )

    def graph(self, pairs: Sequence[PairIds], seconds: Seconds) -> TaskGraph:
        """See `Plan`."""
        heights: dict[Branch, int] = {
            CONTENT: self.stored.content_parts,
            STYLE: self.stored.style_parts,
        }
        return build_graph(self.circuits, heights, pairs, seconds)

    def pack_result(self, key_id: str, part: bytes) -> Envelope:
        """See `Plan`: a row, its words switched; raises CircuitError if it is no ciphertext."""
        return switched(key_id, self.model_id, (part,), self.word_bits)

    def require_result(self, envelope: Envelope, what: str) -> None:
        """See `Plan`."""
        sizes = [len(part) for part in envelope.parts]
        if envelope.word_bits != self.word_bits or sizes != [self.stored.result_part]:
            raise CircuitError(f"{what} is no row of a result; retry the pair")

    def to_dict(self) -> dict[str, Json]:
        """See `Plan`."""
        return {"engine": ENGINE, "format": FORMAT, **asdict(self)}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> CircuitPlan:
        """Inverse of `to_dict`.

        Raises:
            CircuitError: if it is damaged or was written by another version.
        """
        try:
            fields = dict(record)
            fields.pop("engine")
            if (written := fields.pop("format")) != FORMAT:
                raise CircuitError(
                    f"circuit plan has format {written}, this version reads {FORMAT}; "
                    "build the circuits again"
                )
            circuits = tuple(StagePlan.from_dict(s) for s in fields.pop("circuits"))
            # Of before: runs anywhere, or dies there.
            features = tuple(str(name) for name in fields.pop("cpu_features", ()))
            return CircuitPlan(circuits=circuits, cpu_features=features, **fields)
        except (KeyError, TypeError) as error:
            raise CircuitError(f"circuit plan is damaged ({error}); build it again") from error

    def summary(self) -> dict[str, Json]:
        """See `Plan`."""
        pbs = self.pbs_style + self.pbs_content
        return {
            "engine": ENGINE,
            "model_id": self.model_id,
            "concrete_version": self.concrete_version,
            "style_side": self.style_side,
            "width": self.width,
            "height": self.height,
            "pbs_per_pair": pbs,
            "pbs_style": self.pbs_style,
            "pbs_content": self.pbs_content,
            "operations_per_pair": self.operations_per_pair,
            "operations_per_pbs": self.operations_per_pair / pbs,
            "p_error": self.p_error,
            "evaluation_key_bytes": self.evaluation_key_bytes,
            "input_ciphertext_bytes": self.input_ciphertext_bytes,
            "output_ciphertext_bytes": self.output_ciphertext_bytes,
            "stages": [
                {"name": c.name, "rows": c.rows, "pbs": c.pbs, "operations": c.operations}
                for c in self.circuits
            ],
        }
