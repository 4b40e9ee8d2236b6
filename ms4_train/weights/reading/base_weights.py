"""How the weights of a quantised base are held, in one line that a program prints when it starts.

Exercise it: ``pytest tests/ms4_train/weights/reading/test_base_weights.py``.
"""

from __future__ import annotations

from torch import nn

from ms4_train.model.quantised import is_quantised, num_parameters, quantised_bytes
from ms4_train.weights.layouts.tables import Layout
from ms4_train.weights.reading.shares import held_bytes

_WORDS = {"fp8": "FP8", "nvfp4": "NVFP4"}


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights as this process holds them: parameters, or its shares of them, and codes and scales of quantised ones."""
    return quantised_bytes(model) + sum(held_bytes(parameter) for parameter in model.parameters())


def base_weights_line(layout: Layout, model: nn.Module) -> str | None:
    """Say how ``model``, just read from a checkpoint in ``layout``, holds its weights; None where the checkpoint is not quantised.

    Args:
        layout: of the files.
        model: before an adapter is attached; with expert parallelism the bytes are those of this process.
    """
    if layout.encoding == "plain":
        return None
    dtype = next(model.parameters()).dtype  # the embedding, which no layout quantises
    name = str(dtype).removeprefix("torch.")
    if not is_quantised(model):
        return f"base weights: {_WORDS[layout.encoding]}, dequantised to {name}: {readable_bytes(weight_bytes(model))}"
    wide = readable_bytes(num_parameters(model) * dtype.itemsize)
    return f"base weights: {_WORDS[layout.encoding]}, kept quantised: {readable_bytes(weight_bytes(model))} ({wide} in {name})"


def readable_bytes(count: int) -> str:
    """A number of bytes in decimal units with three digits: ``512 B``, ``1.23 MB``, ``118 GB``."""
    if count < 1000:
        return f"{count} B"
    value, units = float(count), iter("kMGTPE")
    unit = ""
    while value >= 999.5:
        value, unit = value / 1000, next(units)
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}B"
