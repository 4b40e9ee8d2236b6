"""Packed rows and what attention over them must give, by torch's own attention in fp64, one document at a time."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ms4_kernels.attention import PackedDocuments

SCALE = 0.21
ROWS = {
    "one token": (1,),
    "single tokens": (1, 1, 1),
    "one document": (150,),
    "a block": (64,),
    "a block and one": (65,),
    "equal": (70, 70, 70),
    "short": (3, 60, 17, 1, 44),
    "many tiny": (5, 1, 2, 7, 3, 1, 1, 8) * 5,
    "mixed": (130, 5, 96, 96, 71, 64, 1, 9, 9, 129),
}
CAUSAL = {"causal": True, "full": False}
WIDTHS = {"equal widths": (16, 16), "wide values": (16, 24), "narrow values": (24, 16)}


def row_inputs(lengths, widths=(16, 16), heads=3, dtype=torch.float64):
    """Queries, keys, values that want gradients, values a slice of something wider as in the network; and a gradient of the output."""
    tokens, (key_width, value_width) = sum(lengths), widths
    query, key = (torch.randn(tokens, heads, key_width, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(2))
    value = torch.randn(tokens, heads, value_width + 5, dtype=torch.float64).to(dtype)[..., 5:].requires_grad_()
    return (query, key, value), torch.randn(tokens, heads, value_width, dtype=torch.float64).to(dtype)


def documents_of(lengths):
    return PackedDocuments(tuple(lengths), torch.device("cpu"))


def output_and_gradients(attend, inputs, grad_out):
    """[out, gradient of queries, of keys, of values]."""
    out = attend(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad_out)]


def torch_attention(lengths, causal=True):
    """A function of queries, keys and values: torch's plain attention, document by document, in their type."""

    def attend(*inputs):
        with sdpa_kernel(SDPBackend.MATH):
            pieces = zip(*(x.split(lengths) for x in inputs), strict=True)
            outs = [
                scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in piece), is_causal=causal, scale=SCALE) for piece in pieces
            ]
        return torch.cat([out[0].transpose(0, 1) for out in outs])

    return attend


def exact_results(lengths, inputs, grad_out, causal=True):
    """``output_and_gradients`` of torch's attention in fp64."""
    wide = [x.detach().double().requires_grad_() for x in inputs]
    return output_and_gradients(torch_attention(lengths, causal), wide, grad_out.double())
