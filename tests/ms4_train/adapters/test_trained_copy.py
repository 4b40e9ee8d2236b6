"""A module saved whole: the copy runs and is trained, the original waits; attributes are those of the one that runs."""

import torch

from ms4_train.adapters.trained_copy import TrainedCopy
from ms4_train.model.norm import RMSNorm


def test_the_copy_of_the_active_adapter_runs():
    original = RMSNorm(4, 1e-6)
    torch.nn.init.ones_(original.weight)
    module, x = TrainedCopy(original), torch.randn(2, 4)
    module.add("a")
    module.add("b")
    for factor, name in enumerate(("a", "b"), start=2):
        module.modules_to_save[name].weight.data.fill_(factor)
    assert module.adapters == ("a", "b")
    assert module.weight is original.weight
    for active, factor in (((), 1), (("a",), 2), (("b",), 3)):
        module.active = active
        torch.testing.assert_close(module(x), factor * original(x))
        assert float(module.weight[0]) == factor
    assert [name for name, parameter in module.named_parameters() if parameter.requires_grad] == [
        "modules_to_save.a.weight",
        "modules_to_save.b.weight",
    ]


def test_names_are_pefts():
    from peft.utils.other import ModulesToSaveWrapper

    original = torch.nn.Linear(3, 2, bias=False)
    module = TrainedCopy(original)
    module.add("default")
    assert list(dict(module.named_parameters())) == list(dict(ModulesToSaveWrapper(original, "default").named_parameters()))


def test_checkpointing_reaches_the_module_that_runs():
    inner = torch.nn.Linear(2, 2)
    inner.gradient_checkpointing = False
    module = TrainedCopy(inner)
    module.add("default")
    module.active = ("default",)
    module.gradient_checkpointing = True
    assert module.gradient_checkpointing
    assert module.modules_to_save["default"].gradient_checkpointing
