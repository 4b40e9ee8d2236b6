"""Data files: what is written is what is read, in files of bounded size, whatever the texts hold."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms4_evals.leaderboard.shards import SHARD_BYTES, ShardWriter, TextShards, script_json, shown_text

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]>",
    "\u2028\u2029",
    '"); alert(1); ms4Data("x", "',
    "\\u003c \\",
    "\x00\x07\x1b[31m\x7f\x9b",
    "\u202e\u2066 reversed",
    "a\r\nb\rc",
    "\ufeff\U0001f600\U000e0001",
    "",
]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists))
def test_values_come_back_and_hold_nothing_that_ends_a_script(value):
    text = script_json(value)
    assert json.loads(text) == value
    assert not set(text) & {"<", "\u2028", "\u2029"}


def test_nan_is_refused_because_no_page_could_read_it():
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))


def test_shown_texts_steer_nothing():
    assert shown_text("a\r\nb\tc\n") == "a\nb\tc\n"
    shown = shown_text("".join(HOSTILE))
    assert not set(shown) & set("\x00\x07\x1b\x7f\x9b\u202e\u2066\r")


@pytest.mark.parametrize("limit", [400, 5000, SHARD_BYTES])
def test_texts_are_cut_into_files_of_bounded_size_and_joined_again(tmp_path, read_texts, limit):
    items = [{"thinking": text * repeat, "answer": text} for text in [*HOSTILE, "\x01", "plain ", "\U0001f600é"] for repeat in (0, 1, 700)]
    writer = ShardWriter(tmp_path)
    shards = TextShards(writer, "t", limit=limit)
    places = [shards.add(item) for item in items]
    shards.close()
    read = read_texts(tmp_path, "t")
    assert [read[number] for number in range(len(items))] == [{key: shown_text(value) for key, value in item.items()} for item in items]
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert max(sizes) <= limit + 60  # the frame: callback, name, brackets
    assert sum(sizes) == writer.num_bytes
    assert all(first <= last for first, last in places)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(places))


def test_an_item_lies_where_it_is_said_to_lie(tmp_path, read_data):
    shards = TextShards(ShardWriter(tmp_path), "t", limit=300)
    places = [shards.add({"answer": f"{number} " * 50}) for number in range(20)]
    shards.close()
    for number, (first, last) in enumerate(places):
        for shard in range(len(list(tmp_path.iterdir()))):
            owners = {piece[0] for piece in read_data(tmp_path / f"t-{shard}.js")[1]}
            assert (number in owners) == (first <= shard <= last)


def test_a_million_characters_make_files_of_the_usual_size(tmp_path, read_texts):
    shards = TextShards(ShardWriter(tmp_path), "t")
    first, last = shards.add({"answer": "<" * 1_000_000})
    shards.close()
    assert last - first >= 29  # six bytes each, in files of 200,000
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= SHARD_BYTES + 60
    assert read_texts(tmp_path, "t")[0]["answer"] == "<" * 1_000_000


def test_no_items_are_one_empty_file(tmp_path, read_data):
    TextShards(ShardWriter(tmp_path), "t").close()
    assert read_data(tmp_path / "t-0.js") == ("t-0", [])


def test_the_digest_is_of_names_and_contents(tmp_path):
    digests = set()
    for number, (name, value) in enumerate([("a", 1), ("b", 1), ("a", 2), ("a", 1)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        writer = ShardWriter(folder)
        writer.write(name, value)
        digests.add(writer.digest)
    assert len(digests) == 3


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", 'x")', ""])
def test_a_name_from_outside_is_a_defect(tmp_path, name):
    with pytest.raises(AssertionError):
        ShardWriter(tmp_path).write(name, 1)
