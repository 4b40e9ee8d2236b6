"""The experts operation inside Hugging Face models: ``register()``, then ``experts_implementation="ms4"`` where experts are SwiGLU.

    import ms4_kernels
    ms4_kernels.register()
    model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="ms4")

The model keeps its router, parameter names and checkpoints; only what happens between the router's choice and the experts' weighted sum is
computed by :func:`ms4_kernels.moe.experts`, forward and backward. A module whose experts are anything else is refused by name at its first
forward pass, never computed approximately. Transformers is imported by ``register`` and not before.
Exercise it: ``pytest tests/kernels/ms4_kernels/test_transformers_experts.py``.

Shape suffixes: t tokens, k experts per token, e experts, d hidden, n expert intermediate, i = 2n (gate rows, then up rows).
"""

from __future__ import annotations

import importlib
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ms4_kernels.moe import experts

__all__ = ["IMPLEMENTATION", "experts_forward", "register"]

IMPLEMENTATION = "ms4"


def register() -> None:
    """Make ``experts_implementation="ms4"`` known to transformers. Calling it again changes nothing.

    Raises:
        ImportError: transformers is not installed, or so old that it has no choice of experts implementations (before 5.0).
    """
    try:
        moe: Any = importlib.import_module("transformers.integrations.moe")
        interface = moe.ALL_EXPERTS_FUNCTIONS
    except (ImportError, AttributeError) as error:
        raise ImportError(f"experts_implementation={IMPLEMENTATION!r} needs transformers 5 or newer: {error}") from error
    interface.register(IMPLEMENTATION, experts_forward)


def experts_forward(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What a transformers experts module calls in place of its own forward.

    Args:
        module: of a class decorated with transformers' ``use_experts_implementation``: ``gate_up_proj`` [E, 2n, d] and ``down_proj``
            [E, d, n], or both with their last two axes exchanged (``is_transposed``), which costs a copy of the stacks in each pass.
        hidden_states: [T, d]; computed in the type of the stacks, as transformers' own implementations do under autocast.
        top_k_index: integers [T, K].
        top_k_weights: [T, K], of any floating type.

    Returns:
        [T, d] in the type of ``hidden_states``.

    Raises:
        ValueError: the module's experts are not what the operation computes; says why.
    """
    reason = _unsupported(module)
    if reason is not None:
        raise ValueError(
            f"experts_implementation={IMPLEMENTATION!r} does not compute {type(module).__name__}: {reason}. "
            "Use experts_implementation='grouped_mm' or 'eager' for this model."
        )
    gate_up_eid, down_edn = _stack(module, "gate_up_proj"), _stack(module, "down_proj")
    out_td = experts(hidden_states.to(gate_up_eid.dtype), gate_up_eid, down_edn, top_k_index.long(), top_k_weights)
    return out_td.to(hidden_states.dtype)


def _stack(module: nn.Module, name: str) -> Tensor:
    stack: Any = getattr(module, name)
    # The operation's kernels read rows of contiguous matrices; a transposed view would be right on the CPU only.
    return stack.transpose(1, 2).contiguous() if getattr(module, "is_transposed", False) else stack


def _unsupported(module: nn.Module) -> str | None:
    """Why the operation cannot stand in for this module's forward; None if it can.

    Cheap, so that it is asked at every call: flags change after construction when a model is wrapped or sharded.
    """
    if not getattr(module, "has_gate", False):
        return "its experts have no gate"
    if getattr(module, "has_bias", False):
        return "its experts have biases"
    if getattr(module, "has_post_expert_norm", False):
        return "it normalises each expert's output"
    if not getattr(module, "is_concatenated", True):
        return "its gate and up rows are interleaved"
    if getattr(module, "_is_expert_parallel", False):
        return "it is sharded by transformers' expert parallelism, which marks absent experts by ids out of range"
    if _has_gate_of_its_own(module):
        return "it combines gate and up by a formula of its own (_apply_gate), not silu(gate) * up"
    if not _is_silu(getattr(module, "act_fn", None)):
        return f"its activation is {_name(getattr(module, 'act_fn', None))}, not silu"
    for name in ("gate_up_proj", "down_proj"):
        stack: Any = getattr(module, name, None)
        if not isinstance(stack, Tensor) or not stack.is_floating_point() or stack.element_size() < 2:
            found = stack.dtype if isinstance(stack, Tensor) else type(stack).__name__
            return f"its {name} is {found}, not a stack of weights in 16 bits or more"
    return None


def _has_gate_of_its_own(module: nn.Module) -> bool:
    moe: Any = importlib.import_module("transformers.integrations.moe")
    return getattr(type(module), "_apply_gate", None) is not moe._default_apply_gate


def _is_silu(activation: object) -> bool:
    activations: Any = importlib.import_module("transformers.activations")
    return isinstance(activation, nn.SiLU | activations.SiLUActivation) or activation is F.silu


def _name(activation: object) -> str:
    return getattr(activation, "__name__", type(activation).__name__)
