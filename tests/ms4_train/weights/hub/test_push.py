"""Pushing with the real huggingface_hub client to a hub on this machine, and what it holds afterwards."""

import hashlib
import json

import pytest
from support.hub_client import safetensors_bytes
from support.hub_server import READER, TOKEN

from ms4_train.errors import WeightsError
from ms4_train.weights.checksums import SUMS_FILE, write_sums
from ms4_train.weights.hub import pull, push

NAME = "owner/model"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path):
    """A model folder with two shards, small files, and things that stay here."""
    folder = tmp_path / "model"
    folder.mkdir()
    for seed, name in enumerate(SHARDS):
        (folder / name).write_bytes(safetensors_bytes(50_000, seed))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}))
    (folder / "config.json").write_text('{"model_type": "mistral4"}')
    (folder / "tekken.json").write_text("{}" * 1000)
    (folder / "README.md").write_text("# Mine\n")
    (folder / "train.py").write_text("import os\n")
    (folder / "hub.json").write_text("{}")
    (folder / ".DS_Store").write_text("")
    (folder / "logs").mkdir()
    return folder


def goes(folder):
    stays = {"train.py", "hub.json", ".DS_Store", "logs"}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in stays}


def send(hub, folder, **options):
    said = []
    result = push(folder, NAME, endpoint=hub.endpoint, say=said.append, **({"token": TOKEN} | options))
    return result, "\n".join(said)


def held(hub, branch="main"):
    """The files of the branch's last commit, without what the hub made itself."""
    repo = hub.repos[NAME]
    return {path: data for path, data in repo.commits[repo.branches[branch]].items() if path != ".gitattributes"}


def writes(hub):
    return [path for method, path, _ in hub.requests if method in {"POST", "PUT"}]


def test_push_then_pull_gives_identical_bytes(hub, folder, tmp_path):
    names = sorted(goes(folder))
    write_sums(folder, {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names})
    result, said = send(hub, folder)
    assert held(hub) == goes(folder)
    assert hub.repos[NAME].private
    assert len(hub.repos[NAME].commits) == 2  # the one that makes the repository, and ours
    assert result.commit == hub.repos[NAME].branches["main"]
    assert f"ms4 pull {NAME} OUT --revision {result.commit}" in said
    assert "left out: .DS_Store, hub.json, logs, train.py" in said
    pull(NAME, tmp_path / "back", revision=result.commit, endpoint=hub.endpoint, token=TOKEN)
    back = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir() if path.name != "hub.json"}
    assert back == goes(folder)  # SHA256SUMS included, which the pull wrote itself


@pytest.mark.parametrize(
    ("config", "weights"), [("params.json", "consolidated.safetensors"), ("adapter_config.json", "adapter_model.safetensors")]
)
def test_native_models_and_adapters(hub, tmp_path, config, weights):
    (tmp_path / config).write_text("{}")
    (tmp_path / weights).write_bytes(safetensors_bytes(10))
    send(hub, tmp_path)
    assert set(held(hub)) == {config, weights}


def test_an_equal_folder_makes_no_commit_and_a_changed_file_one(hub, folder):
    first, _ = send(hub, folder)
    again, said = send(hub, folder)
    assert again.commit == first.commit
    assert "holds these files already" in said
    (folder / "config.json").write_text('{"model_type": "mistral4", "x": 1}')
    hub.requests.clear()
    result, said = send(hub, folder)
    assert result.plan.replaced == ("config.json",)
    assert set(result.plan.unchanged) == set(goes(folder)) - {"config.json"}
    assert "replaced   config.json  34 bytes" in said
    assert hub.sent("PUT", "/upload/") == []
    assert held(hub) == goes(folder)


def test_a_dry_run_lists_what_would_change_and_changes_nothing(hub, folder):
    result, said = send(hub, folder, dry_run=True)
    assert result.commit is None
    assert hub.repos == {}
    assert f"new        {SHARDS[0]}  {(folder / SHARDS[0]).stat().st_size:,} bytes" in said
    send(hub, folder)
    (folder / "README.md").write_text("# Changed\n")
    hub.requests.clear()
    result, said = send(hub, folder, dry_run=True)
    assert result.plan.replaced == ("README.md",)
    assert writes(hub) == []


