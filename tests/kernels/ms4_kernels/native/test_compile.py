"""Compiling: what the result's name depends on, which folders are refused, and what is said where there is no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from ms4_kernels.native import compile as native_compile
from ms4_kernels.native.compile import CompileError, cache_folder, compiled, find_compiler

needs_compiler = pytest.mark.skipif(not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="no C compiler")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of its own, and in the place of the kernels a source that takes no time."""
    (tmp_path / "kernels.c").write_text("#include <stdlib.h>\nint ms4_lanes(void) { return 8; }\n")
    monkeypatch.setattr(native_compile, "SOURCES", tmp_path)
    monkeypatch.setenv("MS4_NATIVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@needs_compiler
def test_compiles_once(folder, monkeypatch):
    first = compiled()
    assert sorted(folder.iterdir()) == sorted([first, first.with_suffix(".sha256")])  # and leaves nothing else behind
    stamp = first.stat().st_mtime_ns
    assert compiled() == first
    assert first.stat().st_mtime_ns == stamp
    monkeypatch.setattr(native_compile, "processor", lambda: "another one")
    assert compiled() != first


@needs_compiler
def test_the_library_loads_without_torch_where_it_links_openmp_itself(folder):
    code = f"import ctypes; print(ctypes.CDLL({str(compiled(own_openmp=True))!r}).ms4_lanes())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(result.stdout) == 8


@needs_compiler
def test_a_source_that_does_not_compile_is_reported(folder, tmp_path, monkeypatch):
    (tmp_path / "broken.c").write_text("int f( { return 0; }\n")
    monkeypatch.setattr(native_compile, "SOURCES", tmp_path)
    with pytest.raises(CompileError, match="error"):
        compiled("broken.c")
    assert list(folder.iterdir()) == []


@needs_compiler
def test_processes_that_start_at_once(folder, tmp_path):
    code = (
        "import sys, ctypes, pathlib; from ms4_kernels.native import compile; compile.SOURCES = pathlib.Path(sys.argv[1]);"
        "print(ctypes.CDLL(str(compile.compiled())).ms4_lanes())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["8"] * 3
    assert len(list(folder.iterdir())) == 2


@needs_compiler
@pytest.mark.parametrize("length", [0, 5000])
def test_half_a_library_is_made_again(folder, length):
    whole = compiled().read_bytes()
    compiled().write_bytes(whole[:length])
    assert compiled().read_bytes()[:4] == whole[:4]
    assert compiled().stat().st_size > length


@needs_compiler
def test_what_a_compiler_says_may_be_in_any_encoding(folder, tmp_path, monkeypatch):
    compiler = tmp_path / "strange-cc"
    compiler.write_bytes(b"#!/bin/sh\nprintf '\\377\\376 no\\n' >&2\nexit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(CompileError, match="strange-cc"):
        compiled()


def test_an_unbalanced_quote_in_cc_is_said(monkeypatch):
    monkeypatch.setenv("CC", 'gcc "')
    with pytest.raises(CompileError, match="CC=gcc"):
        find_compiler()


def test_a_user_without_home_is_told_what_to_set(monkeypatch):
    def homeless(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MS4_NATIVE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.expanduser", homeless)
    with pytest.raises(CompileError, match="set MS4_NATIVE_CACHE"):
        cache_folder()


def test_no_compiler_is_said(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(CompileError, match="no-such-compiler"):
        find_compiler()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompileError, match="cc gcc clang"):
        find_compiler()


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_to_is_refused(folder, mode):
    assert cache_folder() == folder
    folder.chmod(mode)
    with pytest.raises(CompileError, match="others may write"):
        cache_folder()


def test_a_folder_that_cannot_be_made_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MS4_NATIVE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CompileError, match="MS4_NATIVE_CACHE"):
        cache_folder()
