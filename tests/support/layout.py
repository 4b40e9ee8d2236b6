"""The rules of the house as functions on a folder, so that a test can run them on this tree and on small wrong ones.

Each rule takes the root of a tree and returns one line per violation, ``path[:line]: what``. ``tests/test_layout.py`` runs them all.

Not covered: what cannot be seen in the syntax tree (``getattr(torch, "lo" + "ad")``), code inside text that a test hands to a new process.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_KERNEL_LINES = 150
PACKAGES = {"ms4_train": ".", "ms4_kernels": "kernels", "ms4_recipes": "recipes", "ms4_evals": "evals"}
"""The four packages and the folder each one lies in."""

CODE_FOLDERS = ("ms4_train", "kernels", "recipes", "evals", "tests", "benchmarks")
TEXT_SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".html", ".css", ".js", ".json", ".jinja", ".sh", ".cfg", ".c", ".h", ""}


def python_files(root: Path, folders: Iterable[str] = CODE_FOLDERS) -> list[Path]:
    """Python files below the named folders, sorted, without caches."""
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py") if "__pycache__" not in path.parts)


def c_files(root: Path) -> list[Path]:
    """Sources in C below the packages."""
    return sorted(path for name, folder in PACKAGES.items() for path in (root / folder / name).rglob("*.[ch]"))


def package_files(root: Path) -> list[Path]:
    """Python files of the four packages."""
    return python_files(root, [str(Path(folder) / name) for name, folder in PACKAGES.items()])


def _parsed(root: Path, files: Iterable[Path]) -> Iterator[tuple[str, ast.Module]]:
    for path in files:
        yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def long_files(root: Path) -> list[str]:
    """Files of 400 lines and more."""
    files = [*python_files(root), *c_files(root)]
    counts = ((path, len(path.read_text(encoding="utf-8").splitlines())) for path in files)
    return [f"{path.relative_to(root)}: {count} lines" for path, count in counts if count >= MAX_FILE_LINES]


def long_functions(root: Path) -> list[str]:
    """Functions of 80 lines and more; kernels (a decorator named ``jit``) of 150 and more."""
    found = []
    for name, tree in _parsed(root, python_files(root)):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                limit = MAX_KERNEL_LINES if any(_last_name(decorator) == "jit" for decorator in node.decorator_list) else MAX_FUNCTION_LINES
                if count >= limit:
                    found.append(f"{name}:{node.lineno}: {node.name} has {count} lines")
    return found


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def unmirrored(root: Path) -> list[str]:
    """Sources without a test at the mirrored path, and tests there without a source.

    ``x/y.py`` has ``tests/x/test_y.py`` or ``tests/x/test_y_something.py``. ``__init__`` and ``__main__`` need none.
    """
    found = []
    for source in package_files(root):
        folder = root / "tests" / source.parent.relative_to(root)
        exact = folder / f"test_{source.stem}.py"
        if not source.stem.startswith("__") and not exact.is_file() and not any(folder.glob(f"test_{source.stem}_*.py")):
            found.append(f"{source.relative_to(root)}: no {exact.relative_to(root)}")
    for package, folder in PACKAGES.items():
        for test in sorted((root / "tests" / folder / package).rglob("test_*.py")):
            sources = root / test.parent.relative_to(root / "tests")
            words = test.stem.removeprefix("test_").split("_")
            if not any((sources / f"{'_'.join(words[:end])}.py").is_file() for end in range(1, len(words) + 1)):
                found.append(f"{test.relative_to(root)}: there is no source {sources.relative_to(root)}/{'_'.join(words)}.py")
    return found


def poor_docstrings(root: Path) -> list[str]:
    """Modules that do not open with what they are; sources of the packages must also say how to exercise them."""
    found = [f"{name}: no docstring" for name, tree in _parsed(root, python_files(root)) if tree.body and not ast.get_docstring(tree)]
    for name, tree in _parsed(root, package_files(root)):
        says_how = re.search(r"\bpytest\b|\bms4 |\bmake \w|python -m", ast.get_docstring(tree) or "")
        if Path(name).stem != "__init__" and ast.get_docstring(tree) and not says_how:
            found.append(f"{name}: the docstring does not say how to exercise it")
    return found


BANNED_IMPORTS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BANNED_CALLS = {
    "torch.load", "torch.serialization.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "numpy.lib.format.open_memmap", "os.system", "os.popen", "pandas.read_pickle", "pd.read_pickle",
}  # fmt: skip
BANNED_BUILTINS = {"eval", "exec"}
BANNED_TRUE_ARGUMENTS = {"shell", "trust_remote_code", "allow_pickle"}


def banned_code(root: Path, allowed: Iterable[str] = ()) -> list[str]:
    """Ways to run or load code from data: pickle, ``torch.load``, ``yaml.load``, ``eval``, ``exec``, ``shell=True`` and relatives.

    Args:
        root: the tree.
        allowed: files, relative to the root, in which they are allowed.
    """
    exempt = set(allowed)
    found = []
    for name, tree in _parsed(root, python_files(root)):
        if name not in exempt:
            for node in ast.walk(tree):
                found += [f"{name}:{getattr(node, 'lineno', 0)}: {what}" for what in _bans(node)]
    return found


def _bans(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in BANNED_IMPORTS)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if module.split(".")[0] in BANNED_IMPORTS:
            yield f"from {module} import"
        yield from (f"from {module} import {alias.name}" for alias in node.names if f"{module}.{alias.name}" in BANNED_CALLS)
    elif isinstance(node, ast.Attribute) and ast.unparse(node) in BANNED_CALLS:
        yield ast.unparse(node)
    elif isinstance(node, ast.Name) and node.id in BANNED_BUILTINS:
        yield node.id
    elif isinstance(node, ast.keyword) and node.arg in BANNED_TRUE_ARGUMENTS:
        if not (isinstance(node.value, ast.Constant) and node.value.value is False):
            yield f"{node.arg}={ast.unparse(node.value)}"
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        is_none = isinstance(node.value, ast.Constant) and node.value.value is None
        if is_none and any(_last_name(target) == "MAX_IMAGE_PIXELS" for target in targets):
            yield "MAX_IMAGE_PIXELS = None"


def machine_paths(root: Path) -> list[str]:
    """Text files that name a path of somebody's machine."""
    pattern = re.compile(r"(?<![\w.~-])/(?:root|work|farm|home|Users|mnt)/\w")
    folders = [*CODE_FOLDERS, "configs", "docs"]
    files = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    found = []
    for path in sorted([*files, *(path for path in root.glob("*") if path.is_file())]):
        if path.suffix in TEXT_SUFFIXES:
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                if match := pattern.search(line):
                    found.append(f"{path.relative_to(root)}:{number}: {match.group()}")
    return found


