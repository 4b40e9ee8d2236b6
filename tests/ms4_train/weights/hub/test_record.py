"""hub.json: written and read back; anything else under that name is refused."""

import json

import pytest

from ms4_train.errors import WeightsError
from ms4_train.weights.hub.listing import RemoteFile
from ms4_train.weights.hub.record import HubRecord, read_record, write_record

FILES = {"a.json": RemoteFile("a.json", 2, "1" * 40), "b.safetensors": RemoteFile("b.safetensors", 3, "2" * 40, "3" * 64)}
RECORD = HubRecord("owner/model", None, "0" * 40, ("native", "hf"), FILES)


def test_a_record_is_read_back(tmp_path):
    assert read_record(tmp_path) is None
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path) == RECORD
    assert json.loads((tmp_path / "hub.json").read_text())["files"][1]["sha256"] == "3" * 64


def file_entry(**changes):
    return [{"name": "a", "size": 1, "blob_id": "0" * 40, "sha256": None} | changes]


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "x"},
        {"version": 2},
        {"commit": "main"},
        {"commit": None},
        {"repo": 3},
        {"revision": 3},
        {"layouts": [1]},
        {"layouts": None},
        {"files": {"a": 1}},
        {"files": file_entry(name="../a")},
        {"files": file_entry(name=3)},
        {"files": file_entry(size=-1)},
        {"files": file_entry(size="1")},
        {"files": file_entry(colour="red")},
    ],
)
def test_what_is_no_record_is_refused(tmp_path, changes):
    write_record(tmp_path, RECORD)
    path = tmp_path / "hub.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good | changes))
    with pytest.raises(WeightsError, match="not a record of a pull") as caught:
        read_record(tmp_path)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"format": NaN}', '{"format": "a", "format": "b"}'])
def test_text_that_is_no_record(tmp_path, text):
    (tmp_path / "hub.json").write_text(text)
    with pytest.raises(WeightsError, match="not a record of a pull"):
        read_record(tmp_path)
