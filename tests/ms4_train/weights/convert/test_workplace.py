"""The hidden folder: locked, left for a later run or cleared away, and renamed when whole."""

import os
from pathlib import Path

import pytest

from ms4_train.errors import StorageError, UntrustedInputError, WeightsError
from ms4_train.model import TextConfig
from ms4_train.weights.convert.plan import plan_files
from ms4_train.weights.convert.workplace import Workplace, source_identity
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import Layout, LayoutTable, TensorSpec

HEADER = {"arguments": {"to": "hf"}, "source": [[1, 2]], "plan": "abc", "checked": False}


@pytest.fixture
def plan():
    specs = {str(number): TensorSpec("BF16", (100,)) for number in range(4)}
    return plan_files(LayoutTable(Layout.HF, ModelConfig(TextConfig())), 400, specs=specs)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def begun(out, source, plan, error=None):
    try:
        with Workplace(out, source) as place:
            place.begin(plan, HEADER)
            if error is not None:
                raise error
    except type(error or ValueError):
        pass


def test_commit_makes_the_target_and_leaves_nothing_else(tmp_path, source, plan):
    with Workplace(tmp_path / "a" / "b" / "out", source) as place:
        state = place.begin(plan, HEADER)
        assert state.done == set()
        assert place.has_journal
        assert place.bytes_on_disk() < 100_000
        place.commit()
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["out"]
    assert sorted(path.name for path in (tmp_path / "a" / "b" / "out").iterdir()) == [file.name for file in plan.files]


def test_small_files_of_an_earlier_run_do_not_slip_into_the_result(tmp_path, source, plan):
    begun(tmp_path / "out", source, plan, StorageError("full"))
    for name in ("LICENSE", ".SHA256SUMS.1.abc.tmp"):
        (tmp_path / ".out.converting" / "files" / name).write_text("of a killed run")
    with Workplace(tmp_path / "out", source) as place:
        assert place.left_over(plan, HEADER)[0] is not None
        place.commit()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [file.name for file in plan.files]


def unreadable():
    error = WeightsError("cannot be read (Input/output error).")
    error.__cause__ = OSError(5, "Input/output error")
    return error


@pytest.mark.parametrize("error", [StorageError("full"), KeyboardInterrupt(), RuntimeError("a defect"), unreadable()])
def test_what_a_later_run_can_use_is_kept(tmp_path, source, plan, error):
    begun(tmp_path / "out", source, plan, error)
    with Workplace(tmp_path / "out", source) as place:
        state, reason = place.left_over(plan, HEADER)
        assert state is not None
        assert reason is None


@pytest.mark.parametrize("error", [WeightsError("NaN"), UntrustedInputError("cut off")])
def test_bad_input_leaves_nothing_not_even_parents(tmp_path, source, plan, error):
    begun(tmp_path / "x" / "out", source, plan, error)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(("key", "words"), [("arguments", "arguments"), ("source", "source has changed"), ("plan", "version")])
def test_remains_of_something_else_are_not_used(tmp_path, source, plan, key, words):
    begun(tmp_path / "out", source, plan, StorageError("full"))
    with Workplace(tmp_path / "out", source) as place:
        state, reason = place.left_over(plan, HEADER | {key: "other"})
        assert state is None
        assert words in reason
        place.begin(plan, HEADER | {key: "other"})
        assert place.left_over(plan, HEADER | {key: "other"})[0] is not None


@pytest.mark.parametrize("damage", ["missing", "short", "header"])
def test_damaged_remains_are_not_used(tmp_path, source, plan, damage):
    begun(tmp_path / "out", source, plan, StorageError("full"))
    file = tmp_path / ".out.converting" / "files" / plan.files[1].name
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        os.truncate(file, plan.files[1].num_bytes - 2)
    else:
        file.write_bytes(bytes(plan.files[1].num_bytes))
    with Workplace(tmp_path / "out", source) as place:
        assert place.left_over(plan, HEADER) == (None, "its files are damaged")


def test_the_lock_and_a_target_that_appears_meanwhile(tmp_path, source, plan):
    with Workplace(tmp_path / "out", source) as place:
        with pytest.raises(StorageError, match="another conversion"):
            Workplace(tmp_path / "out", source).__enter__()
        late = Workplace(tmp_path / "out", source)
        place.begin(plan, HEADER)
        place.commit()
    with pytest.raises(StorageError, match="exists and holds"):
        late.__enter__()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [file.name for file in plan.files]


def test_a_link_to_an_empty_folder_is_written_where_it_leads(tmp_path, source, plan):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with Workplace(tmp_path / "out", source) as place:
        place.begin(plan, HEADER)
        place.commit()
    assert (tmp_path / "out").is_symlink()
    assert len(list((tmp_path / "disk").iterdir())) == len(plan.files)


def test_a_file_in_the_way_is_a_typed_error(tmp_path, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Workplace(tmp_path / "file" / "out", source).__enter__()


def test_identity_follows_size_time_and_inode(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"123")
    first = source_identity([path])
    assert source_identity([path]) == first
    os.utime(path, ns=(5, 5))
    assert source_identity([path]) != first
    os.utime(path, ns=(first[0][2], first[0][2]))
    assert source_identity([path]) == first
    (tmp_path / "g").write_bytes(b"456")  # put in its place with its size and time, as `cp -p` and `mv` do
    os.utime(tmp_path / "g", ns=(first[0][2], first[0][2]))
    (tmp_path / "g").rename(path)
    assert source_identity([path]) != first
    path.unlink()
    with pytest.raises(WeightsError, match=str(path)):
        source_identity([Path(path)])
