"""`ms4 eval run` on two and four ranks: the samples and the report of one process, byte for byte, and what is refused."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from support.distributed import ROOT, run_ranks
from support.eval_files import eval_run, stored_texts, write_model, write_ones_adapter

from ms4_recipes import evaluate
from ms4_train.config import to_yaml
from ms4_train.errors import ParallelError

MAIN = ROOT / "ms4_train" / "cli" / "main.py"
TASKS = [{"task": "arithmetic", "kind": "digits", "problems": 4, "samples": 2}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("files") / "tiny")


def on_ranks(folder, name, config, *, ranks=2, check=True):
    path = folder / f"{name}.yaml"
    path.write_text(to_yaml(config))
    return run_ranks(MAIN, "eval", "run", str(path), ranks=ranks, check=check)


def report(store):
    (path,) = store.with_name(f"{store.stem}-reports").glob("*.json")
    return path.name, path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "size"), [(2, 2), (4, 2), (2, 1)])
def test_report_and_answers_are_those_of_one_process(model, tmp_path, ranks, size):
    adapter = write_ones_adapter(model, tmp_path / "tuned" / "adapter") if ranks == 4 else None
    section = {"path": str(model), "dtype": "float32"} | ({"adapter": str(adapter)} if adapter else {})
    one = eval_run(model, tmp_path / "one.sqlite", tasks=TASKS, model=section)
    many = eval_run(model, tmp_path / "many.sqlite", tasks=TASKS, model=section, parallel={"expert_parallel_size": size})
    main, *others = on_ranks(tmp_path, "many", many, ranks=ranks)
    evaluate.run(one)
    assert stored_texts(tmp_path / "many.sqlite") == stored_texts(tmp_path / "one.sqlite")
    assert report(tmp_path / "many.sqlite") == report(tmp_path / "one.sqlite")
    assert "16 samples drawn, 0 taken from the store" in main
    assert not any("samples drawn" in text for text in others)
    again, *_ = on_ranks(tmp_path, "many", many, ranks=ranks)
    assert "0 samples drawn, 16 taken from the store" in again


@pytest.mark.slow
def test_what_cannot_be_done_ends_all_ranks_with_one_line(model, tmp_path):
    cases = {
        "tasks": ({"tasks": [{"task": "arithmetic", "kind": "nope"}]}, "nope"),
        "model": ({"model": {"path": str(tmp_path / "none")}}, "none"),
        "context": ({"tasks": TASKS, "engine": {"max_context": 20}}, "max_context"),
        "size": ({"parallel": {"expert_parallel_size": 3}}, "parallel.expert_parallel_size"),
    }
    for name, (sections, said) in cases.items():
        config = eval_run(model, tmp_path / f"{name}.sqlite", **({"parallel": {"expert_parallel_size": 2}} | sections))
        printed = on_ranks(tmp_path, name, config, check=False)
        assert said in printed[0], (name, printed)
        assert not any("Traceback" in text for text in printed), (name, printed)


@pytest.mark.slow
def test_ranks_with_another_configuration_or_model_are_refused_on_all(model, tmp_path):
    """Rank 0 alone asks and writes, but every rank computes with what it read. Control: the runs above."""
    other = write_ones_adapter(model, tmp_path / "tuned" / "adapter")
    shutil.copytree(other, tmp_path / "1" / "adapter")
    changed = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(changed, indent=7))
    shutil.copytree(other, tmp_path / "0" / "adapter")
    start = tmp_path / "start.py"
    start.write_text(
        "import os, sys\nrank = os.environ['RANK']\nos.chdir(os.path.join(sys.argv[1], rank))\n"
        f"os.execv(sys.executable, [sys.executable, {str(MAIN)!r}, 'eval', 'run', f'{{sys.argv[1]}}/{{sys.argv[2]}}-{{rank}}.yaml'])\n"
    )
    parts = {"parallel": {"expert_parallel_size": 2}, "tasks": TASKS}
    section = {"path": str(model), "dtype": "float32"}
    cases = {
        "seed": (("seed", 0), ("seed", 1), "seed: differs between ranks: 0 on rank 0 "),
        "adapter": (("model", section | {"adapter": "adapter"}),) * 2 + ("model (adapter): differs between ranks: ",),
    }
    for name, (*of_rank, said) in cases.items():
        for rank, given in enumerate(of_rank):
            config = eval_run(model, tmp_path / f"{name}.sqlite", **({"model": section} | parts | dict([given])))
            (tmp_path / f"{name}-{rank}.yaml").write_text(to_yaml(config))
        for text in run_ranks(start, str(tmp_path), name, check=False):
            assert f"error: {said}" in text, (name, text)
            assert "Traceback" not in text


def test_several_processes_are_refused_without_a_model_and_one_with_several_shares(model, tmp_path, monkeypatch):
    with pytest.raises(ParallelError) as raised:
        evaluate.run(eval_run(model, tmp_path / "r.sqlite", parallel={"expert_parallel_size": 2}))
    assert raised.value.key == "parallel.expert_parallel_size"
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    server = eval_run(model, tmp_path / "r.sqlite", model=None, endpoint={"servers": [{"base_url": "http://127.0.0.1:1/v1"}]})
    with pytest.raises(ParallelError, match="several processes") as raised:
        evaluate.run(server)
    assert raised.value.key == "endpoint"