def top_folders(root: Path) -> list[str]:
    """Folders at the top that hold code or configuration, without those that git ignores."""
    ignored = {line.strip().rstrip("/") for line in (root / ".gitignore").read_text(encoding="utf-8").splitlines()}
    folders = (path for path in root.iterdir() if path.is_dir() and path.name not in ignored and path.suffix != ".egg-info")
    return sorted(
        path.name for path in folders if not path.name.startswith(".") and any(next(path.rglob(f"*.{end}"), None) for end in ("py", "yaml"))
    )


def unnamed_folders(root: Path, folders: Iterable[str]) -> list[str]:
    """Top folders that the README's tree does not name."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    return [f"README.md: {folder}/ is not named" for folder in folders if not re.search(rf"(?<![\w/]){re.escape(folder)}/", readme)]


def wrong_wheel(names: Iterable[str], sources: Iterable[str]) -> list[str]:
    """What a wheel holds that it should not, and the other way round.

    Args:
        names: entries of the wheel.
        sources: files of the packages, as ``ms4_train/cli/main.py``.
    """
    entries = {name for name in names if ".dist-info/" not in name}
    tops = {name.split("/")[0] for name in entries}
    found = [f"wheel: {top} should not be in it" for top in sorted(tops - set(PACKAGES))]
    found += [f"wheel: {top} is missing" for top in sorted(set(PACKAGES) - tops)]
    found += [f"wheel: {name} is missing" for name in sorted(set(sources) - entries)]
    return found
