"""The network as circuits: each stage one function of one Concrete module, row by row.

A 3 x 3 stage is a function `(row above, row, row below, ..., style code) -> row` on tensors
`[1, C, 1, W]`. All functions share one key set, and `Wired` composition tells the optimizer which
output may become which input, so that a result is used without decryption.

`nst.engines.concrete.publish` calls this; importing it takes seconds.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from concrete import fhe
from concrete.fhe.compilation.configuration import SecurityLevel
from mlir._mlir_libs._concretelang._compiler import RangeRestriction
from numpy.typing import NDArray

from nst.cpu import cpu_features
from nst.engines.concrete.graph import StagePlan
from nst.engines.concrete.plan import CircuitPlan
from nst.errors import CircuitError
from nst.network import architecture as shape
from nst.network.architecture import (
    COLUMNS,
    CONTENT,
    OUTPUT,
    ROWS,
    STYLE,
    STYLE_CODE,
    Grid,
    Stage,
    grids,
)
from nst.network.integers import IntegerNetwork, IntegerStage
from nst.network.levels import SECURITY

Ints = NDArray[np.int64]
CODE_PARAMETER = "code"


def compile_module(
    network: IntegerNetwork,
    side: int,
    p_error: float,
    width: int,
    security: int = SECURITY,
    exact: bool = False,
) -> tuple[fhe.FheModule, dict[str, list[str]]]:
    """Compile all stages as functions of one module.

    Args:
        network: Integer weights.
        side: Of the style in pixels.
        p_error: Error probability of one PBS.
        width: Of the content in pixels.
        security: Bits of security.
        exact: Whether activations are rounded exactly, at several times the price.

    Returns:
        The module, and the parameter names of each function in order.
    """
    shapes = grids(network.architecture.stages(), side, width)
    functions: dict[str, fhe.FunctionDef] = {}
    parameters: dict[str, list[str]] = {}
    inputsets: dict[str, list[tuple[Ints, ...] | Ints]] = {}
    for name, stage in network.stages.items():
        sources = [shapes[source] for source in stage.stage.sources]
        parameters[name] = _parameters(stage.stage, sources[0])
        function = _function(stage, parameters[name], exact)
        functions[name] = fhe.function({p: "encrypted" for p in parameters[name]})(function)
        samples = _calibration(stage, sources, network)
        inputsets[name] = [s if len(s) > 1 else s[0] for s in samples]
    wires = {
        fhe.Wire(fhe.Output(functions[source], 0), fhe.Input(functions[name], position))
        for name in functions
        for position, source in enumerate(_sources(network.stages[name].stage, parameters[name]))
        if source in functions
    }
    holder = type("Stages", (), {**functions, "composition": fhe.Wired(wires)})
    compiled = partial(
        fhe.module()(holder).compile,
        inputsets,
        p_error=p_error,
        security_level=SecurityLevel(security),
        approximate_rounding_config=fhe.ApproximateRoundingConfig(logical_clipping=True),
        compress_evaluation_keys=True,
        compress_input_ciphertexts=True,
        # One row task is one core's work; the scheduler fills the others.
        loop_parallelize=False,
    )
    try:
        module = compiled(range_restriction=fastest_parameters())
    except RuntimeError:
        # They are not precise enough for every network.
        module = compiled()
    _check_types(module, network)
    return module, parameters


def fastest_parameters() -> RangeRestriction:
    """GLWE dimension 2 and polynomials of 1,024 coefficients: what takes the fewest milliseconds.

    The optimizer counts operations, and by them prefers dimension 4 and 512 coefficients where
    little precision is asked for; those take a quarter more time, at the same security.
    """
    restriction = RangeRestriction()
    restriction.add_available_glwe_log_polynomial_size(10)
    restriction.add_available_glwe_dimension(2)
    return restriction


def make_plan(
    module: fhe.FheModule,
    parameters: dict[str, list[str]],
    network: IntegerNetwork,
    side: int,
    identifier: str,
    width: int,
    exact: bool = False,
) -> CircuitPlan:
    """Read the costs off a compiled module, for contents as high as the style."""
    functions = module.functions()
    shapes = grids(network.architecture.stages(), side, width)
    sets = {p for f in functions.values() for p in f.programmable_bootstrap_count_per_parameter}
    # Exact rounding takes off bit by bit, with PBS of a set of their own: in every stage as many of
    # them go with one of the others, so that a mean of both costs the same everywhere.
    if len({str(p) for p in sets}) != 1 + exact:
        raise CircuitError(
            f"the optimizer chose {len(sets)} parameter sets where the design counts on one; "
            "bring all accumulators to one width"
        )
    # `complexity` is that of calling every function once; with one parameter set each PBS (its
    # key switch included) costs the same.
    calls = sum(f.programmable_bootstrap_count for f in functions.values())
    per_pbs = module.complexity / calls
    stages = []
    for name, stage in network.stages.items():
        rows = shapes[name].rows
        pbs = functions[name].programmable_bootstrap_count * rows
        stages.append(
            StagePlan(
                name=name,
                branch=stage.stage.branch,
                sources=stage.stage.sources,
                reads=stage.stage.kind.reads,
                stride=stage.stage.stride,
                modulated=stage.stage.modulated,
                rows=rows,
                pbs=pbs,
                operations=pbs * per_pbs,
                output_bytes=functions[name].size_of_outputs,
            )
        )
    # The evaluation keys' size is only known once made; these are thrown away at once.
    module.keygen()
    keys = module.client.evaluation_keys.serialize()
    # The first stage of the style takes rows of pixels and nothing else.
    (entry,) = (n for n, stage in network.stages.items() if stage.stage.sources == (STYLE,))
    row_bytes = functions[entry].size_of_inputs // len(parameters[entry]) * width // side
    dimension, output_width = _result_encoding(module)
    return CircuitPlan(
        model_id=identifier,
        concrete_version=version("concrete-python"),
        style_side=side,
        width=width,
        height=side,
        p_error=module.p_error,
        evaluation_key_bytes=len(keys),
        input_ciphertext_bytes=row_bytes * shapes[CONTENT].rows,
        output_ciphertext_bytes=functions[OUTPUT].size_of_outputs * shapes[OUTPUT].rows,
        lwe_dimension=dimension,
        output_width=output_width,
        circuits=tuple(stages),
        cpu_features=cpu_features(),
    )


def _result_encoding(module: fhe.FheModule) -> tuple[int, int]:
    """Mask words of a value of the last stage, and bits of its levels."""
    circuits = json.loads(module.client.specs.serialize())["circuits"]
    (output,) = next(c["outputs"] for c in circuits if c["name"] == OUTPUT)
    kind = output["typeInfo"]["lweCiphertext"]
    return kind["encryption"]["lweDimension"], kind["encoding"]["integer"]["width"]


def _rows(stage: Stage, source: Grid) -> int:
    """Rows of each source that one call reads."""
    return source.rows if stage.kind.reads is None else len(stage.kind.reads)


def _parameters(stage: Stage, source: Grid) -> list[str]:
    count = _rows(stage, source)
    names = [f"row_{s}_{i}" for s in range(len(stage.sources)) for i in range(count)]
    return [*names, CODE_PARAMETER] if stage.modulated else names


def _sources(stage: Stage, parameters: list[str]) -> list[str]:
    """The stage or input that each parameter comes from."""
    count = (len(parameters) - stage.modulated) // len(stage.sources)
    out = [source for source in stage.sources for _ in range(count)]
    return [*out, STYLE_CODE] if stage.modulated else out


def _function(
    layer: IntegerStage, parameters: list[str], exact: bool
) -> Callable[..., NDArray[Any]]:
    """The stage as a function of rows that Concrete can trace."""
    stage, kind = layer.stage, layer.stage.kind
    exactness = fhe.Exactness.EXACT if exact else fhe.Exactness.APPROXIMATE

    def accumulate(rows: list[Any]) -> Any:
        count = len(rows) // len(stage.sources)
        each = [rows[i : i + count] for i in range(0, len(rows), count)]
        x = _joined([sum(r[1:], r[0]) if ROWS in kind.summed else _joined(r, 2) for r in each], 1)
        if COLUMNS in kind.summed:
            x = np.sum(x, axis=3, keepdims=True)
        left = [x[:, :, :, :1]] * kind.margin
        # The last window of a strided convolution ends before the right margin does.
        right = [x[:, :, :, -1:]] * max(0, kind.margin + 1 - stage.stride)
        strides = stage.stride, stage.stride
        # The bias goes into the convolution: a sum without it might need an eleventh bit.
        return fhe.conv(_joined([*left, x, *right], 3), layer.weight, layer.bias, strides=strides)

    def run(**arguments: Any) -> Any:
        rows = [arguments[p] for p in parameters if p != CODE_PARAMETER]
        acc = accumulate(rows)
        if layer.modulation is not None:
            code = arguments[CODE_PARAMETER].reshape((layer.modulation.shape[1],))
            acc = acc + (layer.modulation @ code).reshape((1, stage.out_channels, 1, 1))
        kept = fhe.round_bit_pattern(acc, lsbs_to_remove=shape.SHIFT, exactness=exactness)
        return fhe.univariate(lambda v: layer.look_up(v // shape.LEVEL))(kept)

    run.__name__ = stage.name
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(p, inspect.Parameter.POSITIONAL_OR_KEYWORD) for p in parameters]
    )
    return run


def _joined(parts: list[Any], axis: int) -> Any:
    """Traced tensors side by side."""
    return np.concatenate(tuple(parts), axis=axis) if len(parts) > 1 else parts[0]


Rows = list[Ints]
"""The rows that one call reads, by source: `[C, rows, W]`."""


def _calibration(
    layer: IntegerStage, grids_of_sources: list[Grid], network: IntegerNetwork
) -> list[tuple[Ints, ...]]:
    """Arguments that take inputs and accumulators of a stage to the ends of their ranges.

    Concrete sizes encodings from what it sees. Pictures would make the circuits depend on which
    pictures were at hand; these made-up rows reach the ends of the 10-bit accumulator without
    crossing them, for any weights.
    """
    stage = layer.stage
    count = _rows(stage, grids_of_sources[0])
    empty = [
        np.zeros((channels, count, grid.width), dtype=np.int64)
        for channels, grid in zip(stage.source_channels, grids_of_sources, strict=True)
    ]
    ranges = [_range(network, source) for source in stage.sources]
    samples = [empty]
    for position, (low, high) in enumerate(ranges):
        for row in range(count):
            # Both ends in both border columns: every slice must show that it can be negative.
            for column in (0, -1):
                ends = [x.copy() for x in empty]
                ends[position][0, row, column] = low
                ends[position][1, row, column] = high
                samples.append(ends)
    # Halfway down as well: where few channels share their inputs the end may be out of reach, and
    # an activation that can be negative must be seen to be.
    targets = (shape.ACCUMULATOR_MIN, shape.ACCUMULATOR_MAX, shape.ACCUMULATOR_MIN // 2)
    reached = [_reach(layer, empty, ranges[0], target) for target in targets]
    if all(x is None for x in reached):
        raise CircuitError(
            f"no input takes stage {stage.name} to the ends of its accumulator: its weights are "
            "too small; train it longer"
        )
    samples += [x for x in reached if x is not None]
    code = None
    if layer.modulation is not None:
        code = np.zeros(layer.modulation.shape[1], dtype=np.int64)
    out = [_arguments(x, code) for x in samples]
    if code is not None:
        for end in _range(network, STYLE_CODE):
            one = code.copy()
            one[0] = end
            out.append(_arguments(empty, one))
    return out


def _range(network: IntegerNetwork, source: str) -> tuple[int, int]:
    """Smallest and largest level of a stage or an input."""
    if source not in network.stages:
        return shape.PIXEL_MIN, shape.PIXEL_MAX
    stage = network.stages[source].stage
    return stage.output_min, stage.output_max


def _arguments(rows: Rows, code: Ints | None) -> tuple[Ints, ...]:
    """Rows of the sources and a code as the arguments of the stage's function."""
    out = tuple(x[None, :, i : i + 1, :] for x in rows for i in range(x.shape[1]))
    return out if code is None else (*out, code.reshape(1, -1, 1, 1))


