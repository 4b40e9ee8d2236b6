"""The two training programs that ``train_step.py`` compares, built from one description of the work.

Nothing of the peer's is imported before it is built: a fresh process that trains ours must not pay for it.
Exercise it: ``python benchmarks/train_step.py --quick``.

Shape suffixes: b documents, s tokens of the longest one, t tokens of all documents in a row.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ms4_train.adapters.attach import adapter_tensors, attach
from ms4_train.adapters.peft_format import to_peft
from ms4_train.config.schema import AdapterSection, TrainingSection
from ms4_train.model import Mistral4ForCausalLM, RopeParameters, SequenceLayout, TextConfig, init_weights
from ms4_train.parallel.local import LocalEngine
from ms4_train.parallel.mesh import Mesh
from ms4_train.training.loss import IGNORED_TARGET, next_token_loss
from ms4_train.weights.layouts.hf_config import to_hf_config

MODULES = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ADAPTER = AdapterSection(r=16, lora_alpha=32.0, target_modules=MODULES, target_parameters=STACKS)
TRAINING = TrainingSection(learning_rate=1e-5, weight_decay=0.0, max_grad_norm=1.0)
"""A small learning rate: hundreds of timed steps leave the weights, and so the routing, nearly as they were."""
WEIGHT_STD = 0.1
"""Of random weights: large enough that experts, attention and loss all matter to the gradients that are compared."""
SEED = 0


@dataclass(frozen=True)
class Work:
    """One comparison: what is trained, of which model, on which documents.

    Attributes:
        name: of the case.
        mode: ``lora`` (attention and experts) or ``full``.
        lengths: input tokens of each document; every one has a target, so a document is one token longer.
        num_experts: experts of each layer, 4 of which act on a token.
        dtype: of the weights.
        seed: of the documents.
    """

    name: str
    mode: str
    lengths: tuple[int, ...] = (512,) * 4
    num_experts: int = 128
    dtype: torch.dtype = torch.float32
    seed: int = 1

    @property
    def num_tokens(self) -> int:
        """Tokens of one step, all with a target."""
        return sum(self.lengths)

    def config(self) -> TextConfig:
        """Hidden size 256, 4 layers, 8 heads, experts of width 128, a vocabulary of 8192."""
        return TextConfig(
            vocab_size=8192,
            hidden_size=256,
            intermediate_size=512,
            moe_intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            n_shared_experts=1,
            n_routed_experts=self.num_experts,
            num_experts_per_tok=4,
            q_lora_rank=128,
            kv_lora_rank=64,
            qk_nope_head_dim=32,
            qk_rope_head_dim=32,
            v_head_dim=64,
            rope_parameters=RopeParameters(),
        )

    def documents(self) -> list[Tensor]:
        """Random documents (int64) of ordinary tokens: none of the control tokens below 100."""
        generator = torch.Generator().manual_seed(self.seed)
        return [torch.randint(100, self.config().vocab_size, (length + 1,), generator=generator) for length in self.lengths]


MIXED = (32, 48, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 512)
CASES = {
    work.name: work
    for work in (
        Work("lora", "lora"),
        Work("full", "full"),
        Work("lora, 16 experts", "lora", num_experts=16),
        Work("full, 16 experts", "full", num_experts=16),
        Work("lora, bf16", "lora", dtype=torch.bfloat16),
        Work("full, bf16", "full", dtype=torch.bfloat16),
        Work("lora, mixed lengths", "lora", lengths=MIXED),
        Work("full, mixed lengths", "full", lengths=MIXED),
    )
}


@dataclass
class Contestant:
    """A model in training.

    Attributes:
        backward: forward and backward of one step; returns the mean loss and leaves the gradients.
        update: clip, step, clear gradients.
        first_moments: AdamW's first moment of every trained parameter, by the peer's names and in its shapes. After the first step it is
            (1 - beta1) times the clipped gradient, whatever type the weights have.
    """

    model: nn.Module
    backward: Callable[[], Tensor]
    update: Callable[[], object]
    first_moments: Callable[[], dict[str, Tensor]]

    def step(self) -> Tensor:
        """A whole optimizer step; returns the mean loss before it."""
        loss = self.backward()
        self.update()
        return loss


def build_ours(work: Work) -> Contestant:
    """Our model with its engine, on all documents in one packed row."""
    model = Mistral4ForCausalLM(work.config())
    init_weights(model, SEED, WEIGHT_STD)
    model.to(work.dtype).train()
    if work.mode == "lora":
        attach(model, ADAPTER)
        randomise(adapter_tensors(model))
    engine = LocalEngine(model, Mesh(), training=TRAINING)
    documents = work.documents()
    input_ids_t = torch.cat([document[:-1] for document in documents])
    target_ids_t = torch.cat([document[1:] for document in documents])

    def backward() -> Tensor:
        hidden_td = model(input_ids_t, SequenceLayout.from_lengths(work.lengths))
        nll = next_token_loss(model.lm_head, hidden_td, target_ids_t, chunk_tokens=TRAINING.loss_chunk_tokens)
        engine.backward(nll / work.num_tokens, is_last_micro_batch=True)
        return nll.detach() / work.num_tokens

    def first_moments() -> dict[str, Tensor]:
        found = {piece.name: piece.tensors["exp_avg"].view(piece.full_shape) for piece in engine.export_state()}
        return to_peft(found) if work.mode == "lora" else found  # a gradient changes name and shape as its parameter does in PEFT's file

    return Contestant(model, backward, lambda: engine.step(TRAINING.learning_rate, TRAINING.max_grad_norm), first_moments)


@torch.no_grad()
def smallest_margin(work: Work, model: nn.Module) -> float:
    """How close any token comes to another choice of experts: the least distance between its last chosen router logit and the next."""
    margins: list[float] = []

    def look(gate: Any, arguments: tuple[Tensor, ...], chosen: object) -> None:
        logits_te = arguments[0].float() @ gate.weight.float().t()
        best_tk = logits_te.topk(gate.top_k + 1).values
        margins.append(float((best_tk[:, -2] - best_tk[:, -1]).min()))

    hooks = [module.register_forward_hook(look) for name, module in model.named_modules() if name.endswith("mlp.gate")]
    documents = work.documents()
    model(torch.cat([document[:-1] for document in documents]), SequenceLayout.from_lengths(work.lengths))
    for hook in hooks:
        hook.remove()
    return min(margins)


def without_near_ties(work: Work, margin: float, tries: int = 50) -> Work:
    """The work on documents whose routing no rounding decides: one flipped expert would change gradients by a percent."""
    model = build_ours(work).model
    for seed in range(1, tries + 1):
        candidate = replace(work, seed=seed)
        if smallest_margin(candidate, model) > margin:
            return candidate
    raise SystemExit(f"{work.name}: {tries} draws of documents, and in each some token is within {margin:g} of another choice of experts")


def build_peer(work: Work, experts: str) -> Contestant:
    """Transformers' model with an experts implementation, PEFT's adapter and torch's fused AdamW, on a batch padded where it must be."""
    import transformers

    values: dict[str, Any] = to_hf_config(work.config(), dtype=work.dtype)
    values["experts_implementation"] = experts
    base = transformers.Mistral4ForCausalLM(transformers.Mistral4Config(**values))
    init_weights(base, SEED, WEIGHT_STD)
    base.to(work.dtype)  # pyright: ignore[reportArgumentType]
    model: Any = base
    if work.mode == "lora":
        import peft

        settings = peft.LoraConfig(r=ADAPTER.r, lora_alpha=int(ADAPTER.lora_alpha), target_modules=MODULES, target_parameters=STACKS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT reads a name that transformers has renamed
            model = peft.get_peft_model(base, settings, autocast_adapter_dtype=False)  # type: ignore[arg-type] # adapters of the weights' type
        randomise({name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad})
    model.train()
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained = list(named.values())
    optimizer = torch.optim.AdamW(trained, lr=TRAINING.learning_rate, weight_decay=TRAINING.weight_decay, fused=True)
    batch = padded_batch(work)

    def backward() -> Tensor:
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        return loss.detach()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(trained, TRAINING.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def first_moments() -> dict[str, Tensor]:
        return {name.replace(".default.", "."): optimizer.state[parameter]["exp_avg"] for name, parameter in named.items()}

    return Contestant(model, backward, update, first_moments)


def padded_batch(work: Work) -> dict[str, Tensor]:
    """Documents as rows [b, s], the targets where transformers' loss looks for shifted ones, and a mask where there is padding."""
    documents, pad = work.documents(), nn.utils.rnn.pad_sequence
    targets_bs = pad([document[1:] for document in documents], batch_first=True, padding_value=IGNORED_TARGET)
    batch = {
        "input_ids": pad([document[:-1] for document in documents], batch_first=True, padding_value=11),
        "labels": targets_bs,
        "shift_labels": targets_bs,
    }
    if len(set(work.lengths)) > 1:
        batch["attention_mask"] = (targets_bs != IGNORED_TARGET).long()
    return batch


@torch.no_grad()
def randomise(tensors: Mapping[str, Tensor]) -> None:
    """Fill adapter tensors, B among them: with B at zero the gradients of A would be zero, and a wrong A would go unnoticed."""
    generator = torch.Generator().manual_seed(SEED)
    for tensor in tensors.values():
        tensor.copy_(torch.empty(tensor.shape).normal_(0.0, 0.05, generator=generator))


def base_model(peer: nn.Module) -> Any:
    """Transformers' own model inside PEFT's wrapper, if there is one."""
    return peer.get_base_model() if hasattr(peer, "get_base_model") else peer  # type: ignore[operator]


def equalise_adapters(ours: nn.Module, peer: Any) -> None:
    """Give the peer's adapter the values of ours, through the file format that PEFT defines."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(peer, to_peft(adapter_tensors(ours)))
