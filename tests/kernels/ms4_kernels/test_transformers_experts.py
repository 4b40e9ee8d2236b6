"""Hugging Face models of other makers run and train on the experts operation; what it does not compute is refused by name.

Oracle: transformers' eager experts, same weights. Tolerance 2e-5 of the largest value: fp32 over two layers, whose sums of up to 64 terms
run in another order, measured at most 1.3e-6, and other threads or another processor reorder them again.

Shape suffixes: b rows, s tokens, v vocabulary.
"""

import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import ms4_kernels
from ms4_kernels import transformers_experts
from ms4_kernels.transformers_experts import IMPLEMENTATION, experts_forward

CLOSE = 2e-5
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": None,
    "attn_implementation": "eager",
}
LATENT: dict[str, Any] = {
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
MODELS: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 8},
    "Qwen3Moe": {"moe_intermediate_size": 24, "num_experts": 8, "head_dim": 16, "norm_topk_prob": True},
    "DeepseekV3": LATENT,
    "Mistral4": LATENT,
}


@pytest.fixture(autouse=True)
def _registered():
    ms4_kernels.register()


def build(name: str, implementation: str, **settings: Any) -> Any:
    """A tiny model of a family, weights from a fixed seed and large enough that logits are far from uniform."""
    config = getattr(transformers, f"{name}Config")(**SIZES | settings, experts_implementation=implementation)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.15, generator=generator))
    return model.train()


def batch(seed: int = 5) -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (2, 13), generator=torch.Generator().manual_seed(seed))


