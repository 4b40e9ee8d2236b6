"""Style and scripts: they load nothing, parse no HTML, and fit each other."""

import fnmatch
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from ms4_evals.graders.base import VERDICTS
from ms4_evals.leaderboard.page_assets import _FOLDER, SCRIPTS, script, style

FORBIDDEN = (
    *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "Function(", "setAttribute('on", "srcdoc"),
    *("fetch(", "XMLHttpRequest", "WebSocket", "EventSource", "sendBeacon", "import(", "http:", "https:", "javascript:"),
)


def without_comments(text):
    return re.sub(r"^\s*(//|/\*\*?|\*).*$", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("word", FORBIDDEN)
def test_nothing_is_loaded_and_no_text_becomes_code(word):
    code = script().replace('"http://www.w3.org/2000/svg"', '""')  # the name of SVG, which nobody looks up
    assert word not in without_comments(code)
    assert word not in style()


def test_no_style_reaches_out():
    assert not re.search(r"url\(|@import|@font-face", style())


def test_files_are_short_and_say_what_they_are():
    names = {path.name for path in _FOLDER.iterdir()}
    assert names == {*SCRIPTS, "style.css"}
    for name in names:
        text = (_FOLDER / name).read_text(encoding="utf-8")
        assert len(text.splitlines()) < 400
        assert max(map(len, text.splitlines())) <= 140
        assert text.startswith(("// ", "/* "))


def test_every_class_of_the_style_is_one_that_the_script_gives():
    quoted = " ".join(part for pair in re.findall(r'"([^"]*)"|`([^`]*)`', script()) for part in pair)
    given = set(re.findall(r"[a-z][a-z0-9-]*", quoted)) | {f"c{number}" for number in range(7)} | {f"v-{name}" for name in VERDICTS}
    styled = set(re.findall(r"\.([a-z][a-z0-9-]*)", re.sub(r"\{[^}]*\}|/\*.*?\*/", " ", style(), flags=re.DOTALL)))
    assert styled - given == set()


def test_every_color_has_a_light_and_a_dark_form():
    variables = re.findall(r"--[a-z0-9]+: ([^;]+);", style())
    assert len(variables) >= 15
    assert all(value.startswith("light-dark(") for value in variables)


def test_the_script_is_javascript():
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to parse it; the browser's tests run it")
    subprocess.run([node, "--check", "-"], input=script(), text=True, check=True, timeout=60)


def test_the_wheel_carries_them():
    with (Path(__file__).parents[4] / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"].get("ms4_evals", [])
    for path in _FOLDER.iterdir():
        assert any(fnmatch.fnmatch(f"leaderboard/site/{path.name}", pattern) for pattern in patterns), path.name
