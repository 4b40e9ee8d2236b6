"""Publishing a model or adapter folder on a hub: checked before, in one commit, read back and compared after.

The upload is one ``create_commit``. huggingface_hub 2 has no ``upload_large_folder`` any more, and its ``upload_folder`` may split a
model over several commits; with one commit nobody ever sees half a model, the commit can be pinned, and a change by somebody else in
between is noticed. Large files travel before the commit: when a push is interrupted, the next one skips what the hub holds already.
Exercise it: ``pytest tests/ms4_train/weights/hub/test_push.py``, or ``ms4 push --help``.

Not covered: folders below the model's folder, and what a README should say.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from ms4_train.errors import WeightsError
from ms4_train.weights.checksums import Progress
from ms4_train.weights.hub.failures import hub_errors, open_hub, safe_text
from ms4_train.weights.hub.listing import REQUEST_SECONDS, LocalContent, RemoteFile, local_content, remote_files, resolve_commit
from ms4_train.weights.hub.local_model import LocalModel, check_stated_sums, read_local_model
from ms4_train.weights.hub.selection import copy_of, is_pickle
from ms4_train.weights.layouts.names import and_more

HASHING_THREADS = 4
MAX_GIT_BYTES = 64 << 20
"""Larger files are never kept by git's id: a hub takes at most some 10 MB outside its storage of large files."""
Others = Literal["refuse", "keep", "delete"]
"""What happens to model files of the repository that the push does not replace."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PushPlan:
    """What a push changes: file names by what happens to them; ``others`` are model files there that the folder does not have."""

    new: tuple[str, ...]
    replaced: tuple[str, ...]
    unchanged: tuple[str, ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class PushResult:
    """What ``push`` did. ``commit`` is None after a dry run of a repository that does not exist yet; ``pull_request`` is its address."""

    repo: str
    commit: str | None
    plan: PushPlan
    pull_request: str | None = None


def push(
    folder: str | Path,
    repo: str,
    *,
    branch: str = "main",
    private: bool = True,
    message: str | None = None,
    create_pr: bool = False,
    others: Others = "refuse",
    dry_run: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    say: Callable[[str], None] = _log.info,
    progress: Progress | None = None,
) -> PushResult:
    """Publish the files at the top of a model or adapter folder, and check that the hub has them.

    Args:
        folder: a Hugging Face or Mistral-native model, or an adapter; compared with its ``SHA256SUMS`` where it has one.
        repo: ``owner/name``; made if it is not there.
        branch: made from the main branch if it is not there.
        private: of a repository that is made now; an existing one stays as it is.
        message: first line of the commit.
        create_pr: open a pull request against the main branch instead of changing it.
        others: what to do where the repository holds model files that this folder does not have, such as shards of an earlier size or
            another layout, beside which the result would be a mixture: ``refuse``, ``keep``, or ``delete`` (in the same commit).
        dry_run: say what would change, and stop.
        token: access token that may write; default: ``HF_TOKEN`` or ``hf auth login``.
        endpoint: address of the hub; default: ``HF_ENDPOINT`` or huggingface.co.
        say: takes each line for the user.
        progress: told the bytes hashed before the upload.

    Raises:
        WeightsError: the folder is not fit, the hub refuses or cannot be reached, other model files are there, or what the hub holds
            afterwards is not what was sent.
        UntrustedInputError: a file of the folder is damaged.
    """
    if create_pr and branch != "main":
        raise WeightsError("a pull request is opened against main.", key="branch", fix="leave out --branch or --create-pr.")
    model = read_local_model(Path(folder))
    api = open_hub(endpoint, token)
    if not dry_run and not (api.token or huggingface_hub.get_token()):
        raise WeightsError("a push needs an access token, and there is none.", key=repo, fix="run `hf auth login`, or set HF_TOKEN.")
    parent, public = _head(api, repo, branch)
    remote = {} if parent is None else remote_files(api, repo, parent)
    if not dry_run and others == "refuse":
        _refuse_mixture(repo, _others(model.names, remote))  # now rather than after minutes of hashing
    contents = _hash_all(model, progress)
    plan = _plan(contents, remote)
    _describe(model, contents, plan, repo, parent, say)
    if public:
        say(f"{repo} is public: everybody can read what is pushed.")
    if others == "refuse":
        _refuse_mixture(repo, plan.others)
    if dry_run:
        return PushResult(repo, parent, plan)
    removed = plan.others if others == "delete" else ()
    if not plan.new and not plan.replaced and not removed:
        say(f"{repo} holds these files already at commit {parent}")
        return PushResult(repo, parent, plan)
    if parent is None:
        parent = _make(api, repo, branch, private)
    commit, pull_request = _commit(api, repo, branch, parent, model, contents, plan, removed, message, create_pr)
    _read_back(api, repo, commit, contents, removed)
    say(f"{repo}: commit {commit}" + (f", {pull_request}" if pull_request else ""))
    say(f"{len(contents)} files read back, sizes and sums right. To get exactly these: ms4 pull {repo} OUT --revision {commit}")
    return PushResult(repo, commit, plan, pull_request)


def _head(api: HfApi, repo: str, branch: str) -> tuple[str | None, bool]:
    """The branch's commit (None: there is no such branch or repository that this account may see), and whether all may read it."""
    with hub_errors(api, repo, revision=branch):
        try:
            # Asked here first, because "absent" is not an error of a push.
            api.model_info(repo, revision=branch, timeout=REQUEST_SECONDS)
        except RevisionNotFoundError:
            return None, not resolve_commit(api, repo, None)[1]
        except RepositoryNotFoundError as error:
            if type(error) is not RepositoryNotFoundError:  # gated: it is there
                raise
            return None, False
    commit, is_private = resolve_commit(api, repo, branch)
    return commit, not is_private


