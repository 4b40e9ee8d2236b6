"""A report's plots: real images of what the report holds, the same bytes each time."""

import io

import numpy as np
import pytest
from PIL import Image
from support.made_stores import made_evaluation, made_problems, made_run, write_store

from ms4_evals.graders.base import Grade
from ms4_evals.plots import report_plots
from ms4_evals.report import build_report
from ms4_evals.store.results import ResultStore

RIGHT, WRONG = (0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00)


def report_of(path, *, right=lambda problem: problem % 3 != 0, tokens=lambda problem: 1 << problem, month=True, title="CODE"):
    problems = made_problems("code", 12, lambda i: {"month": f"2024-{1 + i % 6:02d}"} if month else {})
    evaluations = [made_evaluation("code", mode, problems, 1) for mode in ("none", "high")]

    def rule(evaluation, problem, index):
        return {"thinking_tokens": tokens(problem), "answer_tokens": 0}, Grade("correct" if right(problem) else "wrong", "1")

    write_store(path, {"made": rule}, evaluations)
    with ResultStore.read(path) as store:
        report = build_report(store, made_run(), evaluations, confidence=0.95, resamples=100)
    report["tasks"][0]["title"] = title
    return report


def pixels(data):
    return np.array(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 3).astype(int)


def share_of(data, colour):
    """Pixels of about this colour."""
    return int((np.abs(pixels(data) - colour).max(axis=1) < 12).sum())


def test_three_images_the_same_each_time(tmp_path):
    report = report_of(tmp_path / "r.sqlite")
    plots = report_plots(report, dpi=40)
    assert set(plots) == {"scores", "lengths", "months"}
    assert plots == report_plots(report, dpi=40)
    for data in plots.values():
        assert len(np.unique(pixels(data), axis=0)) > 10


def test_right_and_wrong_answers_have_their_share_of_the_bars(tmp_path):
    """A third of the samples is wrong: so is a third of the bars' surface (edges and the legend's patches blur it by some percent)."""
    report = report_of(tmp_path / "a.sqlite", month=False)
    report["tasks"][0]["modes"] = report["tasks"][0]["modes"][1:]
    data = report_plots(report, dpi=60)["lengths"]
    wrong, right = share_of(data, WRONG), share_of(data, RIGHT)
    assert wrong / (wrong + right) == pytest.approx(1 / 3, abs=0.05)


def test_what_there_is_not_is_not_drawn(tmp_path):
    assert set(report_plots(report_of(tmp_path / "a.sqlite", month=False, tokens=lambda problem: 5), dpi=40)) == {"scores"}
    empty = report_of(tmp_path / "b.sqlite")
    empty["tasks"] = []
    assert report_plots(empty) == {}


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_titles_are_only_text(tmp_path):
    report = report_of(tmp_path / "r.sqlite")
    titles = ["$\\frac{", "_hidden", "a\x1b[31m\u202eb\n" * 30, "", "\N{PILE OF POO}"]
    (task,) = report["tasks"]
    report["tasks"] = [task | {"title": title, "modes": task["modes"][1:]} for title in titles]
    assert len(report_plots(report, dpi=30)) == 3
