"""The way back from vLLM's form: the same change of every weight, from block-diagonal pairs and from any other."""

import pytest
import torch
from support.adapted import adapted, logits_of, section
from support.checkpoints import ATTENTION, STACKS, relative_error, rewrite
from support.models import tiny_config, tiny_model

from ms4_train.adapters import adapter_tensors, load_adapter, save_adapter
from ms4_train.adapters.export import export_adapter
from ms4_train.adapters.vllm_split import is_fused, split_fused
from ms4_train.errors import AdapterError

PAIR = "base_model.model.model.layers.0.self_attn.fused_qkv_a_proj"
SETTINGS = {"r": 6, "lora_alpha": 3, "target_modules": ["fused_qkv_a_proj"]}


def pair(block):
    a, b = torch.randn(6, 64), torch.randn(48, 6)
    if block:
        b[:24, 3:] = 0
        b[24:, :3] = 0
    return {f"{PAIR}.lora_A.weight": a, f"{PAIR}.lora_B.weight": b}


@pytest.mark.parametrize("block", [True, False])
@pytest.mark.parametrize("use_rslora", [True, False])
def test_change_is_the_same(block, use_rslora):
    stored = pair(block)
    found, settings = split_fused(stored, SETTINGS | {"use_rslora": use_rslora}, tiny_config())
    assert is_fused(stored)
    assert not is_fused(found)
    change = stored[f"{PAIR}.lora_B.weight"] @ stored[f"{PAIR}.lora_A.weight"] * (3 / (6**0.5 if use_rslora else 6))
    for half, rows in (("q_a_proj", slice(0, 24)), ("kv_a_proj_with_mqa", slice(24, 48))):
        a, b = (found[f"{PAIR.replace('fused_qkv_a_proj', half)}.lora_{side}.weight"] for side in "AB")
        name = f"model.layers.0.self_attn.{half}"
        assert settings["rank_pattern"][name] == len(a) == (3 if block else 6)
        scale = settings["alpha_pattern"][name] / (len(a) ** 0.5 if use_rslora else len(a))
        assert torch.allclose(scale * b @ a, change[rows], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: stored.pop(f"{PAIR}.lora_B.weight"), "missing"),
        (lambda stored: stored.update({f"{PAIR}.lora_B.weight": torch.zeros(47, 6)}), "has shapes"),
        (lambda stored: stored.update({f"{PAIR}.lora_A.weight": torch.zeros(6, 63)}), "has shapes"),
    ],
)
def test_pair_that_does_not_fit_is_refused(change, message):
    stored = pair(True)
    change(stored)
    with pytest.raises(AdapterError, match=message) as caught:
        split_fused(stored, SETTINGS, tiny_config())
    assert caught.value.key == PAIR


@pytest.mark.parametrize(
    "values",
    [
        {"preset": "attention+experts"},
        {"target_modules": ATTENTION, "use_rslora": True, "rank_pattern": {"q_a_proj": 2}, "alpha_pattern": {"o_proj": 3}},
        {"target_modules": ["q_a_proj"], "target_parameters": STACKS[:1]},
        {"target_modules": ["layers.1.self_attn.kv_a_proj_with_mqa"], "target_parameters": ["mlp.gate.weight"]},
    ],
)
def test_folder_in_vllms_form_loads_with_equal_logits(tmp_path, values):
    """Tolerance 1e-5: scales moved into B are rounded in fp32."""
    settings = section(**values)
    model = adapted(settings)
    save_adapter(
        adapter_tensors(model), tmp_path / "a", section=settings, config=model.config, base_path="base", base_fingerprint="sha256:0"
    )
    export_adapter(tmp_path / "a", tmp_path / "v", "vllm")
    again = tiny_model()
    load_adapter(again, tmp_path / "v", base_fingerprint="sha256:0")
    assert relative_error(logits_of(again), logits_of(model)) < 1e-5
    assert relative_error(logits_of(again), logits_of(tiny_model())) > 1e-3


def test_half_saved_pair_is_found_behind_the_fusion(tmp_path):
    settings = section(preset="attention")
    model = adapted(settings)
    save_adapter(
        adapter_tensors(model), tmp_path / "a", section=settings, config=model.config, base_path="base", base_fingerprint="sha256:0"
    )
    export_adapter(tmp_path / "a", tmp_path / "v", "vllm")
    (tmp_path / "v" / "ms4_adapter.json").unlink()

    def lose(stored):
        for name, value in stored.items():
            if ".lora_B." in name:
                parts = value.split(24) if ".fused" in name else [value]
                for part in parts:
                    part[len(part) // 2 :] = 0

    load_adapter(tiny_model(), tmp_path / "v", base_fingerprint=None)
    rewrite(tmp_path / "v", lose)
    with pytest.raises(AdapterError, match="half-saved"):
        load_adapter(tiny_model(), tmp_path / "v", base_fingerprint=None)
