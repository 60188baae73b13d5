"""An independent oracle: concrete-ml compiles the same weights from an ordinary Brevitas model.

Neither the arithmetic of `nst.network.integers` nor the lowering of our circuits takes part in it:
Brevitas and ONNX carry the weights, concrete-ml quantizes, lowers and encrypts, and its table
look-ups are exact. It must give the very levels that `nst.network.integers` gives, and the staged
circuits must stay within a rounding of it.

concrete-ml knows no replicate padding, so it convolves without any and the interiors are compared;
it can't add an encrypted style code to an accumulator, so the code is part of its biases.
"""

from __future__ import annotations

import numpy as np
import pytest
from concrete.ml.quantization import QuantizedModule
from concrete.ml.torch.compile import compile_brevitas_qat_model
from torch import nn

from nst.engines.base import Evaluator
from nst.engines.concrete.client import CircuitCipher
from nst.network.architecture import CONTENT, LEAK, LEVEL, STYLE, STYLE_CODE
from nst.network.integers import IntegerNetwork, Ints
from tests.oracle import Clear, RoundingOracle, installed_network, make_oracle, run_clear
from tests.toy import TOY_SIZE, assert_close_levels, encrypt, run_stage


def compile_oracle(oracle: nn.Module, samples: Ints, p_error: float) -> QuantizedModule:
    """Compile by concrete-ml for inputs of the samples' shape."""
    return compile_brevitas_qat_model(oracle, samples.astype(np.float32), n_bits=4, p_error=p_error)


def oracle_levels(module: QuantizedModule, x: Ints, fhe: str, unit: int = 1) -> Ints:
    """Levels `[C, H, W]` that concrete-ml computes, in 1/unit, from levels `[C, H, W]`."""
    out = module.forward(x[None].astype(np.float32), fhe=fhe)[0] * unit
    np.testing.assert_array_equal(out, np.rint(out))
    return np.rint(out).astype(np.int64)


def interior(levels: Ints, margin: int) -> Ints:
    """Levels that no border has reached."""
    return levels[:, margin : levels.shape[1] - margin, margin : levels.shape[2] - margin]


def check_clear(network: IntegerNetwork, name: str, clear: Clear) -> None:
    """concrete-ml's quantized forward of a stage is NumPy's, value for value."""
    oracle, source = make_oracle(network, name, clear)
    stage, expected = network.stages[name].stage, clear.levels[name]
    if stage.kind.margin:
        # Without padding there is no first row and column; the second ones are centred on `stride`.
        source = source[:, stage.stride - 1 :, stage.stride - 1 :]
        end = -1 if stage.stride == 1 else None
        expected = expected[:, 1:end, 1:end]
    if np.unique(expected).size == 1:
        pytest.skip(f"{name} of the installed weights is constant here: agreement proves nothing")
    module = compile_oracle(oracle, source[None], 0.01)
    levels = oracle_levels(module, source, "disable")
    if stage.activation == "leaky":
        # Brevitas knows no leak between integers: the oracle gives the signed levels before it.
        levels = np.where(levels < 0, np.floor(levels / LEAK + 0.5), levels).astype(np.int64)
    np.testing.assert_array_equal(levels, expected)


@pytest.fixture(scope="module")
def toy_clear(network: IntegerNetwork) -> Clear:
    return run_clear(network, TOY_SIZE)


@pytest.fixture(scope="module")
def real_network() -> IntegerNetwork:
    return installed_network()


@pytest.fixture(scope="module")
def real_clear(real_network: IntegerNetwork) -> Clear:
    return run_clear(real_network, 64)


@pytest.mark.parametrize("name", [s.name for s in installed_network().architecture.stages()])
def test_every_stage_agrees_in_the_clear(
    name: str, real_network: IntegerNetwork, real_clear: Clear
) -> None:
    check_clear(real_network, name, real_clear)


def test_encrypted_oracle_agrees(
    network: IntegerNetwork, toy_clear: Clear, cipher: CircuitCipher, evaluator: Evaluator
) -> None:
    levels, code = toy_clear.levels, toy_clear.code
    stem = network.stages["stem"]

    # concrete-ml on a 2 x 2 patch, really encrypted. Its rounding is exact.
    patch = levels[CONTENT][:, 2:6, 1:5]
    module = compile_oracle(
        RoundingOracle(stem, code).eval(), np.stack([patch, patch[:, ::-1], -patch - 1]), 0.001
    )
    np.testing.assert_array_equal(
        oracle_levels(module, levels[CONTENT], "disable", LEVEL), interior(levels["stem"], 1)
    )
    module.fhe_circuit.keygen()
    by_oracle = oracle_levels(module, patch, "execute", LEVEL)
    assert_close_levels(by_oracle, levels["stem"][:, 3:5, 2:4])

    # The staged circuits on the same picture, style and all.
    rows = {each.role: list(encrypt(cipher, each).parts) for each in toy_clear.inputs}
    for name, layer in network.stages.items():
        if layer.stage.branch == STYLE:
            sources = [rows[s] for s in layer.stage.sources]
            rows[name] = run_stage(evaluator, layer.stage, sources)
    (style,), content = rows[STYLE_CODE], rows[CONTENT]
    staged = cipher.decrypt_rows(
        "stem", tuple(run_stage(evaluator, stem.stage, [content], style, only=[3, 4]))
    )
    # The circuits may have made a style code that is a level off: the oracle is told which.
    met = cipher.decrypt_rows(STYLE_CODE, (style,))[:, 0, 0]
    assert_close_levels(met, code)
    oracle = compile_oracle(RoundingOracle(stem, met).eval(), patch[None], 0.001)
    expected = oracle_levels(oracle, levels[CONTENT], "disable", LEVEL)
    assert_close_levels(staged[:, :, 1:-1], expected[:, 2:4])
