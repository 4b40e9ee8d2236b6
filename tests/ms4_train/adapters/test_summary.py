"""What is said of an adapter: counted by hand, compared with the tensors, and with every fault named."""

import math

import pytest
import torch
from support.adapted import adapted, section
from support.checkpoints import rewrite, saved_tiny

from ms4_train.adapters import adapter_tensors, save_adapter
from ms4_train.adapters.export import export_adapter
from ms4_train.adapters.summary import inspect_adapter
from ms4_train.weights import base_fingerprint


@pytest.fixture
def folder(tmp_path):
    settings = section(preset="attention+experts", rank_pattern={"q_a_proj": 2}, modules_to_save=["lm_head"])
    model = adapted(settings)
    saved_tiny(tmp_path / "base")
    identity = {"base_path": str(tmp_path / "base"), "base_fingerprint": base_fingerprint(tmp_path / "base")}
    save_adapter(adapter_tensors(model), tmp_path / "a", section=settings, config=model.config, **identity)
    return tmp_path / "a"


def test_rows(folder):
    found = inspect_adapter(folder)
    rows = {row.target: row for row in found.targets}
    assert len(rows) == 10
    assert rows["model.layers.*.self_attn.q_a_proj"].ranks == (2,)
    assert rows["model.layers.*.mlp.experts.gate_up_proj"].ranks == (4,)
    assert {row.modules for row in found.targets} == {2}
    tensors = adapter_tensors(adapted(section(preset="attention+experts", rank_pattern={"q_a_proj": 2}, modules_to_save=["lm_head"])))
    norms = [torch.linalg.vector_norm(tensors[f"model.layers.{layer}.mlp.experts.lora.down_b_edr"]) for layer in range(2)]
    assert rows["model.layers.*.mlp.experts.down_proj"].norm_b == pytest.approx(math.hypot(*norms), rel=1e-5)
    assert found.parameters == sum(value.numel() for value in tensors.values())
    assert found.whole == ("lm_head.weight",)
    assert (found.written_by, found.form, found.types) == ("ms4-train", "PEFT", ("F32",))
    assert found.base == str(folder.parent / "base")
    assert found.layout is not None
    assert not found.problems


def test_checked_against_a_base(folder):
    assert not inspect_adapter(folder, base_folder=folder.parent / "base").problems
    saved_tiny(folder.parent / "other", seed=1)
    (problem,) = inspect_adapter(folder, base_folder=folder.parent / "other").problems
    assert "another model" in problem


def test_untrained_targets_are_counted(folder):
    (folder / "ms4_adapter.json").unlink()
    rewrite(folder, lambda tensors: tensors["base_model.model.model.layers.0.self_attn.o_proj.lora_B.weight"].zero_())
    rows = {row.target: row for row in inspect_adapter(folder).targets}
    assert rows["model.layers.*.self_attn.o_proj"].zero_b == 1
    assert rows["model.layers.*.self_attn.q_b_proj"].zero_b == 0


@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: next(iter(tensors.values())).fill_(float("nan")), "NaN"),
        (lambda tensors: tensors.pop("base_model.model.model.layers.0.self_attn.o_proj.lora_B.weight"), "missing"),
        (lambda tensors: [value[len(value) // 2 :].zero_() for name, value in tensors.items() if "lora_B" in name], "half-saved"),
    ],
)
def test_problems_of_an_adapter_without_a_record(folder, change, message, has_base):
    (folder / "ms4_adapter.json").unlink()
    rewrite(folder, change)
    (problem,) = inspect_adapter(folder, base_folder=folder.parent / "base" if has_base else None).problems
    assert message in problem


def test_changed_file_is_a_problem(folder):
    rewrite(folder, lambda tensors: tensors["base_model.model.lm_head.weight"].mul_(2))
    (problem,) = inspect_adapter(folder).problems
    assert "SHA-256" in problem


def test_vllms_form(tmp_path):
    settings = section(preset="attention")
    model = adapted(settings)
    save_adapter(adapter_tensors(model), tmp_path / "a", section=settings, config=model.config, base_path="b", base_fingerprint="sha256:0")
    export_adapter(tmp_path / "a", tmp_path / "v", "vllm")
    found = inspect_adapter(tmp_path / "v")
    assert (found.form, found.problems) == ("vLLM", ())
    rows = {row.target: row for row in found.targets}
    assert rows["model.layers.*.self_attn.fused_qkv_a_proj"].ranks == (8,)