def test_model_files_of_another_layout_are_not_mixed_in_silently(hub, folder):
    theirs = {"params.json": b"{}", "consolidated.safetensors": safetensors_bytes(9), "README.md": b"old", "images/a.png": b"x"}
    hub.add(NAME, {**theirs, "pytorch_model.bin": b"\x80"})
    for dry_run in (False, True):
        with pytest.raises(WeightsError, match=r"consolidated\.safetensors \(and 2 more\).*--others delete"):
            send(hub, folder, dry_run=dry_run)
    assert writes(hub) == []
    send(hub, folder, others="keep")
    assert set(held(hub)) == set(goes(folder)) | set(theirs) | {"pytorch_model.bin"}
    send(hub, folder, others="delete")
    assert held(hub) == {**goes(folder), "images/a.png": b"x"}


def test_shards_of_another_count_are_not_left_behind_silently(hub, folder):
    hub.add(NAME, {"config.json": b"{}", "model-00003-of-00003.safetensors": safetensors_bytes(9)})
    with pytest.raises(WeightsError, match="model-00003-of-00003"):
        send(hub, folder)


def test_branches_and_pull_requests(hub, folder):
    hub.add(NAME, {"README.md": b"theirs"})
    send(hub, folder, branch="try-1")
    assert held(hub, "try-1") == goes(folder)
    assert held(hub) == {"README.md": b"theirs"}
    result, said = send(hub, folder, create_pr=True)
    assert result.pull_request == f"{hub.endpoint}/{NAME}/discussions/1"
    assert result.pull_request in said
    assert held(hub, "refs/pr/1") == goes(folder)
    assert held(hub) == {"README.md": b"theirs"}
    with pytest.raises(WeightsError, match="--branch or --create-pr"):
        send(hub, folder, create_pr=True, branch="try-1")


def test_visibility(hub, folder):
    send(hub, folder, private=False)
    assert not hub.repos[NAME].private
    (folder / "README.md").write_text("# New\n")
    _, said = send(hub, folder)
    assert "is public" in said  # an existing repository is not made private by a push; it is said
    hub.repos[NAME].private = True
    assert "is public" not in send(hub, folder)[1]


def test_what_the_hub_holds_afterwards_is_compared(hub, folder):
    hub.spoil = lambda data: data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(WeightsError, match=rf"{SHARDS[0]} differs from the file that was sent"):
        send(hub, folder)


def test_a_file_that_the_hub_ignores_is_missed(hub, folder):
    listing = hub.listing
    hub.listing = lambda entries: [entry for entry in listing(entries) if entry["path"] != "README.md"]
    with pytest.raises(WeightsError, match=r"README\.md is not there"):
        send(hub, folder)


def test_a_change_by_somebody_else_in_between_is_not_overwritten(hub, folder):
    hub.add(NAME, {"README.md": b"theirs"})
    hub.before_commit = lambda: hub.add(NAME, {"README.md": b"theirs, newer"})
    with pytest.raises(WeightsError, match="changed by somebody else"):
        send(hub, folder)
    assert held(hub) == {"README.md": b"theirs, newer"}


def test_a_push_that_failed_on_the_way_sends_only_the_rest(hub, folder):
    hub.add(NAME, {"README.md": b"theirs"})
    second = hashlib.sha256((folder / SHARDS[1]).read_bytes()).hexdigest()
    hub.status[f"/upload/{second}"] = (400, "", "no")
    with pytest.raises(WeightsError, match="status 400"):
        send(hub, folder)
    assert held(hub) == {"README.md": b"theirs"}
    hub.status.clear()
    hub.requests.clear()
    send(hub, folder)
    assert hub.sent("PUT", "/upload/") == [f"/upload/{second}"]
    assert held(hub) == goes(folder)


def test_tokens(hub, folder, monkeypatch):
    with pytest.raises(WeightsError, match="a push needs an access token"):
        send(hub, folder, token=None)
    assert hub.requests == []
    with pytest.raises(WeightsError, match="does not accept the access token"):
        send(hub, folder, token="hf_wrong")
    hub.add(NAME, {"README.md": b"theirs"})
    with pytest.raises(WeightsError, match="may not write") as caught:
        send(hub, folder, token=READER)
    assert READER not in str(caught.value)  # although this hub sends it back in its message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    send(hub, folder, token=None)
    assert held(hub) == goes(folder)


def test_a_refused_readme_is_named(hub, folder):
    (folder / "README.md").write_text("---\nnot: [valid\n---\n")
    with pytest.raises(WeightsError, match=r"README.md: the hub refuses its metadata"):
        send(hub, folder)


def test_a_folder_that_differs_from_its_sums_is_not_sent(hub, folder):
    write_sums(folder, dict.fromkeys(SHARDS, "0" * 64))
    with pytest.raises(WeightsError, match=rf"{SHARDS[0]}: differs from {SUMS_FILE} \(and 1 more\)"):
        send(hub, folder)
    assert writes(hub) == []
