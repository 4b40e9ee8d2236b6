"""The programs that ``scaling.py`` compares: one rank of each, built from one description of the work.

Nothing that a contestant does not need is imported in its process. Exercise it: ``python benchmarks/scaling.py --quick``.

Shape suffixes: b documents, s tokens of a document, t tokens of all documents of a rank in a row.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ms4_train.config.schema import ParallelSection, TrainingSection
from ms4_train.model import Mistral4ForCausalLM, RopeParameters, SequenceLayout, TextConfig, init_weights
from ms4_train.parallel import init_mesh, make_engine, shard_experts, traffic
from ms4_train.training.loss import next_token_loss
from ms4_train.weights.layouts.hf_config import to_hf_config

OURS = {"ours, ZeRO 2": 2, "ours, ZeRO 0": 0, "ours, ZeRO 3": 3}
"""Contestant -> ZeRO stage; the first, AutoEP's stage too, is the one that others are compared with. 0 is our engine without DeepSpeed."""
PEER, AUTO_EP = "transformers, ZeRO 3", "transformers, AutoEP, ZeRO 2"
TRAINING = TrainingSection(learning_rate=1e-4, weight_decay=0.0, max_grad_norm=1.0)
WEIGHT_STD = 0.1
"""Of random weights: large enough that experts, attention and loss all matter to the losses that are compared."""
SEED = 0


@dataclass(frozen=True)
class Work:
    """What every contestant trains: all parameters of one model, on the same documents, in fp32.

    As in the released model, 4 of 128 experts act on a token, and an expert is half as wide as the residual stream.

    Attributes:
        hidden_size: width of the residual stream; heads and latents follow from it.
        expert_width: intermediate size of an expert.
        num_experts: experts of each layer.
        num_layers: layers.
        vocab_size: tokens of the vocabulary.
        documents: of a whole step; ranks share them out.
        length: tokens of a document that have a target.
    """

    hidden_size: int = 256
    expert_width: int = 128
    num_experts: int = 128
    num_layers: int = 2
    vocab_size: int = 2048
    documents: int = 8
    length: int = 512

    @property
    def num_tokens(self) -> int:
        """Tokens of one step, over all ranks."""
        return self.documents * self.length

    def config(self) -> TextConfig:
        """The model."""
        return TextConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=2 * self.hidden_size,
            moe_intermediate_size=self.expert_width,
            num_hidden_layers=self.num_layers,
            num_attention_heads=8,
            num_key_value_heads=8,
            n_shared_experts=1,
            n_routed_experts=self.num_experts,
            num_experts_per_tok=4,
            q_lora_rank=self.hidden_size // 2,
            kv_lora_rank=self.hidden_size // 4,
            qk_nope_head_dim=self.hidden_size // 16,
            qk_rope_head_dim=self.hidden_size // 16,
            v_head_dim=self.hidden_size // 8,
            rope_parameters=RopeParameters(),
        )

    def rows(self, rank: int, ranks: int) -> Tensor:
        """Documents of one rank, int64 [b, s + 1]: ordinary tokens, none of the control tokens below 100."""
        generator = torch.Generator().manual_seed(SEED + 1)
        every_bs = torch.randint(100, self.vocab_size, (self.documents, self.length + 1), generator=generator)
        return every_bs.chunk(ranks)[rank]


@dataclass
class Rank:
    """One rank of a contestant.

    Attributes:
        model: what it trains.
        step: a whole optimizer step; returns the mean loss over this rank's tokens before it, and the norm of all gradients.
        counted: bytes that our exchange says it has sent to other ranks since the last call; 0 where nobody counts.
    """

    model: nn.Module
    step: Callable[[], tuple[float, float]]
    counted: Callable[[], int] = lambda: 0

    def held_bytes(self) -> dict[str, int]:
        """Bytes of parameters that this rank keeps between steps: of routed experts, and of everything."""
        sizes = {name: _held(parameter) for name, parameter in self.model.named_parameters()}
        return {"experts": sum(size for name, size in sizes.items() if ".mlp.experts." in name), "all": sum(sizes.values())}


def _held(parameter: Any) -> int:
    own = getattr(parameter, "ds_tensor", parameter)  # ZeRO 3: this rank's part
    return own.numel() * own.element_size()


