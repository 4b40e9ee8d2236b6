"""The images of one forward pass, as the vision tower takes them: flat patches without padding, any number and size of images.

Exercise it: ``pytest tests/ms4_train/model/test_images.py``.

Shape suffixes: p patches of all images behind each other, i values of a patch, n image tokens (merged cells), m patches of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageBatch:
    """Preprocessed images.

    Attributes:
        patches_pi: [P, C * s * s] patches, image behind image, row behind row; a patch's values are channel, then row, then column, as the
            kernel of ``patch_conv`` counts them.
        grids: (rows, columns) in patches of each image, each a multiple of the model's ``spatial_merge_size``.
    """

    patches_pi: Tensor
    grids: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        patches = sum(rows * columns for rows, columns in self.grids)
        if not self.grids or min(min(grid) for grid in self.grids) < 1 or self.patches_pi.shape[:1] != (patches,):
            raise ValueError(f"patches {list(self.patches_pi.shape)} do not fit grids {self.grids}")

    @classmethod
    def from_pixels(cls, images: Sequence[Tensor], patch_size: int) -> ImageBatch:
        """Cut images [C, H, W], whose sides are multiples of ``patch_size``, into patches."""
        patches: list[Tensor] = []
        grids: list[tuple[int, int]] = []
        for image in images:
            channels, height, width = image.shape
            if height % patch_size or width % patch_size:
                raise ValueError(f"an image of {height} x {width} pixels is not made of patches of {patch_size}")
            rows, columns = height // patch_size, width // patch_size
            cells = image.reshape(channels, rows, patch_size, columns, patch_size).permute(1, 3, 0, 2, 4)
            patches.append(cells.reshape(rows * columns, -1))
            grids.append((rows, columns))
        return cls(torch.cat(patches), tuple(grids))

    @classmethod
    def join(cls, batches: Sequence[ImageBatch]) -> ImageBatch | None:
        """The images of several batches in their order; None where there are none."""
        if not batches:
            return None
        return cls(torch.cat([batch.patches_pi for batch in batches]), tuple(grid for batch in batches for grid in batch.grids))

    def to(self, device: torch.device) -> ImageBatch:
        """The same images on a device."""
        return ImageBatch(self.patches_pi.to(device), self.grids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Patches of each image."""
        return tuple(rows * columns for rows, columns in self.grids)

    def num_tokens(self, merge: int) -> tuple[int, ...]:
        """Image tokens of each image, where ``merge`` x ``merge`` patches make one.

        Raises:
            ValueError: a grid that cannot be divided so.
        """
        if any(rows % merge or columns % merge for rows, columns in self.grids):
            raise ValueError(f"grids {self.grids} are not made of cells of {merge} x {merge} patches")
        return tuple(length // merge**2 for length in self.lengths)

    @cached_property
    def position_p2(self) -> Tensor:
        """Row and column of each patch in its image, int64 [P, 2], on the CPU."""
        return torch.cat([torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2) for rows, columns in self.grids])

    def cells_nm(self, merge: int) -> Tensor:
        """The patches of each merged cell, row by row, int64 [N, merge * merge], on the CPU; cells in the order of image tokens."""
        self.num_tokens(merge)
        cells: list[Tensor] = []
        first = 0
        for (rows, columns), length in zip(self.grids, self.lengths, strict=True):
            index = torch.arange(first, first + length).view(rows // merge, merge, columns // merge, merge)
            cells.append(index.transpose(1, 2).reshape(-1, merge * merge))
            first += length
        return torch.cat(cells)
