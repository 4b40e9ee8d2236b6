"""The router kernels in the interpreter: error against fp64 beside that of torch in the same type, determinism, bytes, planted bugs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from support.mutations import plant
from support.triton_interpreter import OutOfBoundsError, RaceError, interpreted

from ms4_kernels.routing import route, router_triton
from ms4_kernels.routing.reference import route_reference

MODES = [(True, 1.0), (True, 2.5), (False, 1.0), (False, 2.5)]
SHAPES = [(100, 128, 4), (33, 24, 3), (17, 5, 5), (50, 7, 1), (1, 1, 1)]
"""(tokens, experts, top_k): no block of tokens is full, and experts are a power of two or not."""


def _run(router, logits_te, dweights_tk, *arguments):
    """Weights, ids and the gradient of the logits."""
    logits_te = logits_te.detach().requires_grad_()
    weights_tk, ids_tk = router(logits_te, dweights_tk.shape[1], *arguments)
    return weights_tk.detach(), ids_tk, *torch.autograd.grad(weights_tk, logits_te, dweights_tk)


def _errors_within_twice_torch(logits_te, dweights_tk, renormalize, scale) -> bool:
    """Run the kernels and torch's plain formula in the logits' type, and compare both with the formula in fp64."""
    with interpreted():
        fused = _run(route, logits_te, dweights_tk, renormalize, scale)
    plain = _run(route_reference, logits_te, dweights_tk, renormalize, scale)
    exact = _run(route_reference, logits_te.double(), dweights_tk.double(), renormalize, scale)
    if not torch.equal(fused[1], exact[1]):
        return False
    # Where torch has no error at all the kernel may round once: half a unit of its type in the largest entry.
    floors = (torch.finfo(torch.float32).eps / 2, torch.finfo(logits_te.dtype).eps / 2)
    for mine, theirs, truth, floor in zip(fused[::2], plain[::2], exact[::2], floors, strict=True):
        allowed = 2 * (theirs.double() - truth).norm() + floor * truth.abs().max()
        if not (mine.double() - truth).norm() <= allowed:
            return False
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("renormalize", "scale"), MODES)
@pytest.mark.parametrize(("tokens", "experts", "top_k"), SHAPES)
def test_error_is_at_most_twice_that_of_torch(dtype, renormalize, scale, tokens, experts, top_k):
    logits_te = (3 * torch.randn(tokens, experts)).to(dtype)
    assert _errors_within_twice_torch(logits_te, torch.randn(tokens, top_k), renormalize, scale)


def _small_weights_are_exact(renormalize: bool) -> bool:
    """Whether each weight down to 1e-26 is within 5 units of fp32: one of the exponential, half of a division, the rest of the sum."""
    logits_te = (20 * torch.randn(64, 128)).clamp(0, 60)
    with interpreted():
        weights_tk, _ = route(logits_te, 4, renormalize)
    exact_tk, _ = route_reference(logits_te.double(), 4, renormalize)
    return (weights_tk / exact_tk - 1).abs().max().item() < 5 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("renormalize", [True, False])
def test_small_weights_keep_their_precision(renormalize):
    """A logit 40 below the largest would cost an exponential that rounds ``x * log2(e)`` 40 units."""
    assert _small_weights_are_exact(renormalize)


@pytest.mark.parametrize("renormalize", [True, False])
def test_two_runs_agree_to_the_bit(renormalize):
    logits_te, dweights_tk = torch.randn(70, 128), torch.randn(70, 4)
    with interpreted():
        first, second = (_run(route, logits_te, dweights_tk, renormalize, 2.5) for _ in range(2))
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


def test_a_gradient_with_strides_is_taken_as_it_is():
    logits_te, dweights_tk = torch.randn(20, 8), torch.randn(4, 20).t()
    with interpreted():
        strided, dense = (_run(route, logits_te, grad, True, 1.0) for grad in (dweights_tk, dweights_tk.contiguous()))
    assert torch.equal(strided[2], dense[2])


def test_bytes_are_the_compulsory_ones():
    """Forward reads the logits and writes weights and ids once; backward, after renormalisation, never looks at the logits again."""
    tokens, experts, top_k = 64, 128, 4
    with interpreted() as launches:
        _run(route, torch.randn(tokens, experts), torch.randn(tokens, top_k), True, 1.0)
    forward, backward = launches
    assert forward.traffic.read_bytes == tokens * experts * 4
    assert forward.traffic.written_bytes == tokens * top_k * (4 + 8)
    assert backward.traffic.written_bytes == tokens * experts * 4
    assert backward.traffic.unique_read_bytes == tokens * top_k * (4 + 8 + 4)
    assert "logits" not in backward.arguments


BUGS = {
    "ties to the higher id": ("tl.min(tl.where(left_te == best_t[:, None], expert_e[None, :], BLOCK_E), 1)",
                              "tl.max(tl.where(left_te == best_t[:, None], expert_e[None, :], -1), 1)"),
    "padding counts as experts": ("left_te = tl.where(is_expert_te, left_te, -float(\"inf\"))", "left_te = left_te + 0.0"),
    "tokens past the end are written": ("is_slot_tk = is_token_t[:, None] & (slot_k < TOP_K)[None, :]\n    tl.store(weights",
                                        "is_slot_tk = (slot_k < TOP_K)[None, :] & (token_t >= 0)[:, None]\n    tl.store(weights"),
    "a slot too many is written": ("is_slot_tk = is_token_t[:, None] & (slot_k < TOP_K)[None, :]\n    tl.store(weights",
                                   "is_slot_tk = is_token_t[:, None] & (slot_k <= TOP_K)[None, :]\n    tl.store(weights"),
    "a program overlaps the next": ("NUM_EXPERTS + expert_e[None, :]\n    logits_te",
                                    "NUM_EXPERTS + expert_e[None, :]\n    token_t -= tl.program_id(0)\n    logits_te"),
    "the scale is left out of the sum": ("weights_tk * inverse_scale * (", "weights_tk * ("),
    "the softmax gradient is the chosen ones' only": ("dlogits_te = -probabilities_te", "dlogits_te = 0 * -probabilities_te"),
    "one chosen expert's gradient is lost": ("for k in tl.static_range(TOP_K):\n        id_t = tl.load",
                                             "for k in tl.static_range(TOP_K - 1):\n        id_t = tl.load"),
    "the power of two is not split off": ("exponent = tl.floor(x * _LOG2_E + 0.5)\n",
                                           "return tl.exp2(x * _LOG2_E)\n    exponent = x\n"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug, monkeypatch, tmp_path: Path):
    """Each of them passes the compiler; the numbers or the checks of the interpreter refuse it."""
    tokens, experts, top_k = 150, 24, 3  # three programs
    logits_te = torch.cat([torch.randn(tokens - 5, experts), torch.zeros(5, experts)])  # ties
    wide_te = 20 * torch.randn(tokens, experts) - 50  # padding of 0 would be chosen
    dweights_tk = torch.randn(tokens, top_k)

    def is_accepted() -> bool:
        modes = ((True, 2.5), (False, 2.5))
        return _small_weights_are_exact(True) and all(
            _errors_within_twice_torch(x, dweights_tk, *mode) for x in (logits_te, wide_te) for mode in modes
        )

    assert is_accepted()
    plant(monkeypatch, tmp_path, router_triton, *BUGS[bug])
    with suppress(OutOfBoundsError, RaceError):
        assert not is_accepted()