def _hash_all(model: LocalModel, progress: Progress | None) -> dict[str, LocalContent]:
    def one(name: str) -> LocalContent:
        path = model.folder / name
        return local_content(path, progress, with_git_id=path.stat().st_size <= MAX_GIT_BYTES)

    with ThreadPoolExecutor(max_workers=HASHING_THREADS) as pool:
        found = list(pool.map(one, model.names))
    contents = dict(zip(model.names, found, strict=True))
    check_stated_sums(model, {name: content.sha256 for name, content in contents.items()})
    return contents


def _others(names: Collection[str], remote: Collection[str]) -> tuple[str, ...]:
    """Model files of the repository that are not among ``names``."""
    return tuple(sorted(name for name in remote if name not in names and "/" not in name and (copy_of(name) or is_pickle(name))))


def _refuse_mixture(repo: str, others: tuple[str, ...]) -> None:
    if others:
        raise WeightsError(
            f"holds {others[0]}{and_more(others)}, which this folder does not have; together they would be a mixture.",
            key=repo,
            fix="use --others delete to remove them in the same commit, --others keep to leave them, or another --branch.",
        )


def _plan(contents: dict[str, LocalContent], remote: dict[str, RemoteFile]) -> PushPlan:
    there = {name: content.is_that_of(remote[name]) for name, content in contents.items() if name in remote}
    return PushPlan(
        new=tuple(name for name in contents if name not in there),
        replaced=tuple(name for name, same in there.items() if not same),
        unchanged=tuple(name for name, same in there.items() if same),
        others=_others(contents, remote),
    )


def _describe(
    model: LocalModel, contents: dict[str, LocalContent], plan: PushPlan, repo: str, parent: str | None, say: Callable[[str], None]
) -> None:
    say(f"{model.folder}: {', '.join(model.copies)}; {len(contents)} files, {sum(c.size for c in contents.values()):,} bytes")
    say(f"{repo}: " + (f"now at commit {parent}" if parent else "no such branch or repository that this account may see; it is made"))
    for what, names in (("new", plan.new), ("replaced", plan.replaced), ("unchanged", plan.unchanged)):
        for name in names:
            say(f"  {what:<9}  {name}  {contents[name].size:,} bytes")
    for name in plan.others:
        say(f"  only there  {name}")
    if model.left_out:
        say(f"left out: {', '.join(model.left_out)}")
    unsummed = [name for name in contents if model.stated_sums and name.endswith(".safetensors") and name not in model.stated_sums]
    if unsummed:
        say(f"SHA256SUMS does not name {unsummed[0]}{and_more(unsummed)}")


def _make(api: HfApi, repo: str, branch: str, private: bool) -> str:
    with hub_errors(api, repo, revision=branch, writing=True):
        api.create_repo(repo, private=private, exist_ok=True)
        if branch != "main":
            api.create_branch(repo, branch=branch, exist_ok=True)
    return resolve_commit(api, repo, branch)[0]


def _commit(
    api: HfApi,
    repo: str,
    branch: str,
    parent: str,
    model: LocalModel,
    contents: dict[str, LocalContent],
    plan: PushPlan,
    removed: tuple[str, ...],
    message: str | None,
    create_pr: bool,
) -> tuple[str, str | None]:
    """Upload and commit; returns the commit's hash and the pull request's address."""
    with hub_errors(api, repo, revision=branch, writing=True):
        operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(name, is_folder=False) for name in removed]
        for name in (*plan.new, *plan.replaced):
            operation = CommitOperationAdd(name, str(model.folder / name))
            # Hashed already; a file that changed since is found when the hub's list is read back.
            operation.upload_info.sha256 = bytes.fromhex(contents[name].sha256)
            operations.append(operation)
        try:
            done = api.create_commit(
                repo,
                operations,
                commit_message=message or f"Upload a model ({', '.join(model.copies)}) with ms4-train",
                revision=branch,
                create_pr=create_pr,
                parent_commit=parent,
            )
        except ValueError as error:
            if isinstance(error, HfHubHTTPError | HFValidationError | json.JSONDecodeError):
                raise
            # huggingface_hub's word for a README whose metadata the hub refuses, and for answers of another form.
            if "README" in str(error):
                readme = model.folder / "README.md"
                raise WeightsError("the hub refuses its metadata.", file=readme, fix="correct its YAML header.") from error
            raise WeightsError(f"the upload failed{safe_text(api, str(error))}.", key=repo, fix="push again.") from error
    return done.oid, done.pr_url


def _read_back(api: HfApi, repo: str, commit: str, contents: dict[str, LocalContent], removed: tuple[str, ...]) -> None:
    remote = remote_files(api, repo, commit)
    bad = [name for name, content in contents.items() if name not in remote or not content.is_that_of(remote[name])]
    bad += [name for name in removed if name in remote]
    if bad:
        there = remote.get(bad[0])
        what = "is not there" if there is None else "should be gone" if bad[0] in removed else "differs from the file that was sent"
        raise WeightsError(
            f"at commit {commit}, {bad[0]} {what}{and_more(bad)}.",
            key=repo,
            fix="push again; do not change the folder meanwhile, and look for a .gitignore in the repository.",
        )