def _reach(layer: IntegerStage, empty: Rows, ends: tuple[int, int], target: int) -> Rows | None:
    """Rows whose accumulators reach close to `target` in one channel and stay safe in all.

    Only the first source, whose levels end at `ends`, and its first columns are used.
    """
    low, high = ends
    sign = 1 if target > 0 else -1
    norms = np.abs(layer.weight[:, : len(empty[0])]).sum((1, 2, 3))
    for channel in np.argsort(-norms):
        effect = sign * _effect(layer, empty[0], int(channel))
        x = empty[0].copy()
        missing = sign * (target - int(layer.bias[channel]))
        for index in np.argsort(-np.abs(effect), axis=None):
            weight = int(effect.flat[index])
            end = high if weight > 0 else low
            steps = missing // abs(weight) if weight else 0
            x.flat[index] = np.sign(end) * min(abs(end), steps)
            missing -= weight * int(x.flat[index])
        rows = [x, *empty[1:]]
        acc = _accumulators(layer, rows)
        safe = acc.min() >= shape.ACCUMULATOR_MIN and acc.max() <= shape.ACCUMULATOR_MAX
        if safe and missing < shape.LEVEL // 2:
            return rows
    return None


def _effect(layer: IntegerStage, empty: Ints, channel: int) -> Ints:
    """What each element of the first source adds to a channel's first accumulator."""
    weight = layer.weight[channel, : len(empty)]
    kind = layer.stage.kind
    if kind.summed:
        # No kernel that sums has neighbours.
        return np.broadcast_to(weight[:, :1], empty.shape)
    out = np.zeros_like(empty)
    for dx in range(kind.kernel):
        out[:, :, max(dx - kind.margin, 0)] += weight[:, :, dx]
    return out


def _accumulators(layer: IntegerStage, rows: Rows) -> Ints:
    """Accumulators of one row task, code zero."""
    none = None if layer.modulation is None else np.zeros(layer.modulation.shape[1], np.int64)
    return layer.accumulate(np.concatenate(rows), none, window=True)


def _check_types(module: fhe.FheModule, network: IntegerNetwork) -> None:
    for name, graph in module.graphs.items():
        for node in graph.query_nodes(operation_filter="round_bit_pattern"):
            (operand,) = graph.ordered_preds_of(node)
            kind = operand.output.dtype
            if not (kind.is_signed and kind.bit_width == shape.ACCUMULATOR_BITS):
                raise CircuitError(
                    f"stage {name} has {kind} accumulators, not signed "
                    f"{shape.ACCUMULATOR_BITS}-bit ones: train with an overflow penalty"
                )
        # Readers were calibrated on these levels, and ciphertexts of another sign are refused.
        kind = graph.output_nodes[0].output.dtype
        if kind.is_signed != (network.stages[name].stage.output_min < 0):
            raise CircuitError(
                f"stage {name} gives {kind} levels; no input takes it below zero: train it longer"
            )
