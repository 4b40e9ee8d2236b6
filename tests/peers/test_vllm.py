"""vLLM serves what is written here, and says the same: greedy tokens in fp32, word for word.

vLLM knows this model only in the Mistral-native layout. Its arithmetic is its own (fused projections, its own attention and expert
kernels), so agreement over some thousand greedy choices says that names, row orders, rotary embedding, scales and configuration are right.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import layouts
from support.checkpoints import edit_json
from support.peers import ask_vllm, require_peers
from support.trained import MAX_TOKENS

from ms4_train.weights.convert import convert

pytestmark = pytest.mark.slow

NEW_TOKENS = 24
# Mean and standard deviation by which mistral-common normalises pixels.
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGE, IMAGE_BREAK, IMAGE_END = 10, 12, 13
TOKENIZED = dataclasses.replace(layouts.TINY, vocab_size=438)


@pytest.fixture(scope="module", autouse=True)
def _peers():
    require_peers()


def swap_gate_and_up(folder: Path) -> None:
    """The fault of a wrong table of names, in one expert of one layer."""
    (file,) = folder.glob("consolidated*.safetensors")
    tensors = load_file(file)
    gate, up = (f"layers.0.experts.3.{name}.weight" for name in ("w1", "w3"))
    tensors[gate], tensors[up] = tensors[up], tensors[gate]
    save_file(tensors, file)


def scale_softmax(folder: Path) -> None:
    """What a reader does that overlooks ``apply_scale: false``."""
    edit_json(folder / "params.json", lambda params: params["yarn"].update(apply_scale=True))


class TestFineTuned:
    """Fine-tuned here, converted here, served there."""

    @pytest.fixture(scope="class")
    def native(self, trained, tmp_path_factory) -> Path:
        out = tmp_path_factory.mktemp("served") / "native"
        convert(trained.model, out, to="native")
        return out

    @pytest.fixture(scope="class")
    def ours(self, trained) -> list[list[int]]:
        return trained.our_tokens()

    def ask(self, folder, trained) -> list[list[int]]:
        prompts = [request.prompt_ids for request in trained.prompts()]
        answer = ask_vllm(folder, prompts, MAX_TOKENS, end_token_id=trained.tokenizer.eos_id)
        assert answer.architecture == "PixtralForConditionalGeneration"  # the vision weights came along
        return answer.tokens

    def test_the_answers_are_worth_comparing(self, trained, ours):
        tokenizer = trained.tokenizer
        assert all(answer[-1] == tokenizer.eos_id for answer in ours)
        assert all(tokenizer.think_id not in answer for answer in ours[:25])
        assert all(answer[0] == tokenizer.think_id and tokenizer.end_think_id in answer for answer in ours[25:])
        assert len(set(map(tuple, ours[25:]))) > 20
        assert max(map(len, ours)) > 30

    def test_vllm_says_the_same_for_all_50_prompts(self, trained, native, ours):
        theirs = self.ask(native, trained)
        differing = [(request.request_id, a, b) for request, a, b in zip(trained.prompts(), ours, theirs, strict=True) if a != b]
        assert differing == []

    @pytest.mark.parametrize("fault", [scale_softmax, swap_gate_and_up])
    def test_control_a_fault_shows(self, trained, native, ours, tmp_path, fault):
        folder = tmp_path / "native"
        shutil.copytree(native, folder)
        fault(folder)
        theirs = self.ask(folder, trained)
        assert sum(a != b for a, b in zip(ours, theirs, strict=True)) > 0


class TestFactories:
    """The native folders that other tests start from, against transformers' reading of the HF ones: text and pictures."""

    @pytest.fixture(scope="class")
    def oracle(self, tmp_path_factory) -> Any:
        """transformers' multimodal model, told to compute the plain softmax scale and vLLM's epsilon in the projector."""
        from transformers import Mistral3ForConditionalGeneration

        folder = tmp_path_factory.mktemp("hf")
        layouts.hf_folder(folder, dtype=torch.float32, tokenizer=True)
        plain = {"mscale_all_dim": 0.0, "attention_factor": 1.0}
        edit_json(folder / "config.json", lambda config: config["text_config"]["rope_parameters"].update(plain))
        model: Any = Mistral3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        model.model.multi_modal_projector.norm.variance_epsilon = 1e-5
        model.generation_config.max_length = None
        model.generation_config.eos_token_id = None
        return model.eval()

    @staticmethod
    def generate(model, prompt, **inputs) -> list[int]:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options, **inputs)[0, len(prompt) :].tolist()

    def test_text(self, oracle, tmp_path):
        generator = torch.Generator().manual_seed(1)
        prompts = [[1, *torch.randint(40, 438, (count,), generator=generator).tolist()] for count in (4, 17, 33, 60)]
        expected = [self.generate(oracle, prompt) for prompt in prompts]
        for vision, architecture in ((False, "MistralLarge3ForCausalLM"), (True, "PixtralForConditionalGeneration")):
            folder = tmp_path / architecture
            layouts.native_folder(folder, dtype=torch.float32, vision=vision, tokenizer=True, shards=2)
            answer = ask_vllm(folder, prompts, NEW_TOKENS)
            assert answer.architecture == architecture
            assert answer.tokens == expected

    def test_pictures(self, oracle, tmp_path):
        from PIL import Image

        generator = torch.Generator().manual_seed(0)
        prompts, images, expected = [], [], []
        for index, (rows, columns) in enumerate([(2, 3), (1, 4), (4, 2), (3, 3)]):
            # Multiples of 28 pixels: nothing is resized, so both sides see the same values.
            pixels = torch.randint(0, 256, (28 * rows, 28 * columns, 3), generator=generator, dtype=torch.uint8)
            images.append(tmp_path / f"{index}.png")
            Image.fromarray(pixels.numpy()).save(images[-1])
            picture = ([IMAGE] * columns + [IMAGE_BREAK]) * rows
            prompts.append([1, 3, *picture[:-1], IMAGE_END, *torch.randint(40, 438, (6,), generator=generator).tolist(), 4])
            values = ((pixels / 255 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)).permute(2, 0, 1)[None]
            sizes = torch.tensor([values.shape[-2:]])
            expected.append(self.generate(oracle, prompts[-1], pixel_values=values, image_sizes=sizes))
        layouts.native_folder(tmp_path / "right", dtype=torch.float32, tokenizer=True)
        assert ask_vllm(tmp_path / "right", prompts, NEW_TOKENS, images=images).tokens == expected
        # Control: the vision rows in HF's order.
        pieces = layouts.reference_pieces(dtype=torch.float32, tiny=TOKENIZED)
        for name in [name for name in pieces if name.startswith("vision_tower.") and name.endswith(("q_proj.weight", "k_proj.weight"))]:
            pieces[name] = layouts.permute_vision_rows(pieces[name], TOKENIZED.vision_num_attention_heads, to_native=False)
        layouts.native_folder(tmp_path / "wrong", tokenizer=True, pieces=pieces)
        wrong = ask_vllm(tmp_path / "wrong", prompts, NEW_TOKENS, images=images).tokens
        assert all(a != b for a, b in zip(wrong, expected, strict=True))
