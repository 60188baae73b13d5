"""Layouts: every cell is somewhere, and rotations bring its neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from nst.engines.ckks.packing import Layout, content_cells, style_cells
from nst.errors import InputError
from nst.pictures.size import Size

SLOTS, REACH = 8192, 6


@pytest.mark.parametrize(
    ("size", "side", "pictures", "parts"),
    [
        (Size(64, 64), 64, 16, 1),
        (Size(128, 128), 128, 8, 1),
        (Size(192, 192), 128, 4, 1),
        (Size(256, 256), 256, 2, 1),
        (Size(512, 512), 128, 1, 2),
        (Size(96, 48), 64, 16, 1),
        (Size(2048, 2048), 128, 1, 23),
        (Size(16, 16), 64, 64, 1),
    ],
)
def test_how_many_ciphertexts_a_size_takes(
    size: Size, side: int, pictures: int, parts: int
) -> None:
    layout = Layout.for_size(SLOTS, REACH, size, side)
    assert (layout.pictures(size), layout.parts(size)) == (pictures, parts)
    seen = np.zeros((size.height // 4, size.width // 4), bool)
    for tile in layout.tiles(size):
        assert tile.height + 2 * REACH <= layout.rows
        assert tile.width + 2 * REACH <= layout.columns
        seen[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = True
        assert tile.top + tile.height <= seen.shape[0]
        assert tile.left + tile.width <= seen.shape[1]
    assert seen.all()


def test_sizes_that_take_as_many_share_a_layout() -> None:
    layouts = {
        Layout.for_size(SLOTS, REACH, Size(w, h), 128)
        for w, h in ((256, 256), (264, 256), (312, 200), (312, 312))
    }
    assert len(layouts) == 1


@pytest.mark.parametrize(
    ("slots", "side", "message"),
    [
        (8192, 192, "the side must be a power of two, at most 256"),
        (8192, 512, "the side must be a power of two, at most 256"),
        (128, 16, "leave nothing of a ciphertext"),
    ],
)
def test_what_does_not_fit_is_refused(slots: int, side: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Layout.for_size(slots, REACH, Size(64, 64), side)


def rotated(layout: Layout, slots: np.ndarray, step: int) -> np.ndarray:
    """A rotation that keeps the imaginary unit, on plain slots; see `LeveledPlan.element`."""
    turned = np.roll(slots, -step, axis=-1)
    return turned.conj() if step % 2 else turned


def test_a_lane_comes_back_and_rotations_bring_its_neighbours() -> None:
    rng = np.random.default_rng(0)
    size = Size(80, 64)
    layout = Layout(512, 2, 1, 20, 8)
    tiles = layout.tiles(size)
    white = rng.normal(size=(3, size.height, size.width)).astype(np.float32)
    cells = content_cells(white, layout.reach)
    assert cells.shape == (48, 20, 24)
    inside = cells[:, 2:-2, 2:-2]
    for first in range(0, len(tiles), layout.lanes):
        some = tiles[first : first + layout.lanes]
        slots = layout.interleave([layout.pack_tile(cells, tile) for tile in some])
        for lane, tile in enumerate(some):
            at = np.s_[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
            assert np.array_equal(layout.interior(slots, lane, tile), inside[:, *at])
            for dy, dx in ((0, 1), (1, 0), (-1, 0), (2, -2)):
                turned = slots
                for step, count in ((layout.column_step, dx), (layout.row_step, dy)):
                    for _ in range(abs(count)):
                        turned = rotated(layout, turned, step if count > 0 else -step)
                moved = cells[:, 2 + dy :, 2 + dx :][:, : inside.shape[1], : inside.shape[2]]
                assert np.array_equal(layout.interior(turned, lane, tile), moved[:, *at])


def test_a_style_is_everywhere_and_its_sum_too() -> None:
    rng = np.random.default_rng(1)
    layout = Layout(1024, 2, 2, 22, 8)
    styles = [style_cells(rng.normal(size=(3, 32, 32)).astype(np.float32)) for _ in range(4)]
    total = layout.interleave([layout.pack_style(style) for style in styles])
    for step in layout.pooling_steps:
        total = total + rotated(layout, total, step)
    straight = np.where(np.arange(layout.slots) % 2, total.conj(), total)
    for lane, style in enumerate(styles):
        values = straight.reshape(48, -1, layout.stride)[:, :, lane // 2]
        part = values.imag if lane % 2 else values.real
        np.testing.assert_allclose(part, np.broadcast_to(style.sum((1, 2))[:, None], part.shape))
