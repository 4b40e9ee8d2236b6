"""The program inside the sandbox that treats a candidate as LiveCodeBench's grader does, as a text: it runs tests and compares nothing.

What it reproduces is described in ``official``. It speaks JSON lines over its standard input and output, moved to descriptors of their
own before the candidate is compiled: first the job (``code``, ``function`` or null, ``timeout``), to which it answers ``{"ready": true}``
or a failure; then one input per line, each answered by ``output`` (printed), ``value`` (returned, encoded) or a failure (``code``,
``error``). It waits for the next input until the comparison outside has let the last output pass.

Exercise it: ``pytest tests/evals/ms4_evals/graders/livecodebench/test_official_worker.py``.
"""

from __future__ import annotations

from ms4_evals.graders.livecodebench.programs import HEADER
from ms4_evals.graders.livecodebench.values import ENCODER

WORKER = (
    ENCODER
    + rf"""
HEADER = {HEADER!r}
"""
    + r'''
import ast, builtins, faulthandler, io, json, os, shutil, signal, subprocess, sys, types

sys.set_int_max_str_digits(50000)
_requests = os.fdopen(os.dup(0), "r", encoding="utf-8", newline="\n")
_replies = os.fdopen(os.dup(1), "w", encoding="ascii", newline="\n")
_null = os.open(os.devnull, os.O_RDWR)
os.dup2(_null, 0)
os.dup2(_null, 1)
_leave, _dumps, _loads, _alarm = os._exit, json.dumps, json.loads, signal.alarm

DISABLED = {
    os: """kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename renames truncate replace unlink fchmod fchown
           chmod chown chroot lchflags lchmod lchown getcwd chdir""",
    shutil: "rmtree move chown",
    subprocess: "Popen",
    builtins: "quit help",
}


class TimeoutException(Exception):
    pass


def on_alarm(signum, frame):
    print("timeout occured: alarm went off")
    raise TimeoutException


def preload(code):
    # The original has these loaded before it disables functions that they need while they load.
    words = {"numpy": "numpy", "multiprocessing": "multiprocessing.managers", "concurrent": "concurrent.futures.process",
             "asyncio": "asyncio", "open": "unittest.mock"}
    for word, name in words.items():
        if word in code:
            try:
                __import__(name)
            except Exception:
                pass


def disable():
    os.environ["OMP_NUM_THREADS"] = "1"
    for owner, names in DISABLED.items():
        for name in names.split():
            setattr(owner, name, None)
    for name in ("ipdb", "joblib", "resource", "psutil", "tkinter"):
        sys.modules[name] = None


def without_main_guard(code):
    try:
        body = ast.parse(code).body
        if isinstance(body[-1], ast.If) and ast.unparse(body[-1].test).strip() == "__name__ == '__main__'":
            return ast.unparse(body[:-1]) + "\n" + ast.unparse(body[-1].body)
    except Exception:
        pass
    return code


def as_function(code):
    try:
        body = ast.parse(code).body
        imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
        others = [node for node in body if not isinstance(node, (ast.Import, ast.ImportFrom))]
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        whole = ast.FunctionDef(name="wrapped_function", args=nothing, body=others, decorator_list=[], lineno=-1)
        return HEADER + "\n" + ast.unparse(imports) + "\n" + ast.unparse(whole)
    except Exception:
        return code


def compiled(code, timeout):
    _alarm(timeout)
    try:
        module = types.ModuleType("tmp_sol", "")
        exec(code, module.__dict__)
        return module.Solution() if "class Solution" in code else module
    finally:
        _alarm(0)


class Buffer:
    def __init__(self, text):
        self._content = text.encode("utf-8")

    def read(self, *_):
        return self._content

    def readline(self, *_):
        return self._content.split(b"\n")[0] + b"\n"


class Input:
    def __init__(self, text):
        self._text, self._rest, self.buffer = text, io.StringIO(text), Buffer(text)

    def read(self, *_):
        return self._text

    def readline(self, *arguments):
        return self._rest.readline(*arguments)

    def readlines(self, *_):
        return self._text.split("\n")

    def __getattr__(self, name):
        return getattr(self._rest, name)


def opener(text):
    made = []

    def opened(*arguments, **names):
        if not made:
            from unittest import mock
            made.append(mock.mock_open(read_data=text))
        return made[0](*arguments, **names)

    return opened


def failure(error):
    _alarm(0)
    return {"code": -3 if "timeoutexception" in repr(error).lower() else -4, "error": repr(error)[:2000]}


def printed_by(function, text, timeout):
    kept = sys.stdin, sys.stdout, builtins.open
    _alarm(timeout)
    faulthandler.enable()
    sys.stdout = output = io.StringIO()
    output.close = lambda x: 1
    try:
        builtins.open, sys.stdin = opener(text), Input(text)
        try:
            function()
        except SystemExit:
            pass
        finally:
            sys.stdin, _, builtins.open = kept
        _alarm(0)
    except Exception as error:
        return failure(error)
    finally:
        _alarm(0)
        faulthandler.disable()
        sys.stdout = kept[1]
    return {"output": output.getvalue().encode("utf-8", "replace").decode("utf-8")}


def returned_by(function, text, timeout):
    arguments = [_loads(line) for line in text.split("\n")]
    _alarm(timeout)
    faulthandler.enable()
    try:
        value = function(*arguments)
        _alarm(0)
    except Exception as error:
        return failure(error)
    finally:
        _alarm(0)
        faulthandler.disable()
    return {"value": _encode(value)}


def reply(content):
    _replies.write(_dumps(content) + "\n")
    _replies.flush()


def main():
    job = _loads(_requests.readline())
    code, name, timeout = job["code"], job["function"], job["timeout"]
    signal.signal(signal.SIGALRM, on_alarm)
    faulthandler.disable()
    preload(code)
    disable()
    try:
        code = HEADER + "\n\n" + code if name else as_function(without_main_guard(code))
        owner = compiled(code, timeout)
        function = getattr(owner, name or "wrapped_function", None)
        if function is None:
            raise TypeError("cannot unpack non-iterable NoneType object")
    except Exception as error:
        reply({"code": -4, "error": str(error)[:2000]})
        return
    reply({"ready": True})
    while line := _requests.readline():
        text = _loads(line)["input"]
        try:
            reply(returned_by(function, text, timeout) if name else printed_by(function, text, timeout))
        except Exception as error:
            reply({"code": -4, "error": str(error)[:2000], "outside": True})


try:
    main()
    _leave(0)
except BaseException:
    _leave(1)
'''
)
