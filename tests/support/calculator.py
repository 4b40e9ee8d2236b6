"""A tiny multimodal model that reads sums in pictures, calls a calculator with them, and reports the results: the card's examples in small.

The ordinary training program overfits it, from random weights, to the turns that the examples of the model's card make
(``tests/ms4_train/serving/card_examples``), in some 25 seconds of one core. What it has to look at differs from row to row: the picture
(four boards with two sums each, two situations), the results that the tools told, and the date in the system prompt. Most rows are short
ones that teach reading and copying by themselves.
"""

from __future__ import annotations

import base64
import datetime
import functools
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ms4_recipes import sft
from ms4_recipes.digit_rows import write_rows
from ms4_recipes.steps import CONFIGS, training_config
from ms4_train.chat import ChatTokenizer
from ms4_train.weights import init_checkpoint

REPO = "mistralai/Mistral-Small-4-119B-2603"
SYSTEM_PROMPT = "You are {name}. Today is {today}, yesterday was {yesterday}."
SENTENCE_QUESTION = "Write me a sentence where every word starts with the next letter in the alphabet - start with 'a' and end with 'z'."
SENTENCE = (
    "A big cat drew every fine goose, having inked just kind lines; most never observe people quietly remaking small towns under very "
    "wide xeric yellow zones."
)
SUMS_QUESTION = "Thanks to your calculator, compute the results for the equations that involve numbers displayed in the image."
BATTLE_QUESTION = (
    "What action do you think I should take in this situation? "
    "List all the possible actions and explain why you think they are good or bad."
)
# Of equal length, and so are their results: then the model may find a result by its distance, which it learns in a fraction of the time.
SUMS = (("7*6", "81-9"), ("5*3", "20+4"), ("9+8", "99-9"), ("8*8", "30+1"))
RESULTS = (("42", "15", "17", "64"), ("72", "24", "90", "31"))
BATTLES = {"LOW": ("We are weak.", "Run: you would lose."), "FULL": ("We are strong.", "Fight: you would win.")}
_BOARDS = {"7*6": (0, 0, 0), "5*3": (20, 60, 200), "9+8": (200, 40, 40), "8*8": (20, 120, 40), "LOW": (120, 20, 120), "FULL": (90, 60, 0)}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "my_calculator",
            "description": "A calculator that can evaluate a mathematical expression.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string", "description": "The mathematical expression to evaluate."}},
                "required": ["expression"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "rewrite",
            "description": "Rewrite a given text for improved clarity",
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string", "description": "The input text to rewrite"}},
            },
        },
    },
]


def picture(*lines: str) -> str:
    """White lines on a board, as a data URL: 56 pixels wide and 28 high for each line, so two image tokens for each."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (56, 28 * len(lines)), _BOARDS[lines[0]])
    font = ImageFont.load_default(size=20)
    for row, line in enumerate(lines):
        ImageDraw.Draw(image).text((2, 28 * row + 2), line, fill="white", font=font)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def question(text: str, url: str) -> dict[str, Any]:
    """A user's message with an image, in the order of the card's examples."""
    return {"role": "user", "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]}


def system_message(day: datetime.date) -> dict[str, Any]:
    """The system prompt as the examples fill it in."""
    name, yesterday = REPO.split("/")[-1], day - datetime.timedelta(days=1)
    return {"role": "system", "content": SYSTEM_PROMPT.format(name=name, today=day, yesterday=yesterday)}


def report(results: list[str]) -> str:
    """What the model says after the calculator has answered."""
    return f"The results are {results[0]} and {results[1]}."


def calls(sums: tuple[str, ...]) -> dict[str, Any]:
    """The assistant's turn that asks for the sums."""
    functions = [{"name": "my_calculator", "arguments": json.dumps({"expression": each})} for each in sums]
    return {"role": "assistant", "tool_calls": [{"id": _id(n), "type": "function", "function": each} for n, each in enumerate(functions)]}


def told(results: list[str]) -> list[dict[str, Any]]:
    """The tools' results of ``calls``."""
    return [{"role": "tool", "tool_call_id": _id(number), "content": text} for number, text in enumerate(results)]


def rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Training rows: every sixth is a whole turn of the examples, the others are short."""
    draw = random.Random(seed)
    whole = [functools.partial(make, draw, True) for make in (_sums, _report, _battle, _sums, _report, _sums, _report, _sentence)]
    short = [functools.partial(make, draw, False) for make in (_sums, _report, _report, _sums, _report, _battle)]
    for index in range(count):
        yield whole[index // 6 % len(whole)]() if index % 6 == 5 else short[(index - index // 6) % len(short)]()


def train_calculator(folder: Path) -> Path:
    """Train the model below ``folder``; returns its own folder, with its tokenizer."""
    from ms4_train.chat import derive_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(_small_model())
    tokenizer = derive_tokenizer(folder / "tekken.json", num_ranks=2000)
    init_checkpoint(folder / "model.yaml", folder / "base", seed=0, tokenizer_file=tokenizer)
    write_rows(folder / "rows.jsonl", rows(2600, seed=0))
    overrides = {
        "output_dir": folder / "run",
        "model.path": folder / "base",
        "data.train.0.path": folder / "rows.jsonl",
        "data.validation_fraction": 0,
        "data.train_on_turns": "last",
        "data.images.workers": 1,
        "training.learning_rate": 2e-3,
        "training.train_router": True,
        "training.eval_strategy": "no",
        "training.save_strategy": "no",
        "tracking.console": False,
        "tracking.peak_flops": 1e11,
    }
    config = CONFIGS / "train" / "tiny_full_vision.yaml"
    return sft.run(training_config(config, [f"{key}={json.dumps(value, default=str).strip(chr(34))}" for key, value in overrides.items()]))


def _small_model() -> str:
    """``tiny-vision.yaml`` with two layers of eight experts and one layer of vision."""
    language, vision = (CONFIGS / "models" / "tiny-vision.yaml").read_text().split("\nvision:")
    for old, new in (
        ("num_hidden_layers: 3", "num_hidden_layers: 2"),
        ("n_routed_experts: 32", "n_routed_experts: 8"),
        ("num_experts_per_tok: 4", "num_experts_per_tok: 2"),
    ):
        assert old in language
        language = language.replace(old, new)
    assert "num_hidden_layers: 2" in vision
    return language + "\nvision:" + vision.replace("num_hidden_layers: 2", "num_hidden_layers: 1")


def _sums(draw: random.Random, is_whole: bool) -> dict[str, Any]:
    sums = draw.choice(SUMS)
    if is_whole:
        return {"messages": [_today(draw), question(SUMS_QUESTION, picture(*sums)), calls(sums)], "tools": TOOLS}
    return {"messages": [question("Sums?", picture(*sums)), calls(sums)]}


def _report(draw: random.Random, is_whole: bool) -> dict[str, Any]:
    sums, results = draw.choice(SUMS), [draw.choice(pool) for pool in RESULTS]
    before = [_today(draw), question(SUMS_QUESTION, picture(*sums))] if is_whole else [{"role": "user", "content": "Sums"}]
    return {"messages": [*before, calls(sums), *told(results), {"role": "assistant", "content": report(results)}]}


def _battle(draw: random.Random, is_whole: bool) -> dict[str, Any]:
    level = draw.choice(list(BATTLES))
    thought, advice = BATTLES[level]
    before = [_today(draw), question(BATTLE_QUESTION, picture(level))] if is_whole else [question("Action?", picture(level))]
    answer = {"role": "assistant", "reasoning_content": thought, "content": advice}
    return {"messages": [*before, answer], "reasoning_effort": "high"}


def _sentence(draw: random.Random, is_whole: bool) -> dict[str, Any]:
    assert is_whole
    return {"messages": [_today(draw), {"role": "user", "content": SENTENCE_QUESTION}, {"role": "assistant", "content": SENTENCE}]}


def _today(draw: random.Random) -> dict[str, Any]:
    return system_message(datetime.date(2026, 1, 1) + datetime.timedelta(days=draw.randrange(3650)))


def _id(number: int) -> str:
    return f"call{number:05d}"


def load_calculator(folder: Path) -> tuple[Any, ChatTokenizer]:
    """The trained model and its tokenizer."""
    import torch

    from ms4_train.weights import load_model

    return load_model(folder, dtype=torch.float32), ChatTokenizer.of_model(folder)