def build_ours(work: Work, zero_stage: int) -> Rank:
    """Our model, exchange, loss and engine; experts spread over all ranks."""
    ranks = int(os.environ["WORLD_SIZE"])
    section = ParallelSection(expert_parallel_size=ranks, zero_stage=zero_stage)  # type: ignore[arg-type]
    mesh = init_mesh(section)
    model = Mistral4ForCausalLM(work.config())
    init_weights(model, SEED, WEIGHT_STD)
    model.train()
    shard_experts(model, mesh)
    engine = make_engine(model, mesh, training=TRAINING, parallel=section)
    rows_bs = work.rows(mesh.rank, ranks)
    layout = SequenceLayout.from_lengths((work.length,) * len(rows_bs))
    input_ids_t, target_ids_t = rows_bs[:, :-1].flatten(), rows_bs[:, 1:].flatten()

    def step() -> tuple[float, float]:
        nll = next_token_loss(model.lm_head, model(input_ids_t, layout), target_ids_t, chunk_tokens=TRAINING.loss_chunk_tokens)
        engine.backward(nll / work.num_tokens, is_last_micro_batch=True)
        norm = engine.step(TRAINING.learning_rate, TRAINING.max_grad_norm)
        return nll.item() / target_ids_t.numel(), norm

    def counted() -> int:
        taken = traffic.take()
        return sum(asdict(taken.forward + taken.backward).values())

    return Rank(model, step, counted)


def build_peer(work: Work, zero: dict[str, Any], expert_parallel: dict[str, Any] | None = None) -> Rank:
    """Transformers' model under DeepSpeed.

    Args:
        work: what to train.
        zero: DeepSpeed's ``zero_optimization``.
        expert_parallel: DeepSpeed's section of that name; None without its expert parallelism.
    """
    import deepspeed
    import transformers

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled first; no collective of training uses it
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    values = {**to_hf_config(work.config(), dtype=torch.float32), "experts_implementation": "grouped_mm"}
    model: Any = transformers.Mistral4ForCausalLM(transformers.Mistral4Config(**values))
    init_weights(model, SEED, WEIGHT_STD)
    model.train()

    def optimizer(groups: Any) -> torch.optim.Optimizer:
        """Called with the parameters as they are once DeepSpeed has replaced what it replaces."""
        if expert_parallel is not None:
            from deepspeed.moe.utils import configure_moe_param_groups

            groups = configure_moe_param_groups(groups)  # as DeepSpeed does with an optimizer of its own
        return torch.optim.AdamW(groups, lr=TRAINING.learning_rate, weight_decay=TRAINING.weight_decay, fused=True)

    parameters: Any = list(model.parameters())
    rows_bs = work.rows(rank, ranks)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": len(rows_bs),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": TRAINING.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }
    if expert_parallel is not None:
        _register_preset()
        config["expert_parallel"] = expert_parallel
    made = deepspeed.initialize(model=model, model_parameters=parameters, optimizer=optimizer, config=config, dist_init_required=False)
    engine: Any = made[0]
    targets_bs = rows_bs[:, 1:].contiguous()
    batch = {"input_ids": rows_bs[:, :-1].contiguous(), "labels": targets_bs, "shift_labels": targets_bs}

    def step() -> tuple[float, float]:
        loss = engine(**batch, use_cache=False).loss
        engine.backward(loss)
        engine.step()
        return loss.item(), float(engine.get_global_grad_norm())

    return Rank(model, step)


def _register_preset() -> None:
    """Tell AutoEP what this architecture's blocks are called; it knows other models."""
    from deepspeed.module_inject.auto_ep_config import PRESET_MODELS, MoEModelPreset

    PRESET_MODELS["mistral4"] = MoEModelPreset(
        moe_layer_pattern=r"model\.layers\.\d+\.mlp",
        router_pattern="gate",
        experts_pattern="experts",
        expert_storage="fused_3d",
        expert_w1="gate_up_proj",
        expert_w2="down_proj",
        expert_w3=None,
        num_experts_attr="n_routed_experts",
        top_k_attr="num_experts_per_tok",
        score_func="softmax",
        score_apply="post",
        route_norm=True,
        gate_bias=False,
        has_shared_experts=True,
        shared_experts_pattern="shared_experts",
        hf_model_types=("mistral4",),
    )


def build(contestant: str, work: Work) -> Rank:
    """One rank of a contestant, by its name."""
    if contestant in OURS:
        return build_ours(work, OURS[contestant])
    if contestant == AUTO_EP:
        sections = {"enabled": True, "autoep_size": int(os.environ["WORLD_SIZE"]), "preset_model": "mistral4"}
        return build_peer(work, {"stage": 2}, sections)
    return build_peer(work, {"stage": 3})
