"""What compiled circuits cost, as plain data: read off the compiler once, stored beside them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from nst.architecture import CELL, Architecture, grids
from nst.errors import CircuitError
from nst.integer import is_style

FORMAT = 3
SQUARE_FORMAT = 2
"""Of plans that knew one size, for content and style; they are read as such."""


def count_pbs(architecture: Architecture, size: int) -> int:
    """PBS of a pair of so many pixels a side, style branch included: one for each activation.

    Known before anything is compiled; compiled circuits have as many.
    """
    stages = architecture.stages()
    shapes = grids(stages, size)
    return sum(s.out_channels * shapes[s.name].rows * shapes[s.name].width for s in stages)


@dataclass(frozen=True)
class StagePlan:
    """One circuit function and how often a picture calls it.

    Attributes:
        name: Function name.
        kind: `conv`, `row_pool` or `pool` (see `nst.architecture.Stage`).
        sources: Stages or inputs whose rows it reads.
        stride: Rows of the source per row of the result.
        modulated: Whether it takes the style code as its last argument.
        rows: Calls a picture.
        pbs: PBS of all these calls.
        operations: Their cost on Concrete's `complexity` scale.
        output_bytes: Size of one call's serialized result.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    stride: int
    modulated: bool
    rows: int
    pbs: int
    operations: float
    output_bytes: int

    @property
    def pbs_per_row(self) -> int:
        """PBS of one call."""
        return self.pbs // self.rows


@dataclass(frozen=True)
class CircuitPlan:
    """The compiled circuits of one quality level, for contents of one width.

    The height is not compiled in: `at_height` gives the plan of a content of any other.

    Attributes:
        circuit_id: Hash of weights, stage code, Concrete version, sizes and `p_error`.
        concrete_version: Compiled artefacts load under this version only.
        size: Side of the square style in pixels.
        width: Width of the content and its result in pixels.
        height: Their height.
        p_error: Error probability of one PBS, as compiled.
        evaluation_key_bytes: Serialized (compressed) evaluation keys.
        input_ciphertext_bytes: One encrypted content, all rows.
        output_ciphertext_bytes: One encrypted result, all rows, before it is switched to smaller
            words (see `nst.switching`).
        lwe_dimension: Mask words of one encrypted value; a word more makes it 8 bytes each.
        output_width: Bits of a level of the result, the bit of padding above them not counted.
        stages: In order of evaluation.
    """

    circuit_id: str
    concrete_version: str
    size: int
    width: int
    height: int
    p_error: float
    evaluation_key_bytes: int
    input_ciphertext_bytes: int
    output_ciphertext_bytes: int
    lwe_dimension: int
    output_width: int
    stages: tuple[StagePlan, ...]

    @property
    def pbs_style(self) -> int:
        """PBS of one style branch, paid once a style."""
        return sum(s.pbs for s in self.stages if is_style(s.name))

    @property
    def pbs_content(self) -> int:
        """PBS of one content path, paid once a pair."""
        return sum(s.pbs for s in self.stages) - self.pbs_style

    @property
    def operations_per_pair(self) -> float:
        """Cost of a pair whose style is not shared, on Concrete's `complexity` scale."""
        return sum(s.operations for s in self.stages)

    @property
    def style_ciphertext_bytes(self) -> int:
        """One encrypted style, all rows: every encrypted pixel takes as much."""
        return self.input_ciphertext_bytes * self.size**2 // (self.width * self.height)

    @property
    def content_rows(self) -> int:
        """Rows of an encrypted content, and of a result."""
        return self.height // CELL

    @property
    def style_rows(self) -> int:
        """Rows of an encrypted style."""
        return self.size // CELL

    def at_height(self, height: int) -> CircuitPlan:
        """The same circuits for contents of another height: a row more is a call more.

        Args:
            height: Pixels, a multiple of 8 as the height that this plan is of.
        """

        def scaled(stage: StagePlan) -> StagePlan:
            if is_style(stage.name):
                return stage
            rows = stage.rows * height // self.height
            each = stage.operations / stage.rows
            return replace(stage, rows=rows, pbs=stage.pbs_per_row * rows, operations=each * rows)

        return replace(
            self,
            height=height,
            input_ciphertext_bytes=self.input_ciphertext_bytes * height // self.height,
            output_ciphertext_bytes=self.output_ciphertext_bytes * height // self.height,
            stages=tuple(scaled(stage) for stage in self.stages),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able record."""
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> CircuitPlan:
        """Inverse of `to_dict`.

        Raises:
            CircuitError: if the record was written by another version.
        """
        try:
            fields = dict(record)
            written = fields.pop("format")
            if written == SQUARE_FORMAT:
                fields |= {"width": fields["size"], "height": fields["size"]}
            elif written != FORMAT:
                raise CircuitError(
                    f"circuit plan has format {written}, this version reads {FORMAT}; "
                    "build the circuits again"
                )
            stages = tuple(
                StagePlan(**{**s, "sources": tuple(s["sources"])}) for s in fields.pop("stages")
            )
            return CircuitPlan(stages=stages, **fields)
        except (KeyError, TypeError) as error:
            raise CircuitError(f"circuit plan is damaged ({error}); build it again") from error

    def summary(self) -> dict[str, Any]:
        """What `circuits inspect --json` prints."""
        pbs = self.pbs_style + self.pbs_content
        return {
            "circuit_id": self.circuit_id,
            "concrete_version": self.concrete_version,
            "size": self.size,
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
                {"name": s.name, "rows": s.rows, "pbs": s.pbs, "operations": s.operations}
                for s in self.stages
            ],
        }
