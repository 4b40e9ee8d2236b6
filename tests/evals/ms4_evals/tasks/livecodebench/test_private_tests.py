"""Private tests: what the hub's rows hold is read, and nothing that a pickle asks for is done.

``pickle`` itself is the oracle of what is read, and the control that the hostile ones are.
"""

import base64
import contextlib
import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.code_rows import code_test, encoded, packed, pickled_text

from ms4_evals.graders.livecodebench.problem import CodeTest
from ms4_evals.tasks.livecodebench import private_tests
from ms4_evals.tasks.livecodebench.private_tests import TestsUnreadable, decode_tests, read_pickled_text

TESTS = [code_test("1 2\n", "3\n"), code_test('a "quoted" \\ line\r\n\u00e9\U0001f600', "")]
READ = (CodeTest("1 2\n", "3\n"), CodeTest('a "quoted" \\ line\r\n\u00e9\U0001f600', ""))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("length", [0, 1, 255, 256, 65_535, 65_536, 70_000, 300_000])
def test_every_pickle_of_a_string_is_read_as_pickle_reads_it(protocol, length):
    text = ("\u00e9x\n" * length)[:length]
    data = pickle.dumps(text, protocol=protocol)
    assert read_pickled_text(data) == pickle.loads(data) == text  # noqa: S301 - made two lines above


def test_the_pickler_written_in_python_is_read_too():
    for length in (3, 70_000):
        file = io.BytesIO()
        vars(pickle)["_Pickler"](file, protocol=4).dump("x" * length)
        assert read_pickled_text(file.getvalue()) == "x" * length


@given(st.text(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_string(text):
    assert read_pickled_text(pickle.dumps(text)) == text


@pytest.mark.parametrize("length", [0, 255, 256, 65_535, 65_536, 70_000])
def test_the_rows_of_the_tests_are_pickled_as_the_hubs_are(length):
    assert pickled_text("x" * length) == pickle.dumps("x" * length, protocol=4)


def test_both_stored_forms_are_read():
    """As LiveCodeBench's loader does it: JSON, or else ``json.loads(pickle.loads(zlib.decompress(b64decode(...))))``."""
    assert decode_tests(json.dumps(TESTS)) == READ
    assert decode_tests(encoded(TESTS)) == READ
    stored = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(TESTS, indent=1, ensure_ascii=False)))).decode()
    assert decode_tests(stored) == READ
    assert decode_tests(" [ ] ") == decode_tests(encoded([])) == ()


