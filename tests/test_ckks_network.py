"""The leveled network: from PyTorch to a file, to integers, and the same numbers from each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nst.engines.ckks import CkksEngine
from nst.engines.ckks.integers import STYLE_CELLS, IntegerLayers, integer_layers, weight_steps
from nst.engines.ckks.network import (
    LEAST_CURVATURE,
    LeveledArchitecture,
    LeveledNetwork,
    from_torch,
    load_network,
)
from nst.engines.ckks.packing import content_cells, style_cells
from nst.engines.ckks.parameters import Parameters
from nst.engines.ckks.preparation import EncryptionNoise
from nst.engines.concrete import ConcreteEngine
from nst.errors import CircuitError
from nst.network.architecture import CELL
from nst.network.levels import QualityLevel
from nst.pictures.size import Size
from nst.training.leveled import BOUND, LeveledStyleTransfer
from nst.training.trainable import Conditions
from tests.leveled_toy import QUICK, TINY, decibels, random_leveled, toy_picture
from tests.toy import toy_level, toy_network, toy_weights

SMALL = LeveledArchitecture(channels=6, stages=3, up=2, style=(5, 7), code=4)
FINE = Parameters(
    degree=2**15,
    first_bits=50,
    level_bits=(48, 50, 30, 40, 50, 50, 50),
    special_bits=50,
    pixel_bits=20,
    value_bits=20,
    result_bits=20,
    style_pixel_bits=16,
    style_bits=20,
    code_bits=20,
)
"""Of primes so long that rounding weights changes nothing."""


@pytest.fixture(scope="module")
def trainable() -> LeveledStyleTransfer:
    torch.manual_seed(0)
    network = LeveledStyleTransfer(SMALL).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("curvature"):
            sign = torch.randn_like(parameter).sign()
            parameter.data = sign * (0.1 + 0.2 * torch.rand_like(parameter))
    return network


@pytest.fixture(scope="module")
def network(trainable: LeveledStyleTransfer) -> LeveledNetwork:
    state = {name: value.numpy() for name, value in trainable.state_dict().items()}
    return from_torch(SMALL, state, octaves=0.8, lattice=0.3)


def test_integers_compute_what_was_trained(
    trainable: LeveledStyleTransfer, network: LeveledNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nst.engines.ckks.integers.WEIGHT_MAX", 2**40)
    # All rows of cells alike: a style that wraps around meets the same in the next row.
    side = STYLE_CELLS * CELL
    row = np.random.default_rng(0).normal(size=(3, CELL, side)).astype(np.float32)
    style = np.tile(row, (1, STYLE_CELLS, 1))
    content = toy_picture(Size(48, 40), 1).white
    integers = integer_layers(network, FINE, STYLE_CELLS)
    own_code = integers.style_code(style_cells(style))
    features = integers.features(content_cells(content, SMALL.reach), own_code)
    with torch.no_grad():
        around = (CELL * SMALL.reach,) * 4
        padded = F.pad(torch.from_numpy(content)[None], around, mode="reflect")
        code = trainable.style_code(torch.from_numpy(style)[None], Conditions())
        expected = trainable.features(F.pixel_unshuffle(padded, CELL), code, Conditions())
        assert features.shape == expected[0].shape == (8, 10, 12)
        assert decibels(expected[0].numpy(), features) > 50
        result = trainable.finish(torch.from_numpy(content)[None], expected)[0].numpy()
    np.testing.assert_allclose(network.finish(content, expected[0].numpy()), result, atol=2e-5)


def test_training_rounds_weights_as_the_engine_does() -> None:
    """Of short primes: what is left of a float network is far from what was trained."""
    network = random_leveled()
    integers = integer_layers(network, QUICK, STYLE_CELLS)
    curvatures = {name: square.curvature for name, square in network._squares()}
    del curvatures["pool"]
    steps = weight_steps(curvatures, QUICK, STYLE_CELLS)
    arrays = network.arrays()
    for layer in (*integers.style, *integers.content):
        whole = np.rint(arrays[f"{layer.name}.weight"] / steps[f"{layer.name}.weight"])
        np.testing.assert_array_equal(np.abs(whole), np.abs(layer.weight))
        if layer.modulation is not None:
            whole = np.rint(arrays[f"{layer.name}.modulation"] / steps[f"{layer.name}.modulation"])
            np.testing.assert_array_equal(np.abs(whole), np.abs(layer.modulation))

    side = STYLE_CELLS * CELL
    row = np.random.default_rng(0).normal(size=(3, CELL, side)).astype(np.float32)
    style = np.tile(row, (1, STYLE_CELLS, 1))
    white = np.pad(toy_picture(Size(48, 40), 1).white, ((0, 0), (8, 8), (8, 8)), "reflect")
    cells = F.pixel_unshuffle(torch.from_numpy(white)[None], CELL)
    expected = integers.features(cells[0].double().numpy(), integers.style_code(style_cells(style)))
    trained = LeveledStyleTransfer.of(network, QUICK).eval()
    found = {}
    for on in (False, True):
        trained.quantize(on)
        assert trained.quantized == on
        with torch.no_grad():
            code = trained.style_code(torch.from_numpy(style)[None], Conditions())
            found[on] = trained.features(cells, code, Conditions())[0].numpy()
    assert decibels(expected, found[False]) < 40
    assert decibels(expected, found[True]) > decibels(expected, found[False]) + 15


def test_gradients_go_straight_through_rounding() -> None:
    trained = LeveledStyleTransfer.of(random_leveled(), QUICK)
    picture = torch.from_numpy(toy_picture(Size.square(64), 1).white)[None]
    for on in (False, True):
        trained.quantize(on)
        trained.zero_grad()
        code = trained.style_code(picture, Conditions())
        trained(picture, code, Conditions()).pow(3).mean().backward()
        for name, parameter in trained.named_parameters():
            assert not parameter.requires_grad or parameter.grad.abs().max() > 0, name
    assert trained.state_dict().keys() == LeveledStyleTransfer(TINY).state_dict().keys()


def test_values_beyond_their_bound_are_noted() -> None:
    trained = LeveledStyleTransfer.of(random_leveled(), QUICK)
    picture = torch.from_numpy(toy_picture(Size.square(64), 1).white)[None]
    with torch.no_grad():
        calm, wild = Conditions(), Conditions()
        trained.style_code(picture / 10, calm)
        trained.style_code(picture * 10, wild)
    assert calm.overflow == 0 and 0 < calm.largest < BOUND
    assert wild.overflow > 0 and wild.largest > BOUND


def test_a_left_edge_meets_the_row_above() -> None:
    """As in a lane that is filled with copies of a style, one after the other."""
    integers = integer_layers(random_leveled(), QUICK, STYLE_CELLS)
    cells = style_cells(toy_picture(Size.square(64), 2).white)
    flat = cells.reshape(48, -1)
    for turn in (1, STYLE_CELLS, 37):
        moved = np.roll(flat, turn, axis=1).reshape(cells.shape)
        np.testing.assert_allclose(integers.style_code(moved), integers.style_code(cells))
    mirrored = integers.style_code(cells[:, :, ::-1])
    assert not np.allclose(mirrored, integers.style_code(cells), rtol=1e-3)


def test_weights_are_whole_and_fit_exact_products() -> None:
    integers = integer_layers(random_leveled(LeveledArchitecture()), Parameters(), 32)
    assert [layer.limbs for layer in integers.layers] == [11, 10, 9, 7, 6, 5, 4, 3, 2]
    for layer in integers.layers:
        rows = layer.rows() / layer.common
        assert np.array_equal(rows, np.rint(rows))
        assert np.array_equal(layer.bias, np.rint(layer.bias))
        assert np.abs(rows).max() < 2**12
        assert layer.prime == Parameters().primes[layer.limbs - (2 if layer.name == "pool" else 1)]


def test_small_curvatures_are_raised_with_their_sign(trainable: LeveledStyleTransfer) -> None:
    state = {name: value.numpy().copy() for name, value in trainable.state_dict().items()}
    state["squares.1.curvature"][:3] = 0.001, -0.001, -0.3
    network = from_torch(SMALL, state)
    expected = LEAST_CURVATURE, -LEAST_CURVATURE, -0.3
    np.testing.assert_allclose(network.content[1].curvature[:3], expected, rtol=1e-6)


def test_a_file_holds_all_of_it(network: LeveledNetwork, tmp_path: Path) -> None:
    path = tmp_path / "leveled.safetensors"
    network.save(path, {})
    loaded = load_network(path)
    assert (loaded.architecture, loaded.octaves, loaded.lattice) == (SMALL, 0.8, 0.3)
    for name, array in network.arrays().items():
        assert np.array_equal(loaded.arrays()[name], array)
    arrays = integer_layers(network, FINE, 32).to_arrays()
    again = integer_layers(loaded, FINE, 32).to_arrays()
    assert arrays.keys() == again.keys()
    read = IntegerLayers.from_arrays(arrays).to_arrays()
    for name in arrays:
        assert np.array_equal(arrays[name], again[name])
        assert np.array_equal(arrays[name], read[name])


def test_files_of_others_are_refused(network: LeveledNetwork, tmp_path: Path) -> None:
    other = toy_weights(tmp_path / "toy.safetensors")
    with pytest.raises(CircuitError, match="are of engine concrete, not ckks; name that engine"):
        load_network(other)
    ours = tmp_path / "leveled.safetensors"
    network.save(ours, {})
    with pytest.raises(CircuitError, match="are of engine ckks, not concrete"):
        ConcreteEngine().load_network(ours)
    ours.with_suffix(".json").unlink()
    ours.write_bytes(ours.read_bytes()[:-100])
    with pytest.raises(CircuitError, match="cannot be read"):
        load_network(ours)
    replace(network, head_bias=np.zeros(5, np.float32)).save(ours, {})
    with pytest.raises(CircuitError, match=r"do not fit the network \(head.bias has shape"):
        load_network(ours)


def test_an_engine_refuses_the_network_of_another(network: LeveledNetwork) -> None:
    size = Size.square(32)
    with pytest.raises(CircuitError, match="give weights of engine ckks"):
        CkksEngine().model_id(toy_network(), toy_level(), size)
    with pytest.raises(CircuitError, match="give weights of engine concrete"):
        ConcreteEngine().model_id(network, toy_level(), size)


def test_a_network_of_other_levels_is_refused(network: LeveledNetwork) -> None:
    with pytest.raises(CircuitError, match=r"the network has 7 levels .* primes for 5"):
        integer_layers(network, QUICK, 16)
    with pytest.raises(CircuitError, match="integer weights are all zero; take longer primes"):
        integer_layers(random_leveled(), replace(QUICK, pixel_bits=60), 16)


def test_the_model_id_is_that_of_what_is_computed(tmp_path: Path) -> None:
    engine, size = CkksEngine(QUICK), Size.square(64)
    level = QualityLevel("toy", 64, tmp_path)
    ids = {
        engine.model_id(random_leveled(), level, size),
        engine.model_id(random_leveled(seed=1), level, size),
        CkksEngine(replace(QUICK, value_bits=20)).model_id(random_leveled(), level, size),
        engine.model_id(random_leveled(), replace(level, side=32), size),
        engine.model_id(random_leveled(), level, Size.square(128)),
    }
    assert len(ids) == 5
    assert engine.model_id(random_leveled(), level, Size(56, 64)) in ids
    # The last layer is the client's: what the server computes is the same.
    other = replace(random_leveled(), octaves=0.1, skip=np.ones((3, 3), np.float32))
    assert engine.model_id(other, level, size) in ids


def test_noise_is_added_where_levels_round() -> None:
    integers = integer_layers(random_leveled(TINY), QUICK, 16)
    cells = content_cells(toy_picture(Size.square(64)).white, 2)
    style = style_cells(toy_picture(Size.square(64), 3).white)
    noise = EncryptionNoise(QUICK, np.random.default_rng(0))
    clean = integers.features(cells, integers.style_code(style))
    noisy = integers.read(integers.values(cells, integers.style_code(style, noise), noise))
    assert 40 < decibels(clean, noisy) < 70
