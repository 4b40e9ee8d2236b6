"""One of two ranks under ZeRO 3: trains with and without generation between its steps. Writes folder/RANK.json."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from support.parallel_runs import (
    TRAINING,
    VOCABULARY,
    everything_partitioned,
    randomise_adapters,
    run_steps,
    same_bits,
    small_model,
    small_multimodal,
    stored_state,
)

from ms4_train.adapters import attach
from ms4_train.config.schema import AdapterSection, ParallelSection
from ms4_train.inference import GenerationRequest, SamplingParams
from ms4_train.inference.mesh_engine import EngineRanks
from ms4_train.parallel import init_mesh, make_engine, shard_experts

LORA = AdapterSection(r=3, lora_alpha=6.0, target_modules=["q_b_proj", "kv_b_proj"], target_parameters=["mlp.experts.gate_up_proj"])


class Tokens:
    """A tokenizer as small as the model; the real one has at least all bytes."""

    vocab_size = VOCABULARY
    eos_id = VOCABULARY - 1

    def encode_text(self, text: str) -> list[int]:
        return [ord(letter) - 48 for letter in text]

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        return "".join(chr(48 + token_id) for token_id in ids)

    def token_bytes(self, token_id: int) -> bytes:
        return self.decode([token_id]).encode()


def trained(mesh, *, stage: Any = 3, lora=False, vision=False, checkpointing=False, offload: Any = "none"):
    """A fresh engine and its model, from the same weights each time."""
    model = small_multimodal() if vision else small_model()
    if lora:
        attach(model, LORA)
        randomise_adapters(model)
    model.gradient_checkpointing = checkpointing
    shard_experts(model, mesh)
    parallel = ParallelSection(expert_parallel_size=mesh.expert_parallel_size, zero_stage=stage, offload_parameters=offload)
    return make_engine(model, mesh, training=TRAINING, parallel=parallel), model


def generate(mesh, engine, model):
    """Greedy tokens of a few prompts, two answers, on whichever rank has room; all inside whole weights."""
    requests = [GenerationRequest(str(n), tuple(range(1, 2 + 3 * n)), SamplingParams(max_tokens=6, ignore_eos=True)) for n in range(3)]
    ranks = EngineRanks(model, Tokens(), mesh)
    with engine.whole_weights():
        return ranks.lead(lambda: [c.token_ids for c in ranks.engine(max_batch_size=2, max_context=64).generate(requests)])


def losses(engine, model, mesh, steps):
    return [[record.loss, record.norm] for record in run_steps(engine, model, mesh.world_size, steps, gradients=False)]


def hook_ids(model):
    return [[list(module._forward_pre_hooks), list(module._forward_hooks)] for module in model.modules()]


def compared(mesh, *, control=False, **options):
    """Two steps, generation, two steps, generation, one step; and the same without. ``control`` leaves the weights as they are spread."""
    engine, model = trained(mesh, **options)
    plain, plain_model = trained(mesh, **options)
    reference, reference_model = trained(mesh, **{**options, "stage": 2, "offload": "none"})
    report = {"hooks": True, "sizes": True, "hooks outside": sum(len(pre) + len(post) for pre, post in hook_ids(model))}
    found, expected, answers, theirs = [], [], [], []
    for steps in (range(2), range(2, 4), range(4, 5)):
        found += losses(engine, model, mesh, steps)
        expected += losses(plain, plain_model, mesh, steps)
        losses(reference, reference_model, mesh, steps)
        hooks, sizes = hook_ids(model), [parameter.numel() for parameter in model.parameters()]
        before = stored_state(engine)
        answers.append(generate(mesh, engine, model))
        report["hooks"] &= hook_ids(model) == hooks
        report["sizes"] &= [parameter.numel() for parameter in model.parameters()] == sizes
        report["state"] = report.get("state", True) and same_bits(before, stored_state(engine))
        theirs.append(generate(mesh, reference, reference_model))
    report |= {"losses": found == expected, "bits": same_bits(stored_state(engine), stored_state(plain)), "answers": answers == theirs}
    report["answers change"] = answers[0] != answers[-1]
    with engine.whole_weights():
        report["whole"] = all(parameter.numel() > 0 for parameter in model.parameters())
        report["hooks inside"] = sum(len(pre) + len(post) for pre, post in hook_ids(model))
    report["partitioned"] = all(parameter.numel() == 0 for parameter in model.parameters())
    report["trained"] = model.training
    return report


def check_full(mesh):
    with everything_partitioned():
        return compared(mesh)


def check_persistent(mesh):
    """Small parameters stay whole between steps, as in a real run."""
    return compared(mesh)


def check_checkpointing(mesh):
    with everything_partitioned():
        return compared(mesh, checkpointing=True)


def check_lora(mesh):
    with everything_partitioned():
        return compared(mesh, lora=True)


def check_vision(mesh):
    with everything_partitioned():
        return compared(mesh, vision=True, checkpointing=True)


def check_offload(mesh):
    with everything_partitioned():
        return compared(mesh, offload="cpu")


def check_hooks(mesh):
    """Other hooks keep their places, those that came meanwhile stay; an error inside puts everything back."""
    engine, model = trained(mesh)
    layer, seen = model.model.layers[0], []
    layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
    order, inside, late = list(layer._forward_pre_hooks), [], 0
    with contextlib.suppress(ValueError), engine.whole_weights():
        late = layer.register_forward_pre_hook(lambda module, args: None).id
        inside = list(layer._forward_pre_hooks)
        raise ValueError
    report = {"inside": inside == [order[-1], late], "after": list(layer._forward_pre_hooks) == [*order, late]}
    losses(engine, model, mesh, range(1))
    return {**report, "seen": len(seen) > 0}


def check_control(mesh):
    """Negative control: without ``whole_weights`` there is nothing to generate with."""
    with everything_partitioned():
        engine, model = trained(mesh)
        losses(engine, model, mesh, range(1))
        engine.whole_weights = nullcontext
        try:
            return {"failed": False, "answers": generate(mesh, engine, model)}
        except Exception as error:
            return {"failed": True, "error": f"{type(error).__name__}: {error}"}


def main() -> None:
    folder, size, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    mesh = init_mesh(ParallelSection(expert_parallel_size=size, timeout_seconds=100))
    report = {}
    for name in names:
        report[name] = globals()[f"check_{name}"](mesh)
        torch.manual_seed(0)
    (folder / f"{mesh.rank}.json").write_text(json.dumps(report))
    mesh.close()


if __name__ == "__main__":
    main()
