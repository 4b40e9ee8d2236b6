"""Sizes, dry runs that write nothing, and the report."""

import io
import shutil

import pytest
from rich.console import Console
from support.layouts import hf_folder, native_fp8_folder, reference_pieces

from ms4_train.cli.conversion import parse_size, print_plan, print_report
from ms4_train.errors import MS4Error, StorageError, WeightsError
from ms4_train.weights.convert import convert


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("5GiB", 5 << 30), ("1.5 mb", 1_500_000), ("700", 700), ("2KiB", 2048), ("1TB", 10**12)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "five", "5 G B", "-1GB", "5XB", "0.1", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(WeightsError, match="is no size"):
        parse_size(text)


def plan(source, out, **options):
    stream = io.StringIO()
    defaults = {"to": "native", "family": "auto", "scales": None, "weight_scales": "kept", "dtype": None, "max_shard_bytes": 5 << 30}
    has_room = print_plan(source, out, **(defaults | options), console=Console(file=stream, width=200))
    return has_room, stream.getvalue()


def test_a_dry_run_says_what_the_conversion_then_does(tmp_path):
    native_fp8_folder(tmp_path / "a", tokenizer=True)
    has_room, shown = plan(tmp_path / "a", tmp_path / "b", to="hf", max_shard_bytes=100_000)
    assert has_room
    assert not (tmp_path / "b").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    report = convert(tmp_path / "a", tmp_path / "b", to="hf", max_shard_bytes=100_000, progress=None)
    assert f"{report.target_bytes:,} bytes in {len(report.files)} files" in shown
    for name in report.files:
        assert f"{name}: " in shown
        assert f"{(tmp_path / 'b' / name).stat().st_size:,} bytes" in shown
    for name in (path.name for path in (tmp_path / "b").iterdir()):
        assert name in shown


def test_no_room_is_said(tmp_path, monkeypatch):
    hf_folder(tmp_path / "a")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    has_room, shown = plan(tmp_path / "a", tmp_path / "b")
    assert not has_room
    assert "free: 10 bytes; too little" in shown


def test_a_dry_run_refuses_what_the_conversion_would(tmp_path):
    hf_folder(tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(StorageError, match="full"):
        plan(tmp_path / "a", tmp_path / "full")
    with pytest.raises(MS4Error, match="scales"):
        plan(tmp_path / "a", tmp_path / "b", to="native-fp8")


def test_the_report_counts_what_was_clipped(tmp_path):
    native_fp8_folder(tmp_path / "scales")
    grown = {name: value * (8 if name.endswith("layers.0.self_attn.o_proj.weight") else 1) for name, value in reference_pieces().items()}
    hf_folder(tmp_path / "a", pieces=grown)
    report = convert(tmp_path / "a", tmp_path / "b", to="native-fp8", scales=tmp_path / "scales", progress=None)
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=200))
    shown = stream.getvalue()
    count = sum(report.saturated.values())
    assert count > 0
    assert f"{count:,} values clipped at their scale" in shown
    assert "worst: model.layers.0.self_attn.o_proj.weight" in shown
    assert f"{report.target_bytes:,} bytes in 1 file" in shown
    assert "MB/s written" in shown
