"""The house keeps its rules: sizes, mirrored tests, docstrings, bans, wheel, configurations, layers, paths. ``make check`` runs this too.

Every rule has a negative control: a small tree with one thing wrong, on which the rule must say so. The rules are in ``support/layout.py``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import layout

ROOT = Path(__file__).resolve().parents[1]
ALLOWED_CODE: dict[str, str] = {
    "tests/evals/ms4_evals/tasks/livecodebench/test_private_tests.py": "makes hostile pickles, and shows that pickle.loads obeys them",
}
"""Files that may use what ``banned_code`` bans -> why."""


def tree(root: Path, files: dict[str, str]) -> Path:
    """A small source tree on disk."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def function(lines: int, head: str = "def f():") -> str:
    return head + "\n" + "    x = 1\n" * (lines - 1)


def assert_nothing(found: list[str]) -> None:
    assert not found, f"{len(found)} violations\n" + "\n".join(found)


RULES = [
    layout.long_files,
    layout.long_functions,
    layout.unmirrored,
    layout.poor_docstrings,
    layout.machine_paths,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_this_tree(rule):
    assert_nothing(rule(ROOT))


def test_this_tree_runs_no_code_from_data():
    assert_nothing(layout.banned_code(ROOT, ALLOWED_CODE))
    assert [name for name in ALLOWED_CODE if not (ROOT / name).is_file()] == []


def test_the_readme_names_every_top_folder():
    folders = layout.top_folders(ROOT)
    assert {"ms4_train", "kernels", "evals", "recipes", "configs", "tests"} <= set(folders)
    assert_nothing(layout.unnamed_folders(ROOT, folders))


GOOD = {
    "ms4_train/a.py": '"""What it is. Exercise it: ``pytest``."""\n' + function(79),
    "ms4_train/__init__.py": "",
    "kernels/ms4_kernels/k.py": '"""What it is. Exercise it: ``ms4 doctor``."""\nimport triton\n\n\n@triton.jit\n'
    + function(149, "def kernel():"),
    "tests/ms4_train/test_a.py": '"""Tests."""\n' + "x = 1\n" * 398,
    "tests/kernels/ms4_kernels/test_k_sizes.py": '"""Tests."""\n',
    "tests/reliability/test_anything.py": '"""Tests across rooms need no source."""\n',
}


def test_control_a_good_tree_passes_every_rule(tmp_path):
    root = tree(tmp_path, GOOD)
    assert [line for rule in RULES for line in rule(root)] == []
    assert layout.banned_code(root) == []


BAD = [
    (layout.long_files, "tests/ms4_train/test_a.py", '"""Tests."""\n' + "x = 1\n" * 399, "400 lines"),
    (layout.long_files, "kernels/ms4_kernels/native/k.c", "int x;\n" * 400, "400 lines"),
    (layout.long_functions, "ms4_train/a.py", function(80), "f has 80 lines"),
    (layout.long_functions, "ms4_train/a.py", "class C:\n    async " + function(80).replace("\n", "\n    "), "f has 80 lines"),
    (layout.long_functions, "kernels/ms4_kernels/k.py", "@triton.jit\n" + function(150), "f has 150 lines"),
    (layout.long_functions, "ms4_train/a.py", "@cache\n" + function(149), "f has 149 lines"),
    (layout.unmirrored, "evals/ms4_evals/tasks/b.py", "", "no tests/evals/ms4_evals/tasks/test_b.py"),
    (layout.unmirrored, "ms4_train/cli/ab.py", "", "no tests/ms4_train/cli/test_ab.py"),
    (layout.unmirrored, "tests/ms4_train/test_gone.py", "", "there is no source ms4_train/gone.py"),
    (layout.unmirrored, "tests/recipes/ms4_recipes/test_gone_too.py", "", "there is no source recipes/ms4_recipes/gone_too.py"),
    (layout.poor_docstrings, "ms4_train/a.py", "x = 1\n", "no docstring"),
    (layout.poor_docstrings, "ms4_train/__init__.py", "x = 1\n", "no docstring"),
    (layout.poor_docstrings, "ms4_train/a.py", '"""What it is."""\n', "how to exercise"),
    (layout.machine_paths, "ms4_train/a.py", "x = '/ho" + "me/me/x'\n", "ms4_train/a.py:1"),
    (layout.machine_paths, "configs/train/x.yaml", "a: 1\npath: /ro" + "ot/models\n", "configs/train/x.yaml:2"),
    (layout.machine_paths, "README.md", "see /Us" + "ers/me\n", "README.md:1"),
]


@pytest.mark.parametrize(("rule", "name", "text", "message"), BAD, ids=lambda value: getattr(value, "__name__", None))
def test_controls(tmp_path, rule, name, text, message):
    found = rule(tree(tmp_path, {**GOOD, name: text}))
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import dill.source",
        "import torch\ntorch.load('x')",
        "import torch\nf = torch.load",
        "from torch import load",
        "import yaml\nyaml.load('x')",
        "yaml.unsafe_load('x')",
        "eval('1')",
        "f = exec",
        "import os\nos.system('x')",
        "run('x', shell=True)",
        "run('x', shell=flag)",
        "load_dataset('x', trust_remote_code=True)",
        "numpy.load('x', allow_pickle=True)",
        "Image.MAX_IMAGE_PIXELS = None",
        "MAX_IMAGE_PIXELS: int | None = None",
    ],
)
def test_control_bans(tmp_path, code):
    root = tree(tmp_path, {"evals/ms4_evals/a.py": f'"""x"""\n{code}\n'})
    assert len(layout.banned_code(root)) == 1, layout.banned_code(root)
    assert layout.banned_code(root, ["evals/ms4_evals/a.py"]) == []


