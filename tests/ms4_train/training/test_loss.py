"""The loss through the network's head module, against torch's own cross-entropy. The operation itself is tested beside its kernels."""

import torch
from support.loss_inputs import loss_inputs, plain_loss

from ms4_train.model.network import LanguageHead
from ms4_train.training.loss import next_token_loss


def test_head_module_is_called_once_whatever_the_chunks():
    hidden_td, head_vd, target_t = loss_inputs(torch.float32)
    head = LanguageHead(8, 31, bias=False)
    head.weight.data.copy_(head_vd.detach())
    calls = []
    head.register_forward_pre_hook(lambda module, inputs: calls.append(module))  # where ZeRO 3 gathers the weight
    loss = next_token_loss(head, hidden_td, target_t, chunk_tokens=4)
    assert len(calls) == 1
    assert type(loss.grad_fn).__name__ == "_LinearCrossEntropyBackward"
    torch.testing.assert_close(loss, plain_loss(hidden_td, head_vd, target_t))
    torch.testing.assert_close(head(hidden_td), hidden_td @ head_vd.T)
    loss.backward()
    expected = torch.autograd.grad(plain_loss(hidden_td, head_vd, target_t), (hidden_td, head_vd))
    torch.testing.assert_close(hidden_td.grad, expected[0])
    torch.testing.assert_close(head.weight.grad, expected[1])
