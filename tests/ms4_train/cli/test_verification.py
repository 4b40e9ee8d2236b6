"""Prompts for every kind of folder, sums, and the verdict's words."""

import io
import json

import pytest
from rich.console import Console
from support.layouts import hf_folder, native_folder, native_fp8_folder, reference_pieces
from support.tokenizers import tiny_tokenizer

from ms4_train.cli.verification import (
    NO_SUMS,
    PROMPTS,
    checked_sums,
    compare,
    print_report,
    prompt_texts,
    report_json,
    sequences_for,
)
from ms4_train.errors import MS4Error, TokenizerError, WeightsError
from ms4_train.weights import open_checkpoint
from ms4_train.weights.checksums import file_sha256, write_sums


def test_prompts_by_number_and_file(tmp_path):
    assert prompt_texts("2") == PROMPTS[:2]
    (tmp_path / "p.txt").write_text("one\n\n  \ntwo\n")
    assert prompt_texts(str(tmp_path / "p.txt")) == ("one", "two")
    (tmp_path / "empty.txt").write_text("\n \n")
    for wanted, words in (("0", "built-in"), ("99", "built-in"), (str(tmp_path / "empty.txt"), "no prompt"), ("absent.txt", "absent.txt")):
        with pytest.raises(MS4Error, match=words):
            prompt_texts(wanted)


def test_each_prompt_runs_in_both_modes_with_the_folders_tokenizer(tmp_path):
    native_folder(tmp_path / "a", tokenizer=True)
    sequences, what = sequences_for([tmp_path / "none", tmp_path / "a"], "2", 438)
    expected = [
        tiny_tokenizer().encode_chat([{"role": "user", "content": text}], reasoning_effort=mode)
        for text in PROMPTS[:2]
        for mode in ("none", "high")
    ]
    assert sequences == expected
    assert sequences[0] != sequences[1]
    assert "each reasoning mode" in what
    with pytest.raises(TokenizerError, match="438 tokens, but the model only 400"):
        sequences_for([tmp_path / "a"], None, 400)


def test_without_a_tokenizer_fixed_ids_stand_in_for_the_built_in_prompts_only(tmp_path):
    sequences, what = sequences_for([tmp_path], None, 100)
    assert all(0 <= token < 100 for sequence in sequences for token in sequence)
    assert "no tekken.json" in what
    (tmp_path / "p.txt").write_text("one\n")
    with pytest.raises(WeightsError, match=r"no tekken\.json"):
        sequences_for([tmp_path], str(tmp_path / "p.txt"), 100)


def test_sums_are_compared_and_their_absence_is_said(tmp_path):
    native_folder(tmp_path, shards=2)
    checkpoint = open_checkpoint(tmp_path)
    assert checked_sums(checkpoint) == NO_SUMS
    names = [path.name for path in tmp_path.iterdir()]
    write_sums(tmp_path, {name: file_sha256(tmp_path / name) for name in names})
    assert checked_sums(checkpoint) == f"{len(names)} files match SHA256SUMS"
    (tmp_path / "consolidated-stray.safetensors").write_bytes(b"")  # an engine that takes all by their names would read it
    assert checked_sums(checkpoint).endswith("SHA256SUMS; it does not name consolidated-stray.safetensors")
    (tmp_path / "consolidated-stray.safetensors").unlink()
    write_sums(tmp_path, {name: file_sha256(tmp_path / name) for name in names if not name.endswith("1-of-00002.safetensors")})
    with pytest.raises(WeightsError, match="no sum for consolidated-00001"):  # a weight file without a sum is unproven
        checked_sums(checkpoint)
    write_sums(tmp_path, {name: file_sha256(tmp_path / name) for name in names})
    file = tmp_path / "consolidated-00002-of-00002.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(WeightsError, match=r"consolidated-00002-of-00002\.safetensors.*differs"):
        checked_sums(checkpoint)


def test_the_verdict_in_words_and_json(tmp_path):
    hf_folder(tmp_path / "a")
    name = "model.layers.1.self_attn.o_proj.weight"
    native_folder(tmp_path / "b", pieces=reference_pieces() | {name: -reference_pieces()[name]})
    native_fp8_folder(tmp_path / "c")
    source = open_checkpoint(tmp_path / "a")

    def shown(result):
        stream = io.StringIO()
        report, what = compare(source, open_checkpoint(tmp_path / result), None, None)
        print_report(report, what, Console(file=stream, width=200))
        content = json.loads(json.dumps(report_json(report)), parse_constant=pytest.fail)
        assert content["passed"] == report.passed
        return stream.getvalue(), content

    text, content = shown("b")
    assert "first beyond its tolerance: layer 1, attention" in text
    assert f"its worst weight: {name} has every sign flipped" in text
    assert content["first_failing"] == "layer 1, attention"
    assert content["cause"] == {"piece": name, "words": "has every sign flipped"}
    assert len(content["blocks"]) == 6
    text, content = shown("c")
    assert "tolerance 0.25 (FP8 keeps four significant bits of a weight)" in text
    assert content["passed"] is True
    assert 0 < content["mean_kl"] <= content["max_kl"]
