"""Adapters written here load in transformers + PEFT with equal logits, and PEFT's load here; experts included.

Tolerance 1e-4 of the largest logit, as the acceptance test asks; measured 1e-6 (fp32 sums in another order).
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import (
    ATTENTION,
    SHARED,
    STACKS,
    full_section,
    our_logits,
    randomise,
    relative_error,
    their_logits,
    write_safetensors,
)
from support.models import hf_twin, tiny_model

from ms4_train.adapters import adapter_tensors, attach, load_adapter, save_adapter
from ms4_train.adapters.attach import adapter_parameters
from ms4_train.config.schema import AdapterSection

CLOSE = 1e-4


def saved_adapter(folder, section, seed=11):
    """A tiny model with a random adapter, which is saved into ``folder``."""
    model = tiny_model()
    attach(model, section)
    randomise(adapter_tensors(model), seed)
    save_adapter(adapter_tensors(model), folder, section=section, config=model.config, base_path="base", base_fingerprint="sha256:0")
    return model


def loaded_by_peft(folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(hf_twin(tiny_model()), folder)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"target_parameters": STACKS[:1]},
        {"target_parameters": STACKS[1:], "target_modules": ["o_proj"]},
        {"target_parameters": STACKS, "target_modules": []},
        {"target_parameters": [], "target_modules": ATTENTION},
        {"target_parameters": ["layers.1.mlp.experts.gate_up_proj"], "target_modules": ["layers.0.self_attn.kv_b_proj"]},
    ],
)
def test_adapter_written_here_has_equal_logits_in_peft(tmp_path, changes):
    model = saved_adapter(tmp_path / "a", full_section(**changes))
    theirs = their_logits(loaded_by_peft(tmp_path / "a"))
    assert relative_error(our_logits(model), theirs) < CLOSE
    assert relative_error(our_logits(tiny_model()), theirs) > 100 * CLOSE  # the adapter does something


def test_permuting_the_ranks_of_b_changes_the_logits(tmp_path):
    """Negative control: the tolerance would notice a B stored expert-slowest."""
    model = saved_adapter(tmp_path / "a", full_section(target_modules=[]))
    file = tmp_path / "a" / "adapter_model.safetensors"
    experts, rank = 8, 3
    tensors = {
        name: value.reshape(len(value), rank, experts).transpose(1, 2).reshape(value.shape) if ".lora_B." in name else value
        for name, value in load_file(file).items()
    }
    write_safetensors(file, tensors)
    assert relative_error(our_logits(model), their_logits(loaded_by_peft(tmp_path / "a"))) > 100 * CLOSE


@pytest.mark.parametrize(
    ("modules", "parameters"),
    [
        (ATTENTION + SHARED, STACKS),
        (r".*self_attn\.(q_a|o)_proj", STACKS[:1]),  # a regular expression, which is not evaluated here
        (["shared_experts.down_proj"], ["down_proj"]),
        ([], ["experts.down_proj", "experts.gate_up_proj"]),
    ],
)
def test_adapter_made_by_peft_has_equal_logits_here(tmp_path, modules, parameters):
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=modules,
        target_parameters=parameters,
        use_rslora=True,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(hf_twin(tiny_model()), settings)
    randomise({name: value for name, value in peft_model.named_parameters() if "lora_" in name})
    peft_model.save_pretrained(tmp_path / "a")
    model = tiny_model()
    section = load_adapter(model, tmp_path / "a", base_fingerprint="sha256:1")
    assert section.use_rslora
    assert relative_error(our_logits(model), their_logits(peft_model)) < CLOSE
    save_adapter(
        adapter_tensors(model), tmp_path / "b", section=section, config=model.config, base_path="base", base_fingerprint="sha256:1"
    )
    first, second = load_file(tmp_path / "a" / "adapter_model.safetensors"), load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_file_of_the_multimodal_model_loads(tmp_path):
    model = saved_adapter(tmp_path / "a", full_section())
    file = tmp_path / "a" / "adapter_model.safetensors"
    (tmp_path / "a" / "ms4_adapter.json").unlink()  # it records the sum of the file that is changed here
    prefix = "base_model.model.model."
    write_safetensors(file, {name.replace(prefix, prefix + "language_model."): value for name, value in load_file(file).items()})
    again = tiny_model()
    load_adapter(again, tmp_path / "a", base_fingerprint=None)
    assert torch.equal(our_logits(again), our_logits(model))


def test_configuration_has_the_keys_peft_writes(tmp_path):
    from peft import LoraConfig

    saved_adapter(tmp_path / "a", AdapterSection(r=3, lora_alpha=6, target_modules=["o_proj"], target_parameters=STACKS))
    ours = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    LoraConfig(r=3, target_modules=["o_proj"]).save_pretrained(str(tmp_path / "peft"))
    assert ours.keys() == json.loads((tmp_path / "peft" / "adapter_config.json").read_text()).keys()
    read = LoraConfig.from_pretrained(str(tmp_path / "a"))
    assert (read.r, read.lora_alpha, sorted(read.target_parameters)) == (3, 6, sorted(STACKS))
    assert ours["base_model_name_or_path"] == "base"


def test_loaded_adapter_can_be_trained_on(tmp_path):
    saved_adapter(tmp_path / "a", full_section())
    model = tiny_model()
    load_adapter(model, tmp_path / "a", trainable=True, base_fingerprint="sha256:0")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(adapter_parameters(model))
