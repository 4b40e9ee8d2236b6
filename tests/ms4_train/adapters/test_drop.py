"""One adapter taken off a model: the others act as before, and without any the modules are the ones that were there."""

import pytest
import torch
from support.adapted import logits_of, section, shake
from support.adapter_rows import DORA, ENDS, SAVED, SMALL, WIDE, with_adapter
from support.checkpoints import relative_error
from support.models import tiny_model

from ms4_train.adapters import adapter_tensors, attach, merge, set_active_adapters
from ms4_train.adapters.attach import adapter_names
from ms4_train.adapters.drop import drop_adapter
from ms4_train.errors import AdapterError


@pytest.mark.parametrize("name", ["default", "other"])
@pytest.mark.parametrize("values", [WIDE, ENDS, SMALL, DORA, SAVED], ids=["wide", "ends", "small", "dora", "saved"])
def test_last_one_leaves_the_modules_that_were_there(values, name):
    model = tiny_model()
    modules, bits = dict(model.named_modules()), {key: value.clone() for key, value in model.state_dict().items()}
    attach(model, section(**values), name=name)
    shake(adapter_tensors(model, name))
    assert not torch.equal(logits_of(model), logits_of(tiny_model()))
    drop_adapter(model, name)
    after = dict(model.named_modules())
    assert after.keys() == modules.keys()
    assert all(after[key] is module for key, module in modules.items())
    assert model.state_dict().keys() == bits.keys()
    assert all(torch.equal(value, bits[key]) for key, value in model.state_dict().items())
    assert all(layer.mlp.experts.lora is None for layer in model.model.layers)
    assert torch.equal(logits_of(model), logits_of(tiny_model()))


@pytest.mark.parametrize("dropped", ["default", "second"])
def test_others_act_as_before(dropped):
    model = with_adapter(WIDE, 1)
    attach(model, section(**SMALL), name="second")
    shake(adapter_tensors(model, "second"), 2)
    kept = "second" if dropped == "default" else "default"
    set_active_adapters(model, [kept])
    before = logits_of(model)
    set_active_adapters(model, ["default", "second"])
    assert relative_error(logits_of(model), before) > 1e-3
    drop_adapter(model, dropped)
    assert adapter_names(model) == [kept]
    assert torch.equal(logits_of(model), before)
    attach(model, section(**WIDE), name=dropped)  # the name is free again
    assert set(adapter_names(model)) == {kept, dropped}


def test_start_is_given_back():
    model = tiny_model()
    attach(model, section(target_modules=["o_proj"], init_lora_weights="pissa"))
    drop_adapter(model, "default")
    # Taken out and added again in fp32: two roundings.
    assert relative_error(logits_of(model), logits_of(tiny_model())) < 1e-5


def test_what_cannot_be_dropped():
    model = with_adapter(SMALL, 1, name="second")
    with pytest.raises(AdapterError, match=r"no adapter 'secnod'.*second"):
        drop_adapter(model, "secnod")
    merge(model, keep=True)
    with pytest.raises(AdapterError, match="merged"):
        drop_adapter(model, "second")
    assert adapter_names(model) == ["second"]
