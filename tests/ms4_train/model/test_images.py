"""Patches, grids, positions and cells, against torch's own unfold and by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ms4_train.model.images import ImageBatch

SIZES = ((8, 12), (4, 4), (12, 4))


def pixels():
    return [torch.randn(3, *size) for size in SIZES]


def test_patches_equal_torchs_unfold():
    images = pixels()
    batch = ImageBatch.from_pixels(images, patch_size=2)
    assert batch.grids == ((4, 6), (2, 2), (6, 2))
    assert batch.lengths == (24, 4, 12)
    expected = [F.unfold(image[None], kernel_size=2, stride=2)[0].t() for image in images]  # channel, row, column; patches row by row
    assert torch.equal(batch.patches_pi, torch.cat(expected))


def test_positions_count_in_each_image():
    batch = ImageBatch(torch.zeros(8, 1), ((2, 3), (1, 2)))
    assert batch.position_p2.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [0, 0], [0, 1]]
    assert ImageBatch(torch.zeros(1, 1), ((1, 1),)).position_p2.tolist() == [[0, 0]]


def test_cells_are_squares_in_the_order_of_tokens():
    batch = ImageBatch(torch.zeros(12, 1), ((2, 4), (2, 2)))
    assert batch.cells_nm(2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 10, 11]]
    assert batch.num_tokens(2) == (2, 1)
    assert torch.equal(batch.cells_nm(1), torch.arange(12)[:, None])


def test_every_patch_is_in_one_cell():
    batch = ImageBatch.from_pixels(pixels(), patch_size=2)
    assert sorted(batch.cells_nm(2).flatten().tolist()) == list(range(40))
    position_nm2 = batch.position_p2[batch.cells_nm(2)]
    assert bool((position_nm2 // 2 == position_nm2[:, :1] // 2).all())  # patches of a cell are neighbours


def test_joined_images_are_the_images_of_all():
    images = pixels()
    parts = [ImageBatch.from_pixels(images[:1], 2), ImageBatch.from_pixels(images[1:], 2)]
    joined, whole = ImageBatch.join(parts), ImageBatch.from_pixels(images, 2)
    assert joined is not None
    assert torch.equal(joined.patches_pi, whole.patches_pi)
    assert joined.grids == whole.grids
    assert ImageBatch.join([]) is None


def test_moves_to_a_device():
    moved = ImageBatch(torch.zeros(4, 1), ((2, 2),)).to(torch.device("meta"))
    assert (moved.patches_pi.device.type, moved.grids) == ("meta", ((2, 2),))


@pytest.mark.parametrize(("patches", "grids"), [(4, ()), (4, ((2, 3),)), (0, ((0, 2),)), (4, ((-2, -2),))])
def test_grids_that_do_not_fit_are_refused(patches, grids):
    with pytest.raises(ValueError, match="do not fit grids"):
        ImageBatch(torch.zeros(patches, 1), grids)


def test_uneven_images_are_refused():
    with pytest.raises(ValueError, match="5 x 4 pixels is not made of patches of 2"):
        ImageBatch.from_pixels([torch.zeros(3, 5, 4)], 2)
    odd = ImageBatch(torch.zeros(6, 1), ((2, 3),))
    for use in (odd.num_tokens, odd.cells_nm):
        with pytest.raises(ValueError, match="cells of 2 x 2"):
            use(2)
