"""What ranks must have alike, and who differs. Ranks are threads here; whole runs of processes are in ``test_sft_same_start.py``."""

from __future__ import annotations

import socket

import pytest
from support.rank_threads import on_threads
from support.sft_files import sft_run, write_rows
from support.tokenizers import tiny_tokenizer

from ms4_train.config.schema import DataSection
from ms4_train.data import build_loader, prepare
from ms4_train.errors import ParallelError
from ms4_train.parallel import Mesh
from ms4_train.training import RunLength, same_start
from ms4_train.training.same_start import require_same_inputs, require_same_model, require_same_start

HERE = socket.gethostname()
VERSIONS = {"python": "3.12.1", "ms4-train": "1.0", "torch": "2.6", "deepspeed": None}


def refusal(raised):
    """The one text that all ranks raise."""
    assert all(isinstance(error, ParallelError) and error.on_all_ranks for error in raised), raised
    assert len({str(error) for error in raised}) == 1
    return str(raised[0])


def started(configs, monkeypatch=None, *others):
    """What comes of starting ranks with these configurations; ``others`` are the versions of rank 1."""
    if monkeypatch is not None:
        waiting = iter([VERSIONS, *(VERSIONS | other for other in others)])
        monkeypatch.setattr(same_start, "versions", lambda: dict(next(waiting)))
    return on_threads(lambda mesh: require_same_start(mesh, configs[mesh.rank]), len(configs))


def test_ranks_started_alike_pass(tmp_path):
    assert started([sft_run(tmp_path)] * 3) == [None] * 3


def test_other_settings_are_named_with_both_values(tmp_path):
    slow = sft_run(tmp_path, training={"learning_rate": 1e-9})
    rows = sft_run(tmp_path, data={"train": [{"path": "c.jsonl"}]}, adapter={"r": 3})
    assert refusal(started([sft_run(tmp_path), slow])) == (
        f"training.learning_rate: differs between ranks: 0.002 on rank 0 (host {HERE}), 1e-09 on rank 1 (host {HERE}). "
        "Fix: start every rank with the same file and overrides."
    )
    said = refusal(started([sft_run(tmp_path), rows]))
    assert said.startswith("data.train[0].path: ")
    assert "c.jsonl on rank 1" in said
    assert "adapter: null on rank 0" in said


@pytest.mark.parametrize("package", ["ms4-train", "torch", "deepspeed"])
def test_other_versions_of_packages_are_refused(tmp_path, monkeypatch, package):
    said = refusal(started([sft_run(tmp_path)] * 2, monkeypatch, {package: "0.9"}))
    assert said.startswith(f"{package}: differs between ranks: ")
    assert "0.9 on rank" in said
    assert said.endswith("Fix: install the same versions on every machine.")


