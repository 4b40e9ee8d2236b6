"""Which adapter a parameter belongs to, and what it changes, from its name alone."""

import pytest

from ms4_train.adapters.names import adapted_name, adapter_of, as_only_adapter, check_adapter_name
from ms4_train.errors import AdapterError

Q = "model.layers.0.self_attn.q_a_proj"
E = "model.layers.11.mlp.experts"


@pytest.mark.parametrize(
    ("name", "adapter", "owner", "alone"),
    [
        (f"{Q}.lora_A.default.weight", "default", Q, None),
        (f"{Q}.lora_B.b-2.weight", "b-2", Q, f"{Q}.lora_B.default.weight"),
        (f"{Q}.lora_magnitude_vector.x.weight", "x", Q, f"{Q}.lora_magnitude_vector.default.weight"),
        ("model.embed_tokens.lora_embedding_A.x", "x", "model.embed_tokens", "model.embed_tokens.lora_embedding_A.default"),
        ("p.modules_to_save.x.linear_1.weight", "x", "p", "p.modules_to_save.default.linear_1.weight"),
        (f"{E}.lora.gate_up_a_erd", "default", f"{E}.gate_up_proj", None),
        (f"{E}.lora.further.x.down_b_edr", "x", f"{E}.down_proj", f"{E}.lora.down_b_edr"),
        (f"{E}.lora.further.x.gate_up_b_eir", "x", f"{E}.gate_up_proj", f"{E}.lora.gate_up_b_eir"),
    ],
)
def test_adapter_owner_and_plain_name(name, adapter, owner, alone):
    assert adapter_of(name) == adapter
    assert adapted_name(name) == owner
    assert as_only_adapter(name) == (alone or name)


@pytest.mark.parametrize("name", [f"{Q}.weight", f"{Q}.base_layer.weight", f"{E}.gate_up_proj", "p.original_module.weight"])
def test_the_models_own_parameters_belong_to_none(name):
    assert adapter_of(name) is None
    assert as_only_adapter(name) == name


@pytest.mark.parametrize("name", ["", "a.b", "a b", "a/b", "x" * 65, "keys", "forward", "training"])
def test_names_that_cannot_be_part_of_a_parameters_are_refused(name):
    check_adapter_name("second-2_b")
    with pytest.raises(AdapterError):
        check_adapter_name(name)
