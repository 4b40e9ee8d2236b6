"""Whether two contestants answer alike: token for token, or parting only where fp32 cannot tell two tokens, or two experts, apart.

The judge of a parting is transformers in fp64 on the text so far: how far the two tokens' logits lie apart there, and how close the choice
of experts was anywhere before. Exercise it: ``python benchmarks/inference.py --quick --peers llama.cpp``.

Shape suffixes: s tokens, e experts, d hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

NEAR_TIE = 1e-4
"""Of logits of size 6, and of router logits: some ten times what orders of summation make of them in fp32. Rounding the attention to fp16
moves logits by 1e-2, a wrong scale by 1."""
MOST_PARTINGS = 0.25
"""Share of answers that are looked at so closely; more is no accident."""


@dataclass(frozen=True)
class Agreement:
    """How a contestant's answers compare with ours.

    Attributes:
        same, count: answers that are identical, of how many.
        gaps: of those that are not, how close to a tie the parting was.
        alike: whether all partings are near ties.
    """

    same: int
    count: int
    gaps: tuple[float, ...]
    alike: bool

    def __str__(self) -> str:
        text = f"{self.same} of {self.count} identical"
        if not self.gaps:
            return text
        largest = f"{max(self.gaps):.1e}"
        return f"{text}, the others part at near ties (gaps up to {largest})" if self.alike else f"{text}, gaps up to {largest}"


class Judge:
    """Compares answers to the prompts of one model.

    Args:
        folder: of the model, in transformers' layout.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._model: Any = None
        self._margin = 0.0

    def compare(self, prompts: Sequence[list[int]], ours: Sequence[list[int]], theirs: Sequence[list[int]]) -> Agreement:
        """Compare answers in the order of their prompts."""
        different = [number for number, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other]
        same = len(ours) - len(different)
        if len(different) > max(1.0, MOST_PARTINGS * len(ours)):
            return Agreement(same, len(ours), (), alike=False)
        gaps = tuple(self._gap(prompts[number], ours[number], theirs[number]) for number in different)
        return Agreement(same, len(ours), gaps, alike=all(gap <= NEAR_TIE for gap in gaps))

    @torch.inference_mode()
    def _gap(self, prompt: list[int], ours: list[int], theirs: list[int]) -> float:
        """How close to a tie it was where two answers part: the logits of the two tokens, or any choice of experts before."""
        part = next((place for place, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
        if part is None:
            return float("inf")  # one is the beginning of the other
        model = self._loaded()
        self._margin = float("inf")
        logits_v: Tensor = model(torch.tensor([prompt + ours[:part]]), logits_to_keep=1).logits[0, -1]
        return min(abs(float(logits_v[ours[part]] - logits_v[theirs[part]])), self._margin)

    def _loaded(self) -> Any:
        if self._model is None:
            transformers.logging.set_verbosity_error()
            transformers.logging.disable_progress_bar()
            loaded: Any = transformers.Mistral4ForCausalLM.from_pretrained(self._folder, dtype=torch.float64)
            self._model = loaded.eval()
            self._model.set_experts_implementation("eager")
            for layer in self._model.model.layers:
                layer.mlp.gate.register_forward_hook(self._see_router)
        return self._model

    def _see_router(self, gate: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        """Keep the smallest margin between the last expert that is chosen and the first that is not."""
        weight_ed: Any = gate.weight
        logits_se = nn.functional.linear(inputs[0].reshape(-1, weight_ed.shape[1]), weight_ed)
        chosen = self._model.config.num_experts_per_tok
        top_s = logits_se.topk(chosen + 1, dim=-1).values
        self._margin = min(self._margin, float((top_s[:, chosen - 1] - top_s[:, chosen]).min()))
