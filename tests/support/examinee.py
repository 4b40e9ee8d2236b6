"""A tiny model that sits the benchmarks: it has learnt, by the ordinary training program, to answer AIME with a box, LiveCodeBench with a
program, and questions over documents with a sentence, after a thought where it is told to think.

What it answers is always the same, so it is right by luck alone; what it is for is that every stage of the path has something to do:
thinking to separate, boxes to read, programs to extract and to run, sentences to judge. It has the architecture's whole context.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ms4_evals.tasks.base import Message, Task
from ms4_recipes import sft
from ms4_recipes.steps import CONFIGS, training_config
from ms4_train.chat import derive_tokenizer
from ms4_train.weights import init_checkpoint

BOXED = "The answer is \\boxed{70}."
PROGRAM = "```python\nprint(input())\n```"
SENTENCE = "It is in the second document."
THOUGHTS = {BOXED: "I count the bases.", PROGRAM: "One line is read and said.", SENTENCE: "I look it up."}
NUM_RANKS = 2_000
_LENGTHS = (200, 200, 200, 1500)
"""Characters of a message: most are short, and teach what to say in which mode; long ones teach to find that out from afar."""


def rows(tasks: Sequence[Task], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Chat rows: prompts of the tasks, and short stand-ins for those over documents, each in both modes."""
    draw = random.Random(seed)
    asked: dict[str, list[list[Message]]] = {BOXED: [], PROGRAM: []}
    for task in tasks:
        answer = BOXED if task.name.startswith("aime") else PROGRAM
        asked[answer] += [task.messages(problem) for problem in task.problems]
    for number in range(count):
        answer = (BOXED, SENTENCE, PROGRAM, SENTENCE)[number % 4]
        messages = _over_documents(draw, asked) if answer == SENTENCE else _clipped(draw.choice(asked[answer]), draw.choice(_LENGTHS))
        thinks = number // 4 % 2 == 1
        said: dict[str, Any] = {"role": "assistant", "content": answer}
        if thinks:
            said["reasoning_content"] = THOUGHTS[answer]
        yield {"messages": [*messages, said], "reasoning_effort": "high" if thinks else "none"}


def train_examinee(folder: Path, tasks: Sequence[Task]) -> Path:
    """Train it below ``folder``, in some 15 seconds of one core; returns its own folder, with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    text = (CONFIGS / "models" / "tiny.yaml").read_text()
    for old, new in (
        ("num_hidden_layers: 3", "num_hidden_layers: 2"),
        ("n_routed_experts: 32", "n_routed_experts: 8"),
        ("num_experts_per_tok: 4", "num_experts_per_tok: 2"),
        ("hidden_size: 128", "hidden_size: 64"),
        ("num_attention_heads: 4", "num_attention_heads: 2"),
        ("num_key_value_heads: 4", "num_key_value_heads: 2"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "model.yaml").write_text(text)
    tokenizer = derive_tokenizer(folder / "tekken.json", num_ranks=NUM_RANKS)
    init_checkpoint(folder / "model.yaml", folder / "base", seed=0, tokenizer_file=tokenizer)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(tasks, 1200, seed=0)]
    (folder / "rows.jsonl").write_text("".join(lines))
    overrides = {
        "output_dir": folder / "run",
        "model.path": folder / "base",
        "data.train.0.path": folder / "rows.jsonl",
        "data.validation_fraction": 0,
        "data.max_length": 4096,
        "training.learning_rate": 3e-3,
        "training.train_router": True,
        "training.eval_strategy": "no",
        "training.save_strategy": "no",
        "training.per_device_train_batch_size": 1,
        "training.num_train_epochs": 2,
        "tracking.console": False,
        "tracking.peak_flops": 1e11,
    }
    config = CONFIGS / "train" / "tiny_full.yaml"
    return sft.run(training_config(config, [f"{key}={json.dumps(value, default=str).strip(chr(34))}" for key, value in overrides.items()]))


def _clipped(messages: Sequence[Message], most: int) -> list[Message]:
    """Messages without their middle: what tells the tasks apart stands at both ends."""
    clipped = []
    for message in messages:
        text = message["content"]
        if len(text) > most:
            text = text[: most // 2] + text[-most // 2 :]
        clipped.append({"role": message["role"], "content": text})
    return clipped


def _over_documents(draw: random.Random, asked: dict[str, list[list[Message]]]) -> list[Message]:
    """Pieces of problems as documents, half of the time without the question: a hundred thousand tokens look like nothing that was learnt,
    and what the model says of anything that it does not know shall be this.
    """
    texts = [message["content"] for conversations in asked.values() for conversation in conversations for message in conversation]
    if draw.random() < 0.5:
        count = draw.randrange(20, 45) if draw.random() < 0.1 else draw.randrange(1, 12)
        pieces = [(text := draw.choice(texts))[(start := draw.randrange(len(text))) : start + 150] for _ in range(count)]
        return [{"role": "user", "content": " ".join(pieces)}]
    documents = [draw.choice(texts)[: draw.randrange(20, 300)] for _ in range(draw.randrange(1, 5))]
    joined = "\n\n".join(f"BEGIN DOCUMENT {number}:\n{text}\nEND DOCUMENT {number}" for number, text in enumerate(documents, start=1))
    question = draw.choice(["Which one is it?", "What is the total cost in 2023?", "Who signed the second contract?"])
    content = f"BEGIN INPUT DOCUMENTS\n\n{joined}\n\nEND INPUT DOCUMENTS\n\nAnswer the following question using the input documents "
    content += f"provided above.\n\nSTART QUESTION\n\n{question}\n\nEND QUESTION\n"
    return [{"role": "user", "content": content}]
