"""What may change between a checkpoint and its resume, and what may not."""

import re

import pytest

from ms4_train.checkpoint.identity import (
    FREE_IMAGE_KEYS,
    FREE_TRAINING_KEYS,
    check_same_run,
    differing_keys,
    other_conditions,
    run_identity,
)
from ms4_train.config.schema import ImagesSection, SftRun, TrainingSection
from ms4_train.errors import CheckpointError

BASE = {
    "recipe": "sft",
    "output_dir": "out",
    "seed": 3,
    "model": {"path": "model"},
    "data": {"train": [{"path": "a.jsonl"}, {"path": "b.jsonl", "weight": 2.0}]},
    "adapter": {"r": 8},
    "training": {"max_steps": 10},
}


def identity(changes=None, *, base="f1", tokenizer="t1"):
    values = {**BASE, **(changes or {})}
    return run_identity(SftRun.model_validate(values), base_fingerprint=base, tokenizer_sha256=tokenizer)


def changed(section, **keys):
    return {section: {**BASE[section], **keys}}


def test_the_same_run_is_accepted():
    assert check_same_run(identity(), identity(), folder="c") == []
    assert identity()["sha256"] == identity()["sha256"]


def test_how_quantised_weights_are_held_is_no_part_of_a_run():
    """The values are the same, so a run may be resumed on another machine's memory, and runs from before the key go on."""
    for dequantize in (None, True, False):
        assert identity(changed("model", dequantize=dequantize)) == identity()


def test_how_images_are_decoded_is_no_part_of_a_run():
    """Runs from before the keys for images have none of them, and go on."""
    assert "images" not in str(identity()["locked"]["data"])
    for free in ({"workers": 7}, {"decode_seconds": 1.5}):
        assert identity(changed("data", images=free)) == identity()
    assert set(ImagesSection.model_fields) >= FREE_IMAGE_KEYS


@pytest.mark.parametrize(
    ("current", "key"),
    [
        (identity(base="f2"), r"model.path \(was f1, is f2\)"),
        (identity(tokenizer="t2"), "model.tokenizer"),
        (identity(changed("model", dtype="float32")), "model.dtype"),
        (identity(changed("data", train=[{"path": "a.jsonl"}, {"path": "c.jsonl", "weight": 2.0}])), r"data.train\[1\].path"),
        (identity(changed("data", train=[{"path": "a.jsonl"}])), r"data.train\[1\]"),
        (identity(changed("data", max_length=64)), "data.max_length"),
        (identity(changed("data", images={"root": "pictures"})), r"data.images \(was absent, is a section\)"),
        (identity(changed("data", train=[{"path": "a.jsonl", "fields": {"images": "photos"}}, BASE["data"]["train"][1]])), "fields.images"),
        (identity(changed("adapter", r=16)), r"adapter.r \(was 8, is 16\)"),
        (identity({"adapter": None}), r"differ: adapter \(was a section, is null\)\."),
        (identity({"seed": 4}), "seed"),
        (identity(changed("training", train_router=True)), "training.train_router"),
    ],
)
def test_another_run_is_refused_by_name(current, key):
    with pytest.raises(CheckpointError, match=key):
        check_same_run(identity(), current, folder="c")
    assert current["sha256"] != identity()["sha256"]


def test_length_and_bookkeeping_are_free():
    current = identity(changed("training", max_steps=99, save_steps=1, logging_steps=7, eval_strategy="steps", gradient_checkpointing=True))
    assert check_same_run(identity(), current, folder="c") == []


def test_model_may_be_moved_and_output_renamed():
    assert check_same_run(identity(), identity({**changed("model", path="elsewhere"), "output_dir": "o2"}), folder="c") == []


def test_other_training_keys_warn():
    lines = check_same_run(identity(), identity(changed("training", learning_rate=3e-4)), folder="c")
    assert lines == ["training.learning_rate (was 1e-05, is 0.0003)"]


def test_free_keys_exist():
    assert set(TrainingSection.model_fields) >= FREE_TRAINING_KEYS


def test_differences_of_nested_values():
    assert differing_keys({"a": [1, {"b": 2}], "c": {}}, {"a": [1, {"b": 3}], "c": {"d": None}}) == [
        ("a[1].b", 2, 3),
        ("c.d", "absent", None),
    ]
    assert differing_keys({"a": None, "b": [1, 2]}, {"a": {"r": 8, "s": 1}, "b": [1]}) == [
        ("a", None, {"r": 8, "s": 1}),
        ("b[1]", 2, "absent"),
    ]


def test_long_values_are_shortened():
    with pytest.raises(CheckpointError) as caught:
        check_same_run(identity(base="sha256:" + "a" * 64), identity(base="sha256:" + "b" * 64), folder="c")
    assert len(str(caught.value)) < 320
    assert "aaa... , is" not in str(caught.value)
    assert "aaa..., is sha256:bbb" in str(caught.value)


def run_of(**training):
    return SftRun.model_validate({**BASE, "training": {**BASE["training"], **training}})


ONE = {"world_size": 1, "expert_parallel_size": 1, "zero_stage": 0}
FOUR = {"world_size": 4, "expert_parallel_size": 2, "zero_stage": 3}


@pytest.mark.parametrize(
    ("training", "mesh", "said"),
    [
        ({}, FOUR, []),
        ({"logging_steps": 7, "save_steps": 3}, FOUR, []),
        ({"max_steps": 20}, FOUR, [r"training.max_steps \(was 10, is 20\): from here on the learning rate"]),
        (
            {"gradient_accumulation_steps": 4},
            ONE,
            [r"another mesh: world_size \(was 4, is 1\), expert_parallel_size \(was 2, is 1\), zero_stage \(was 3, is 0\)\."],
        ),
        ({}, ONE, ["another mesh", r"packed rows per step \(was 4, is 1\).*accumulation_steps=4 keeps the steps"]),
        ({"per_device_train_batch_size": 2}, FOUR, [r"packed rows per step \(was 4, is 8\).*as many\.$"]),
    ],
)
def test_other_conditions_are_told(training, mesh, said):
    lines = other_conditions({"config": run_of().model_dump(mode="json"), "mesh": FOUR}, run_of(**training), mesh)
    assert len(lines) == len(said)
    assert all(re.search(pattern, line) for pattern, line in zip(said, lines, strict=True)), lines