def test_control_ordinary_code_is_not_banned(tmp_path):
    code = "model.eval()\nloader.load('x')\nrun('x', shell=False)\nsafetensors.torch.load_file('x')\n"
    code += "Image.MAX_IMAGE_PIXELS = 10\n# pickle\nx = 'eval('\n"
    assert layout.banned_code(tree(tmp_path, {"tests/a.py": code})) == []


def test_control_readme(tmp_path):
    tree(
        tmp_path, {".gitignore": "build/\n", "build/a.py": "", ".venv/b.py": "", "evals/c.py": "", "configs/d.yaml": "", "empty/.keep": ""}
    )
    assert layout.top_folders(tmp_path) == ["configs", "evals"]
    root = tree(tmp_path, {"README.md": "```\nms4_train/   the library\n  evals/ x\nmy_tests/\n```\n"})
    assert layout.unnamed_folders(root, ["ms4_train", "evals", "tests"]) == ["README.md: tests/ is not named"]


def test_the_wheel_holds_the_four_packages_and_nothing_else(tmp_path):
    # Built from a copy, so that no build folder appears in the tree.
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("ms4_train", "kernels", "recipes", "evals", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "out"), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = [path.relative_to(ROOT / folder).as_posix() for path, folder in packaged()]
    assert_nothing(layout.wrong_wheel(names, sources))
    assert any(name.endswith("licenses/LICENSE") for name in names)


def packaged():
    """(file, folder that holds its package) of every packaged file."""
    for package, folder in layout.PACKAGES.items():
        for path in layout.python_files(ROOT, [str(Path(folder) / package)]):
            yield path, folder
    for path in layout.c_files(ROOT):
        yield path, "kernels"


def test_control_wheel():
    good = [f"{package}/__init__.py" for package in layout.PACKAGES] + ["ms4_train-0.1.dist-info/RECORD"]
    assert layout.wrong_wheel(good, []) == []
    assert layout.wrong_wheel([*good, "tests/conftest.py"], []) == ["wheel: tests should not be in it"]
    assert layout.wrong_wheel(good[1:], []) == ["wheel: ms4_train is missing"]
    assert layout.wrong_wheel(good, ["ms4_train/a.py"]) == ["wheel: ms4_train/a.py is missing"]


def test_light_packages_import_nothing_heavy():
    code = (
        "import sys, ms4_train, ms4_train.cli, ms4_train.config, ms4_train.untrusted, ms4_train.storage, ms4_evals, ms4_recipes\n"
        "print([name for name in ('torch', 'pydantic', 'transformers', 'datasets', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=root)


def test_layers():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


def test_control_layers(tmp_path):
    contract = '[[tool.importlinter.contracts]]\nname = "x"\ntype = "layers"\nlayers = ["roof.top", "roof.ground"]\n'
    tree(
        tmp_path,
        {
            "pyproject.toml": '[tool.importlinter]\nroot_packages = ["roof"]\n' + contract,
            "roof/__init__.py": "",
            "roof/top.py": "from roof import ground\n",
            "roof/ground.py": "",
        },
    )
    assert lint_imports(tmp_path).returncode == 0
    (tmp_path / "roof" / "ground.py").write_text("def f():\n    from roof import top\n")
    assert lint_imports(tmp_path).returncode == 1


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_every_configuration_loads(path):
    from ms4_train.config import load_run, read_document

    kind = path.relative_to(ROOT / "configs").parts[0]
    if kind == "models":
        from ms4_train.weights.init import read_model_file

        assert read_model_file(path).num_parameters() > 0
    elif kind == "launch":
        assert read_document(path).values
    else:
        assert load_run(path).recipe == {"train": "sft", "eval": "eval"}[kind]


def test_there_are_configurations_of_each_kind():
    assert {path.relative_to(ROOT / "configs").parts[0] for path in CONFIGS} >= {"models", "train", "eval"}
