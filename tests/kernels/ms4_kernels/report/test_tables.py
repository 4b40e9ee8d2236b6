"""The report says what was found, says that no time was measured, and is written whole."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest

pytest.importorskip("triton")

from rich.console import Console
from support.report_samples import product, sample

from ms4_kernels.report import __main__ as program
from ms4_kernels.report.compiler import Compiled, compile_specimen
from ms4_kernels.report.release import traffic_rows
from ms4_kernels.report.tables import NO_TIME, Report, as_markdown, print_report, write_report
from ms4_kernels.report.waste import simulate

CONSTANTS = {"BLOCK_M": "128", "KIND": "dense", "TOP_K": "4"}
GOOD = Compiled(
    "moe", "up", CONSTANTS, 8, 3, (128, 128), 256, True, False, "sm_90",
    registers=200, stack=0, spill_stores=8, spill_loads=4, shared=98304, threads=256, programs=1, counts={"wgmma": 8},
)  # fmt: skip
OTHER = dataclasses.replace(GOOD, constants=CONSTANTS | {"KIND": "fp8"}, error="ValueError: a | b")


def report(**more) -> Report:
    waste = simulate({"up": lambda rows: 128}, tokens=[2048])
    gates = {"no spills": ["moe/up spills"], "padding": []}
    settings = {"compiled": [GOOD, OTHER], "traffic": traffic_rows(), "waste": waste, "gates": gates}
    return Report("2026-01-01T00:00:00+00:00", "python -m ms4_kernels.report", {"triton": "3.7.1"}, **settings | more)


def table(markdown: str, title: str) -> list[dict[str, str]]:
    lines = markdown.split(f"## {title}")[1].split("\n## ")[0].strip().splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").replace("\\|", "/").split("|")] for line in lines if line.startswith("|")]
    assert all(len(row) == len(head) for row in rows)
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_markdown():
    text = as_markdown(report())
    assert NO_TIME in text
    assert "No time was measured" in NO_TIME
    assert "triton 3.7.1" in text
    good, other = table(text, "Kernels")
    assert (good["kernel"], good["tile"], good["form"]) == ("moe/up", "128x128", "KIND=dense")
    assert (good["registers"], good["spill B st/ld"]) == ("200", "8/4")
    assert (good["shared KiB"], good["wgmma"], good["tcgen05"], good["remark"]) == ("96", "8", "-", "")
    assert (other["form"], other["registers"], other["remark"]) == ("KIND=fp8", "", "ValueError: a / b")
    assert table(text, "Gates") == [{"gate": "no spills", "result": "1 violations"}, {"gate": "padding", "result": "holds"}]
    assert "- moe/up spills" in text
    (row,) = table(text, "Rows of the tiles")
    assert row["tile rows"] == "128"
    assert row["uniform"].startswith("2.000")


def test_terminal_says_the_same():
    out = io.StringIO()
    print_report(report(), Console(file=out, width=300))
    text = " ".join(out.getvalue().split())
    for part in ("KIND=fp8", "1 violations", "violation: moe/up spills", "No time was measured"):
        assert part in text


def test_files_are_whole(tmp_path):
    folder = tmp_path / "new" / "kernels"
    assert [path.name for path in write_report(report(), folder)] == ["report.md", "report.json"]
    found = json.loads((folder / "report.json").read_text())
    assert found["note"] == NO_TIME
    assert found["compiled"][0]["registers"] == 200
    assert {"made", "command", "versions", "traffic", "waste", "gates"} <= set(found)
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "report.md"]


def test_program(tmp_path, monkeypatch, capsys):
    """The whole command on one form; the gates that miss the shipped kernels make it end with 1."""
    only = sample(product)
    monkeypatch.setattr(program, "compile_all", lambda targets, **_: [compile_specimen(only, target) for target in targets])
    assert program.main(["--out", str(tmp_path), "--targets", "sm_90"]) == 1
    assert "ms4_kernels.report --out" in (tmp_path / "report.md").read_text()
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["versions"]["triton"]
    assert found["versions"]["ptxas for sm_90"]
    large = found["gates"]["a tile of 128x128 or larger at 256 rows per expert"]
    assert [line.split(":")[0] for line in large] == ["dh", "down", "dx", "up"]
    assert "violation: up" in capsys.readouterr().out
