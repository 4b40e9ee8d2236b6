"""Validation loss: the mean negative log likelihood of the trained tokens of held-out rows.

Exercise it: ``pytest tests/ms4_train/training/test_evaluate.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ms4_train.data import PackedBatch
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.parallel import Mesh, progress
from ms4_train.training.forward import hidden_states
from ms4_train.training.loss import next_token_loss


@torch.no_grad()
def validation_loss(
    model: Mistral4ForCausalLM,
    batches: Sequence[PackedBatch],
    mesh: Mesh,
    *,
    chunk_tokens: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """``eval_loss`` (nats per trained token) and ``eval_tokens`` over the batches of all ranks. Collective.

    Every rank passes its own batches, the same number of them, because expert parallelism needs every rank in every forward pass.
    ``should_stop`` is asked before each batch, and answers alike on all ranks; the result is empty once it says yes.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        progress.at("validation")
        if should_stop():
            model.train(was_training)
            return {}
        hidden_td = hidden_states(model, batch, mesh.device)
        nll = next_token_loss(model.lm_head, hidden_td, batch.target_ids_t.to(mesh.device), chunk_tokens=chunk_tokens)
        total += torch.tensor([float(nll), batch.num_trained], dtype=torch.float64)
    model.train(was_training)
    nll_sum, tokens = mesh.all_reduce_sum(total).tolist()
    return {"eval_loss": nll_sum / max(tokens, 1.0), "eval_tokens": int(tokens)}
