"""Every kind of adapter, written here and read by PEFT, and the other way round, on the text model and on the whole one.

The oracle is PEFT 0.21 over transformers 5.23. Tolerance 1e-4 of the largest logit, as the acceptance test asks; measured 5e-6 at most
(fp32 sums in another order).
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.adapted import adapted, logits_of, peft_inputs, section, shake
from support.checkpoints import ATTENTION, SHARED, STACKS, relative_error, rewrite
from support.models import hf_twin, tiny_model
from support.multimodal import hf_multimodal_twin, tiny_multimodal

from ms4_train.adapters import adapter_tensors, load_adapter, save_adapter
from ms4_train.adapters.attach import adapter_parameters
from ms4_train.errors import AdapterError

CLOSE = 1e-4
BOTH_ENDS = {"target_modules": ["embed_tokens", "lm_head"]}
CASES = {
    "attention": {"preset": "attention"},
    "attention+experts": {"preset": "attention+experts"},
    "language": {"preset": "language"},
    "vision": {"preset": "vision"},
    "all": {"preset": "all"},
    "router": {"target_modules": ["o_proj"], "target_parameters": ["mlp.gate.weight"]},
    "router and stacks": {"target_modules": [], "target_parameters": ["mlp.gate.weight", *STACKS]},
    "embedding and head": BOTH_ENDS,
    "dora": {"target_modules": [*ATTENTION, *SHARED, "lm_head"], "use_dora": True},
    "saved whole": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head", "embed_tokens", "model.norm", "mlp.gate"]},
    "saved norms": {"target_modules": ["o_proj"], "modules_to_save": ["q_a_layernorm"]},
    "ranks": {
        "target_modules": ATTENTION,
        "target_parameters": ["mlp.gate.weight", *STACKS],
        "use_rslora": True,
        "rank_pattern": {"q_a_proj": 2, "experts.down_proj": 3, "0.mlp.gate.weight": 5},
        "alpha_pattern": {"layers.1.self_attn.o_proj": 11, "experts.gate_up_proj": 3},
    },
}
VISION_CASES = {
    "projector saved": {"target_modules": ["attention.q_proj"], "modules_to_save": ["multi_modal_projector"]},
    "vision dora": {"target_modules": ["vision_tower.*", "merging_layer"], "use_dora": True},
    "o_proj everywhere": {"target_modules": ["o_proj"]},
    "one tower layer": {"target_modules": ["vision_tower.transformer.layers.1.*"]},
    "all but o_proj": {"target_modules": ["*.o_proj", "linear_1"], "exclude_modules": ["self_attn.o_proj"]},
}
NEEDS_VISION = ("vision", "all", *VISION_CASES)
PAIRS = [(name, False) for name in CASES if name not in NEEDS_VISION] + [(name, True) for name in CASES | VISION_CASES]


def write(model, settings, folder):
    vision = getattr(model, "vision_config", None)
    options = {"config": model.config, "vision": vision, "base_path": "base", "base_fingerprint": "sha256:0"}
    save_adapter(adapter_tensors(model), folder, section=settings, **options)


def plain(is_vision):
    return tiny_multimodal() if is_vision else tiny_model()


def twin(is_vision):
    return hf_multimodal_twin(tiny_multimodal()) if is_vision else hf_twin(tiny_model())


@torch.no_grad()
def peft_logits(oracle, model):
    return oracle.eval()(**peft_inputs(model), use_cache=False).logits[0]


@pytest.mark.parametrize(("case", "is_vision"), PAIRS)
def test_exchange_with_peft_both_ways(tmp_path, case, is_vision):
    from peft import PeftModel

    settings = section(**(CASES | VISION_CASES)[case])
    ours = adapted(settings, vision=is_vision)
    write(ours, settings, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(twin(is_vision), tmp_path / "ours")
    expected = peft_logits(theirs, ours)
    assert relative_error(logits_of(ours), expected) < CLOSE
    assert relative_error(logits_of(plain(is_vision)), expected) > 100 * CLOSE  # the adapter does something

    theirs.save_pretrained(tmp_path / "theirs")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    copies = {name for name in second if name.endswith(".base_layer.weight")}
    assert first.keys() == second.keys() - copies
    assert all(torch.equal(first[name], second[name]) for name in first)

    again = plain(is_vision)
    load_adapter(again, tmp_path / "theirs", base_fingerprint="sha256:1")
    assert relative_error(logits_of(again), expected) < CLOSE
    mine, before = adapter_parameters(again), adapter_parameters(ours)
    assert mine.keys() == before.keys()
    assert all(torch.equal(mine[name], before[name]) for name in before)


@pytest.mark.parametrize("case", ["attention", "language", "vision", "all"])
def test_adapter_trained_by_peft_has_equal_logits_here(tmp_path, case):
    """PEFT makes the adapter of the preset itself, from the lists that the preset stands for."""
    from peft import LoraConfig, get_peft_model

    preset = section(preset=case)
    targets = {"target_modules": preset.target_modules, "target_parameters": preset.target_parameters or None}
    theirs = get_peft_model(twin(True), LoraConfig(r=4, lora_alpha=7, **targets))
    shake({name: value for name, value in theirs.named_parameters() if "lora_" in name})
    theirs.save_pretrained(tmp_path / "a")
    model = tiny_multimodal()
    read = load_adapter(model, tmp_path / "a", base_fingerprint=None)
    assert set(read.target_modules) == set(preset.target_modules)
    assert relative_error(logits_of(model), peft_logits(theirs, model)) < CLOSE


def test_names_are_those_of_transformers_in_memory(tmp_path):
    settings = section(preset="all")
    write(adapted(settings, vision=True), settings, tmp_path / "a")
    names = load_file(tmp_path / "a" / "adapter_model.safetensors").keys()
    for wanted in (
        "model.language_model.layers.0.self_attn.q_a_proj.lora_A",
        "model.vision_tower.transformer.layers.1.feed_forward.up_proj.lora_B",
        "model.multi_modal_projector.patch_merger.merging_layer.lora_A",
        "model.language_model.layers.1.mlp.experts.base_layer.lora_B",
    ):
        assert f"base_model.model.{wanted}.weight" in names
    assert {name.split(".")[3] for name in names} == {"language_model", "vision_tower", "multi_modal_projector"}


@pytest.mark.parametrize("targets", [["o_proj"], ["self_attn.o_proj", "q_a_proj"]])
def test_adapter_of_the_text_model_goes_on_the_whole_one_and_back(tmp_path, targets):
    """``o_proj`` of a text adapter is not the tower's; text tensors of a whole adapter are the text model's."""
    settings = section(target_modules=targets)
    text = adapted(settings)
    write(text, settings, tmp_path / "text")
    whole = tiny_multimodal()
    read = load_adapter(whole, tmp_path / "text", base_fingerprint=None)
    assert not any("vision" in name for name in adapter_parameters(whole))
    write(whole, read, tmp_path / "whole")
    again = tiny_model()
    load_adapter(again, tmp_path / "whole", base_fingerprint=None)
    assert torch.equal(logits_of(again), logits_of(text))


def test_vision_tensors_are_refused_on_a_text_model(tmp_path):
    settings = section(preset="all")
    write(adapted(settings, vision=True), settings, tmp_path / "a")
    with pytest.raises(AdapterError, match="vision part"):
        load_adapter(tiny_model(), tmp_path / "a", base_fingerprint=None)


def test_copy_of_another_base_is_refused(tmp_path):
    """PEFT adds the embedding's own weight to the file; it must be this model's."""
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(twin(False), LoraConfig(r=2, **BOTH_ENDS))
    theirs.save_pretrained(tmp_path / "a")
    load_adapter(tiny_model(), tmp_path / "a", base_fingerprint=None)
    with pytest.raises(AdapterError, match="not the weight of this model"):
        load_adapter(tiny_model(seed=1), tmp_path / "a", base_fingerprint=None)


@pytest.mark.parametrize("end", ["lora_magnitude_vector", "lora_embedding_B", "lm_head.weight"])
def test_missing_tensor_of_any_kind_is_refused(tmp_path, end):
    values = {"lora_magnitude_vector": CASES["dora"], "lora_embedding_B": BOTH_ENDS, "lm_head.weight": CASES["saved whole"]}
    settings = section(**values[end])
    write(adapted(settings), settings, tmp_path / "a")
    (tmp_path / "a" / "ms4_adapter.json").unlink()
    rewrite(tmp_path / "a", lambda tensors: tensors.pop(next(name for name in tensors if name.endswith(end))))
    with pytest.raises(AdapterError, match="is missing") as caught:
        load_adapter(tiny_model(), tmp_path / "a", base_fingerprint=None)
    assert caught.value.key is not None
    assert caught.value.key.endswith(end)


def test_adapter_of_changed_base_weights_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(twin(False), LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights="pissa"))
    theirs.save_pretrained(tmp_path / "a")
    with pytest.raises(AdapterError, match="changed in memory") as caught:
        load_adapter(tiny_model(), tmp_path / "a", base_fingerprint=None)
    assert caught.value.key == "init_lora_weights"


def test_second_adapter_loads_under_another_name(tmp_path):
    settings = section(preset="attention+experts")
    first = adapted(settings)
    write(first, settings, tmp_path / "a")
    other = section(target_modules=["o_proj"], target_parameters=STACKS)
    second = adapted(other)
    write(second, other, tmp_path / "b")
    model = tiny_model()
    load_adapter(model, tmp_path / "a", base_fingerprint=None)
    load_adapter(model, tmp_path / "b", base_fingerprint=None, name="b")
    assert torch.equal(logits_of(model), logits_of(second))
    assert all(torch.equal(value, adapter_tensors(second)[name]) for name, value in adapter_tensors(model, "b").items())
    with pytest.raises(AdapterError, match="already"):
        load_adapter(model, tmp_path / "b", base_fingerprint=None, name="b")


def test_patterns_of_a_file_are_ends_of_names_of_the_whole_model(tmp_path):
    settings = section(target_modules=["o_proj"], rank_pattern={"model.layers.0.self_attn.o_proj": 2})
    write(adapted(settings, vision=True), settings, tmp_path / "a")
    content = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert content["rank_pattern"] == {"0.self_attn.o_proj": 2}
    model = tiny_multimodal()
    assert load_adapter(model, tmp_path / "a", base_fingerprint=None).rank_pattern == {"0.self_attn.o_proj": 2}
    assert relative_error(logits_of(model), logits_of(adapted(settings, vision=True))) < 1e-6