def test_another_python_is_warned_of_once(tmp_path, monkeypatch, caplog):
    assert started([sft_run(tmp_path)] * 2, monkeypatch, {"python": "3.11.9"}) == [None] * 2
    (record,) = caplog.records
    assert record.message.startswith("python differs between ranks: ")
    assert "3.11.9 on rank" in record.message


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Makes what a rank has read, from rows of some seed and with other parts where they are given."""
    folder = tmp_path_factory.mktemp("rows")
    tokenizer = tiny_tokenizer(260)

    def one(train=1, validation=3, steps=6, **parts):
        paths = [folder / f"{seed}.jsonl" for seed in (train, validation)]
        for seed, path in zip((train, validation), paths, strict=True):
            write_rows(path, 12, seed)
        section = DataSection.model_validate({"train": [{"path": str(paths[0])}], "validation": [{"path": str(paths[1])}]})
        rows = prepare(section, tokenizer)
        loader = build_loader(section, tokenizer, batch_size=1, seed=5, prepared=rows)
        length = RunLength(steps, 0, steps, 2, loader.rows_per_epoch, section.max_length)
        usual = {"base_fingerprint": "sha256:a", "tokenizer_sha256": "b", "init_from": None}
        return {**usual, "rows": rows, "loader": loader, "length": length} | parts

    return one


def compared(*ranks):
    return on_threads(lambda mesh: require_same_inputs(mesh, **ranks[mesh.rank]), len(ranks))


def test_ranks_that_read_the_same_pass(read):
    assert compared(read(), read(), read()) == [None] * 3


def test_the_sum_is_of_the_rows_and_not_of_their_place(read, tmp_path):
    """Control: another folder with the same rows is the same data."""
    write_rows(tmp_path / "moved.jsonl", 12, 1)
    moved = read()
    tokenizer = tiny_tokenizer(260)
    section = moved["rows"].section.model_copy(
        update={"train": DataSection.model_validate({"train": [{"path": str(tmp_path / "moved.jsonl")}]}).train}
    )
    rows = prepare(section, tokenizer)
    moved |= {"rows": rows, "loader": build_loader(section, tokenizer, batch_size=1, seed=5, prepared=rows)}
    assert compared(read(), moved) == [None] * 2


@pytest.mark.parametrize(
    ("other", "key"),
    [
        ({"train": 2}, "data.train"),
        ({"validation": 4}, "data.validation"),
        ({"base_fingerprint": "sha256:c"}, "model.path"),
        ({"tokenizer_sha256": "c"}, "model.tokenizer"),
        ({"steps": 7}, "steps of the run"),
    ],
)
def test_a_rank_that_read_something_else_is_named(read, other, key):
    said = refusal(compared(read(), read(**other), read()))
    assert said.startswith(f"{key}: differs between ranks: ")
    assert f"on ranks 0, 2 (host {HERE})" in said
    assert f"on rank 1 (host {HERE})" in said
    assert said.endswith("Fix: give every machine the same files.")


def test_an_adapter_to_go_on_with_is_compared_by_content(read, tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(content)
    a, b, c, none = (read(init_from=str(tmp_path / name)) for name in ("a", "b", "c", "none"))
    assert compared(a, b) == [None] * 2
    assert refusal(compared(a, c)).startswith("adapter.init_from: differs between ranks: weights with SHA-256 ")
    assert f"null on rank 1 (host {HERE})" in refusal(compared(a, none))


def test_a_stream_has_no_rows_to_compare(read, tmp_path):
    """Rows that nobody has read cannot be compared; the run is not refused for that."""
    tokenizer, ranks = tiny_tokenizer(260), []
    for seed in (1, 2):
        write_rows(tmp_path / "stream.jsonl", 12, seed)
        section = DataSection.model_validate({"train": [{"path": str(tmp_path / "stream.jsonl"), "streaming": True}]})
        rows = prepare(section, tokenizer)
        loader = build_loader(section, tokenizer, batch_size=1, seed=5, prepared=rows)
        ranks.append(read(rows=rows, loader=loader, length=RunLength(6, 0, 1, 2, None, section.max_length)))
    assert compared(*ranks) == [None] * 2


def test_other_loaded_models_are_refused():
    identity = {"weights": "sha256:a", "adapter": None}
    assert on_threads(lambda mesh: require_same_model(mesh, identity)) == [None] * 2
    said = refusal(on_threads(lambda mesh: require_same_model(mesh, identity | {"adapter": mesh.rank})))
    assert said.startswith("model (adapter): differs between ranks: 0 on rank 0")
    require_same_model(Mesh(), identity)


def test_one_process_and_a_rehearsal_compare_nothing(tmp_path, monkeypatch):
    """A rehearsal stands for rank 0 of ranks that are not there: anything collective would fail."""

    def fail(*_):
        raise AssertionError("nobody is there")

    monkeypatch.setattr(Mesh, "all_gather_json", fail)
    for mesh in (Mesh(), Mesh(0, 16, expert_parallel_size=8)):
        require_same_start(mesh, sft_run(tmp_path))
        nothing = {"rows": None, "loader": None, "length": None}
        require_same_inputs(mesh, base_fingerprint="", tokenizer_sha256="", init_from=None, **nothing)  # type: ignore[arg-type]