def outcome(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradient of every parameter that has one."""
    model.zero_grad(set_to_none=True)
    out = model(input_ids=batch(), labels=batch(), use_cache=False)
    out.loss.backward()
    return out.logits.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def largest_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_all_gradients_equal_eager_experts(name):
    logits, gradients = outcome(build(name, IMPLEMENTATION, **MODELS[name]))
    expected_logits, expected = outcome(build(name, "eager", **MODELS[name]))
    assert largest_error(logits, expected_logits) < CLOSE
    assert set(gradients) == set(expected)
    assert sum(".experts." in key for key in gradients) == 4  # two stacks of two layers: the operation was differentiated
    worst = max(largest_error(gradients[key], expected[key]) for key in expected)
    assert worst < CLOSE, worst


@pytest.mark.parametrize("name", MODELS)
def test_the_operation_is_what_runs(name, monkeypatch):
    """Negative control of the comparison: with a fault planted in the operation, it would fail."""
    monkeypatch.setattr(transformers_experts, "experts", lambda *arguments: 1.01 * real(*arguments))
    logits, _ = outcome(build(name, IMPLEMENTATION, **MODELS[name]))
    expected, _ = outcome(build(name, "eager", **MODELS[name]))
    assert largest_error(logits, expected) > 10 * CLOSE


real = transformers_experts.experts


@pytest.mark.parametrize("name", MODELS)
def test_training_gives_the_same_losses(name):
    """Tolerance 1e-3 nats: AdamW divides by the size of a gradient, so rounding of the smallest ones is amplified."""

    def losses(implementation: str) -> torch.Tensor:
        model = build(name, implementation, **MODELS[name])
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        found = []
        for step in range(5):
            loss = model(input_ids=batch(step % 2), labels=batch(step % 2), use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.detach())
        return torch.stack(found)

    ours, theirs = losses(IMPLEMENTATION), losses("eager")
    assert (ours - theirs).abs().max() < 1e-3
    assert theirs[0] - theirs[-1] > 0.1  # they do train


def test_peft_adapters_of_stacked_experts_train_on_it():
    """PEFT puts W + BA in the place of a stack during the forward pass; both factors must get its gradients."""
    from peft import LoraConfig, get_peft_model

    def gradients(implementation: str) -> dict[str, torch.Tensor]:
        settings = LoraConfig(r=4, target_modules=["o_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
        model: Any = get_peft_model(build("Qwen3Moe", implementation, **MODELS["Qwen3Moe"]), settings)
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator))
        return outcome(model)[1]

    ours, theirs = gradients(IMPLEMENTATION), gradients("eager")
    assert len(ours) == 12
    assert max(largest_error(ours[key], theirs[key]) for key in theirs) < CLOSE


def test_transposed_stacks_are_computed():
    """Aria keeps its matrices as (inputs, outputs)."""
    from transformers.models.aria.configuration_aria import AriaTextConfig
    from transformers.models.aria.modeling_aria import AriaExperts

    config = AriaTextConfig(**SIZES, moe_num_experts=4)
    module: Any = AriaExperts(config)
    nn.init.normal_(module.gate_up_proj, std=0.2)
    nn.init.normal_(module.down_proj, std=0.2)
    hidden_td, ids_tk, weights_tk = torch.randn(9, 64), torch.randint(0, 4, (9, 2)), torch.rand(9, 2)
    grad_td = torch.randn(9, 64)

    def run(implementation: str) -> list[torch.Tensor]:
        config._experts_implementation = implementation
        out_td = module(hidden_td, ids_tk, weights_tk)
        return [out_td.detach(), *torch.autograd.grad(out_td, (module.gate_up_proj, module.down_proj), grad_td)]

    for ours, theirs in zip(run(IMPLEMENTATION), run("eager"), strict=True):
        assert largest_error(ours, theirs) < CLOSE


def test_gpt_oss_is_refused_for_its_biases():
    model = build("GptOss", IMPLEMENTATION, num_local_experts=4, head_dim=16)
    with pytest.raises(ValueError, match=r"GptOssExperts: its experts have biases\. Use experts_implementation='grouped_mm' or 'eager'"):
        outcome(model)


def test_another_activation_is_refused():
    model = build("Mixtral", IMPLEMENTATION, num_local_experts=4, hidden_act="gelu")
    with pytest.raises(ValueError, match="its activation is GELUActivation, not silu"):
        outcome(model)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("has_gate", False, "no gate"),
        ("has_bias", True, "biases"),
        ("has_post_expert_norm", True, "normalises"),
        ("is_concatenated", False, "interleaved"),
        ("_is_expert_parallel", True, "expert parallelism"),
        ("act_fn", nn.ReLU(), "activation is ReLU"),
    ],
)
def test_each_property_that_is_not_computed_is_refused(attribute, value, reason):
    module = build("Mixtral", IMPLEMENTATION, num_local_experts=4).model.layers[0].mlp.experts
    call = (torch.randn(3, 64), torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1))
    experts_forward(module, *call)
    setattr(module, attribute, value)
    with pytest.raises(ValueError, match=reason):
        experts_forward(module, *call)


def test_a_gate_formula_of_its_own_is_refused(monkeypatch):
    module = build("Mixtral", IMPLEMENTATION, num_local_experts=4).model.layers[0].mlp.experts
    monkeypatch.setattr(type(module), "_apply_gate", lambda self, gate_up: gate_up)
    with pytest.raises(ValueError, match="_apply_gate"):
        experts_forward(module, torch.randn(3, 64), torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1))


def test_autocast_casts_hidden_states_and_returns_their_type():
    module = build("Mixtral", IMPLEMENTATION, num_local_experts=4).bfloat16().model.layers[0].mlp.experts
    out = experts_forward(module, torch.randn(3, 64), torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1))
    assert out.dtype == torch.float32


def test_without_registration_transformers_does_not_know_the_name():
    """Negative control of ``register``: and twice is as good as once."""
    from transformers.integrations.moe import ExpertsInterface

    ms4_kernels.register()
    known = dict(ExpertsInterface._global_mapping)
    try:
        del ExpertsInterface._global_mapping[IMPLEMENTATION]
        with pytest.raises(ValueError, match="is not supported"):
            build("Mixtral", IMPLEMENTATION, num_local_experts=4)
    finally:
        ExpertsInterface._global_mapping.update(known)
    build("Mixtral", IMPLEMENTATION, num_local_experts=4)


ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ms4_train", "ms4_recipes", "ms4_evals"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
import ms4_kernels
assert "transformers" not in sys.modules and "torch" not in sys.modules
import ms4_kernels.moe, ms4_kernels.transformers_experts
assert "transformers" not in sys.modules
ms4_kernels.register()
import torch, transformers
config = transformers.MixtralConfig(vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, num_local_experts=4, experts_implementation="ms4")
model = transformers.MixtralForCausalLM(config)
model(input_ids=torch.arange(6)[None], labels=torch.arange(6)[None]).loss.backward()
assert model.model.layers[0].mlp.experts.down_proj.grad.abs().sum() > 0
try:
    import ms4_train
except ImportError as error:
    print("alone:", error)
"""


def test_it_works_without_ms4_train():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "alone: ms4_train is blocked" in done.stdout  # the block does block
