"""What a report says in words."""

import dataclasses
from pathlib import Path

from ms4_train.weights.convert.report import ConversionReport
from ms4_train.weights.layouts.tables import Layout

PLAIN = ConversionReport(
    folder=Path("out"),
    source_layout=Layout.NATIVE_FP8,
    layout=Layout.HF,
    files=("model.safetensors",),
    source_bytes=10,
    target_bytes=12_345,
    items=100,
    items_written=100,
    restarted=None,
    is_resumed=False,
    is_checked=True,
    has_sidecar=True,
    companions=("tekken.json",),
    left_behind=(),
    skipped=(),
    seconds=1.25,
)


def test_a_plain_run_is_one_line():
    assert PLAIN.lines() == ["out: native-fp8 -> hf, 12,345 bytes in 1 file, 1.2 s"]
    assert PLAIN.worst is None
    assert PLAIN.items_kept == 0


def test_everything_else_has_a_line_of_its_own():
    report = dataclasses.replace(
        PLAIN,
        files=("a", "b"),
        is_resumed=True,
        items_written=40,
        restarted="the source has changed",
        saturated={"x": 3, "y": 1000, "z": 2},
        left_behind=("README.md",),
    )
    lines = report.lines()
    assert "2 files" in lines[0]
    assert "60 of 100 items were there" in lines[1]
    assert "the source has changed" in lines[2]
    assert "1,005 values in 3 matrices" in lines[3]
    assert "worst: y with 1,000" in lines[3]
    assert lines[4] == "not copied: README.md"
    assert report.worst == ("y", 1000)


def test_a_missing_tokenizer_is_said():
    (line,) = dataclasses.replace(PLAIN, companions=()).lines()[1:]
    assert line.startswith("no tekken.json came along")