@pytest.mark.parametrize("text", ["x", "ab" * 3_000_000, "".join(map(str, range(400_000)))])
@pytest.mark.parametrize("pieces", [(7, 5), (1000, 16), (1 << 20, 16 << 20)])
def test_pieces_change_nothing(monkeypatch, text, pieces):
    """Highly compressible and barely compressible texts, unpacked in pieces of several sizes."""
    text = text if pieces[0] > 100 else text[:2000]
    monkeypatch.setattr(private_tests, "_PACKED_PIECE_BYTES", pieces[0])
    monkeypatch.setattr(private_tests, "_PIECE_BYTES", max(pieces[1], len(text) // 1000))
    assert decode_tests(encoded([code_test(text, "")])) == (CodeTest(text, ""),)


def test_a_published_row_has_the_opcodes_that_are_read():
    """The private tests of 1873_A, as a public file shows them. That copy is damaged in the middle, but both ends are there."""
    shown = "eJxrYJmaz8gABhEZQEZ0tVJmXkFpiZKVgpJhTF5iUnJMnpKOglJ+aQlUNNI1GCJUklpcUlJZkAoSLC5JycxTqtVRQNJuDNWOILAYhCCIMdI0Ji85MQloWjKQ"
    shown += "SE5KjMlLSgSam5SciG64nz+y2WACJESJMWYY7ibFG8T5KnaKHgAcinnp"
    data = zlib.decompressobj(wbits=-15).decompress(base64.b64decode(shown)[2:])
    (frame,) = struct.unpack("<Q", data[3:11])
    (length,) = struct.unpack("<I", data[12:16])
    assert (data[:3], data[11:12], data[-2:]) == (b"\x80\x04\x95", b"X", b"\x94.")
    assert frame == length + 7, "one frame holds the opcode, its length, the string, MEMOIZE and STOP"
    assert data[16:].startswith(b'[{"input": "1\\nabc\\n", "output": "YES\\n", "testtype": "stdin"}')


class Reduced:
    """Unpickled, it writes a file."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return (open, (self.canary, "w"))


def global_call(module, name, argument):
    """A pickle that calls ``module.name(argument)``, by the oldest opcodes."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


def hostile(canary):
    text = json.dumps(TESTS)
    return {
        "reduce": pickle.dumps(Reduced(canary)),
        "reduce, protocol 0": pickle.dumps(Reduced(canary), protocol=0),
        "inside a list": pickle.dumps([text, Reduced(canary)]),
        "string first, then the call": pickle.dumps(text)[:-1] + b"0" + global_call("os", "mkdir", canary),
        "string and call in a tuple": pickle.dumps((text, Reduced(canary))),
        "old opcodes": global_call("os", "mkdir", canary),
        "stack global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93X" + struct.pack("<I", len(str(canary))) + str(canary).encode() + b"\x85R.",
        "inst": f"(V{canary}\nios\nmkdir\n.".encode(),
        "obj": f"(cos\nmkdir\nV{canary}\no.".encode(),
        "newobj": b"\x80\x02cpathlib\nPath\n(tR(" + b"V" + str(canary).encode() + b"\nt\x81.",
        "build": b"\x80\x02}(VTESTS\nVx\nub.",
        "nested pickle": pickle.dumps(pickle.dumps(Reduced(canary))),
        "extension registry": b"\x80\x02\x82\x01.",
        "persistent id": b"Pname\n.",
        "next buffer": b"\x80\x05\x97.",
        "bytes": pickle.dumps(text.encode()),
        "number": pickle.dumps(7),
        "none": pickle.dumps(None),
    }


# Those that pickle.loads obeys: with it, the canary is there afterwards.
OBEYED = ("reduce", "reduce, protocol 0", "inside a list", "string first, then the call", "string and call in a tuple", "old opcodes")
OBEYED += ("stack global", "inst", "obj")


@pytest.mark.parametrize("name", hostile("x"))
def test_hostile_pickles_are_refused_and_do_nothing(tmp_path, name):
    canary = tmp_path / "canary"
    data = hostile(canary)[name]
    with pytest.raises(TestsUnreadable, match=r"not one string|goes on"):
        read_pickled_text(data)
    with pytest.raises(TestsUnreadable):
        decode_tests(packed(data))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", OBEYED)
def test_control_pickle_obeys_them(tmp_path, name):
    canary = tmp_path / "canary"
    pickle.loads(hostile(canary)[name])  # noqa: S301 - that is what is shown
    assert canary.exists()


def test_opcodes_without_end_and_lengths_without_bytes_are_refused():
    bad = {
        b"": "not one string",
        b"\x80\x04": "not one string",
        b"\x80\x04X": "too early",
        b"\x80\x04X\xff\xff\xff\xff": "too early",
        b"\x80\x04\x8d" + b"\xff" * 8: "too early",
        b"\x80\x04\x95" + b"\xff" * 8 + b"X\x05\0\0\0ab": "too early",
        b"\x80\x04\x8c\x02ab": "not one string",
        b"\x80\x04\x8c\x02ab\x8c\x02cd.": "not one string",
        b"\x80\x04\x8c\x02ab" + b"\x94" * 10_000_000: "too many opcodes",
        b"\x80\x04" * 5_000_000: "too many opcodes",
        b"\x80\x04.": "not one string",
        b"\x80\x04\x8c\x02ab.\x80\x04\x8c\x02cd.": "after its end",
        b"\x80\x04\x8c\x02\xff\xfe.": "not UTF-8",
        b"\x80\x04\x8c\x03\xed\xa0\x80.": "not UTF-8",
    }
    for data, message in bad.items():
        with pytest.raises(TestsUnreadable, match=message):
            read_pickled_text(data)


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_bytes_make_the_reader_raise_anything_else(data):
    for attempt in (data, b"\x80\x04\x95" + data, b"\x80\x04X" + data, pickle.dumps("x" * 20)[: len(data)]):
        with contextlib.suppress(TestsUnreadable):
            assert isinstance(read_pickled_text(attempt), str)


def test_bombs_are_refused_without_their_memory(monkeypatch):
    """Limits are lowered, so that no test needs a gigabyte; below, one at the real limit."""
    monkeypatch.setattr(private_tests, "MAX_TEXT_BYTES", 1 << 20)
    with pytest.raises(TestsUnreadable, match="unpack to more than"):
        decode_tests(packed(bytes(64 << 20)))
    assert len(decode_tests(encoded([code_test("x" * 500_000, "")]))) == 1
    monkeypatch.setattr(private_tests, "MAX_ENCODED_BYTES", 1000)
    with pytest.raises(TestsUnreadable, match="longer than"):
        decode_tests(encoded([code_test(str(list(range(5000))), "")]))


BOMB = """
import base64, resource, sys, zlib
from ms4_evals.tasks.livecodebench.private_tests import TestsUnreadable, decode_tests
machine, parts = zlib.compressobj(9), []
head = b"\\x80\\x04X\\xf0\\xff\\xff\\xff["
parts.append(machine.compress(head))
for _ in range(2200):
    parts.append(machine.compress(b"[]," * 350_000))
stored = base64.b64encode(b"".join(parts) + machine.flush()).decode()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_tests(stored)
except TestsUnreadable as reason:
    print(len(stored), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, reason)
"""


@pytest.mark.slow
def test_a_bomb_at_the_real_limit_takes_little_more_than_the_limit():
    """2.3 GB of empty lists in 3 MB: unpacked to the limit of 1 GiB and no further, and never parsed."""
    result = subprocess.run([sys.executable, "-c", BOMB], capture_output=True, text=True, timeout=120, check=True)
    stored, grown, reason = result.stdout.split(maxsplit=2)
    assert "unpack to more than" in reason
    assert int(stored) < 5 << 20
    assert int(grown) < 1400, "MiB"


def test_small_texts_do_not_grow_into_large_structures():
    """Ten megabytes of empty lists would be 600 MB of objects for a JSON parser; here the second one is refused."""
    text = "[" + "[]," * 3_000_000 + "[]]"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TestsUnreadable, match="test 1 is not a flat JSON object"):
        decode_tests(text)
    with pytest.raises(TestsUnreadable, match="more than 10,000 tests"):
        decode_tests("[" + ",".join([json.dumps(code_test("1", "2"))] * 10_001) + "]")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "too early"),
        ("nonsense!", "base64"),
        ("\u00e9", "base64"),
        (base64.b64encode(b"not zlib").decode(), "zlib"),
        (base64.b64encode(zlib.compress(b"x" * 1000)[:-6]).decode(), "zlib|too early"),
        (base64.b64encode(zlib.compress(pickled_text("[]")) + b"more").decode(), "after its end"),
        (packed(b"[]"), "not one string"),
        (packed(pickled_text("7")), "not a JSON list"),
        (packed(pickled_text("{}")), "not a JSON list"),
        ("[", "test 1"),
        ("[1]", "test 1"),
        ("[{}]", "test 1"),
        ('[{"input": "1"}]', "no input or no output"),
        ('[{"input": "1", "output": 2}]', "test 1"),
        ('[{"input": "1", "output": ["2"]}]', "test 1"),
        ('[{"input": "1", "output": {"input": "2"}}]', "test 1"),
        ('[{"input": "1", "input": "2", "output": "3"}]', "twice"),
        ('[{"input": "\\ud800", "output": "3"}]', "surrogate"),
        ('[{"input": "1\n", "output": "3"}]', "Invalid control character"),
        ('[{"input": "1", "output": "3", "testtype": "shell"}]', "unknown type"),
        ('[{"input": "1", "output": "2"},]', "test 2"),
        ('[{"input": "1", "output": "2"} {"input": "1", "output": "2"}]', "','"),
        ('[{"input": "1", "output": "2"}] more', "text after the list"),
        ('[{"input": "1", "output": "2"}', "','"),
    ],
)
def test_other_texts_are_refused_with_the_reason(text, message):
    with pytest.raises(TestsUnreadable, match=message):
        decode_tests(text)


def test_control_the_module_cannot_unpickle():
    source = Path(private_tests.__file__).read_text()
    assert "import pickle" not in source
    assert "pickle" in source, "the file is the right one"
