"""The network on a CUDA device against the same network on the CPU. ``make test-gpu`` runs it; elsewhere it is left out, saying so."""

import copy

import pytest
import torch
from support.models import tiny_config, tiny_model

from ms4_train.model import DenseLatentCache, SequenceLayout

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
TOLERANCE = 1e-4  # fp32 sums in another order through a few layers; TF32 is off by default


def _loss_and_gradients(model, ids_t, layout):
    hidden_td = model(ids_t, layout)
    loss = torch.nn.functional.cross_entropy(model.logits(hidden_td)[:-1], ids_t[1:])
    loss.backward()
    return loss.detach().cpu(), {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}


def test_loss_and_gradients_equal_the_cpu():
    model = tiny_model()
    ids_t = torch.randint(0, model.config.vocab_size, (70,), generator=torch.Generator().manual_seed(1))
    layout = SequenceLayout.from_lengths([40, 30])
    loss, gradients = _loss_and_gradients(copy.deepcopy(model), ids_t, layout)
    device_loss, device_gradients = _loss_and_gradients(model.to("cuda"), ids_t.to("cuda"), layout)
    torch.testing.assert_close(device_loss, loss, rtol=TOLERANCE, atol=TOLERANCE)
    for name, gradient in gradients.items():
        bound = TOLERANCE * gradient.abs().max().clamp_min(1e-6)
        assert (device_gradients[name] - gradient).abs().max() <= 10 * bound, name


def test_absorbed_decode_equals_the_expanded_form():
    config = tiny_config()
    model = tiny_model(config).to("cuda").eval()
    ids_t = torch.randint(0, config.vocab_size, (24,), generator=torch.Generator().manual_seed(2)).to("cuda")
    cache = DenseLatentCache(config, slots=1, max_len=24, device="cuda")
    with torch.no_grad():
        expected_td = model(ids_t, SequenceLayout.from_lengths([24]))
        parts = [model(ids_t[:16], SequenceLayout(lengths=(16,), starts=(0,), slots=(0,)), cache)]
        parts += [model(ids_t[i : i + 1], SequenceLayout(lengths=(1,), starts=(i,), slots=(0,)), cache) for i in range(16, 24)]
    torch.testing.assert_close(torch.cat(parts), expected_td, rtol=TOLERANCE, atol=TOLERANCE)
