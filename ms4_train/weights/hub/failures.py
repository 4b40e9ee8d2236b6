"""What can go wrong between here and a hub, as errors that say what to do; no message ever holds a token.

Exercise it: ``pytest tests/ms4_train/weights/hub/test_failures.py``.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from ms4_train.errors import MS4Error, WeightsError
from ms4_train.storage import is_disk_full, storage_errors

# httpx2.HTTPError: a connection refused, cut or timed out. Named through huggingface_hub, whose HTTP library has changed before.
_TRANSPORT_ERROR = HfHubHTTPError.__bases__[0]
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token of an account that may"
_MAX_SERVER_TEXT = 200


def open_hub(endpoint: str | None, token: str | None) -> HfApi:
    """A client of the hub.

    Args:
        endpoint: address of the hub; None for huggingface_hub's own (``HF_ENDPOINT``).
        token: access token; None for the one of ``HF_TOKEN`` or of ``hf auth login``, if any.

    Raises:
        WeightsError: the address or the token cannot be one.
    """
    if endpoint is not None and not re.fullmatch(r"https?://[!-~]+", endpoint):
        raise WeightsError("the hub's address must start with http:// or https://.", key=endpoint, fix="check HF_ENDPOINT.")
    # A header with such a token fails deep in the HTTP library, with the token in the message.
    used = token if token is not None else huggingface_hub.get_token()
    if used is not None and not re.fullmatch(r"[!-~]+", used):
        raise WeightsError("the access token is empty or holds spaces or other characters that no token has.", fix=f"{_LOG_IN} read.")
    return HfApi(endpoint=endpoint, token=token, library_name="ms4-train")


@contextlib.contextmanager
def hub_errors(api: HfApi, repo: str, *, revision: str | None = None, writing: bool = False, folder: Path | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises inside the block into errors that name the repository and the fix.

    Args:
        api: the client used.
        repo: the repository, named in the message.
        revision: branch, tag or commit asked for.
        writing: whether the block changes the repository.
        folder: the folder that the block writes to.

    Raises:
        WeightsError: the hub refuses, fails, cannot be reached, or answers with something else.
        StorageError: the disk is full or cannot be written.
    """
    try:
        yield
    except (MS4Error, BrokenPipeError):  # a reader of our lines that went away; the HTTP library has names of its own
        raise
    except Exception as error:
        if folder is not None and is_disk_full(error):
            with storage_errors(folder):
                raise
        found = _translated(api, error, repo, revision, writing)
        if found is not None:
            # The cause is dropped: its text may hold addresses and headers.
            raise found from None
        if folder is not None and isinstance(error, OSError):
            with storage_errors(folder):
                raise
        raise


def _translated(api: HfApi, error: BaseException, repo: str, revision: str | None, writing: bool) -> WeightsError | None:
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and not any(link is other for other in links):
        links.append(link)
        link = link.__cause__ or link.__context__
    # An upload's "error while uploading" says less than what it was raised from.
    ordered = sorted(links, key=lambda link: isinstance(link, RuntimeError))
    return next((found for link in ordered if (found := _one(api, link, repo, revision, writing))), None)


def _one(api: HfApi, error: BaseException, repo: str, revision: str | None, writing: bool) -> WeightsError | None:
    do = "write to it" if writing else "read it"
    if isinstance(error, HFValidationError):
        return _refusal(repo, "is not a name of a repository.", "write it as owner/name.")
    if isinstance(error, OfflineModeIsEnabled):
        return _refusal(repo, "cannot be reached: HF_HUB_OFFLINE is set.", "unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE).")
    if isinstance(error, LocalTokenNotFoundError):
        return _refusal(repo, "needs an access token, and there is none.", f"{_LOG_IN} {do}.")
    if isinstance(error, GatedRepoError):
        return _refusal(repo, "is gated, and this account has no access.", f"accept its terms at {_host(api)}/{repo}, then {_LOG_IN} {do}.")
    if isinstance(error, RevisionNotFoundError):
        return _refusal(repo, f"has no revision {revision or 'main'}.", "check the branch, tag or commit.")
    if isinstance(error, RepositoryNotFoundError):
        return _absent(repo, do)
    if isinstance(error, DisabledRepoError):
        return _refusal(repo, "is disabled by the hub.", "use another copy of the model.")
    if isinstance(error, RemoteEntryNotFoundError):
        return _refusal(repo, "no longer has a file that it listed.", "run the command again.")
    if isinstance(error, HfHubHTTPError):
        return _from_status(api, error, repo, do)
    if isinstance(error, json.JSONDecodeError):
        return _refusal(repo, f"{_host(api)} does not answer as a hub does.", "check HF_ENDPOINT, proxy and firewall.")
    if isinstance(error, (_TRANSPORT_ERROR, ConnectionError, TimeoutError)):
        return _refusal(repo, f"{_host(api)} cannot be reached.", "check the network and HF_ENDPOINT; the same command goes on.")
    if isinstance(error, OSError) and "consistency check failed" in str(error).lower():
        return _refusal(repo, "a file came with another size than announced.", "run the command again; check proxies on the way.")
    if isinstance(error, RuntimeError | XetDownloadError) or type(error).__module__.partition(".")[0] == "hf_xet":
        # hf_xet, the hub's storage client, which is written in Rust, has hardly any types of its own.
        return _refusal(repo, f"the transfer failed{safe_text(api, str(error))}.", "run the command again, or with HF_HUB_DISABLE_XET=1.")
    return None


def _from_status(api: HfApi, error: HfHubHTTPError, repo: str, do: str) -> WeightsError:
    status = error.response.status_code
    said = safe_text(api, error.server_message or "")
    if status == 404 or (status == 401 and not (api.token or huggingface_hub.get_token())):
        return _absent(repo, do)  # a hub says 401 to strangers whether the repository is there or not
    if status == 401:
        return _refusal(repo, "the hub does not accept the access token.", f"{_LOG_IN} {do}; an expired token must be replaced.")
    if status == 403:
        return _refusal(repo, f"the access token may not {do}{said}.", f"{_LOG_IN} {do}; fine-grained tokens need this repository.")
    if status in {409, 412}:
        return _refusal(repo, f"was changed by somebody else meanwhile{said}.", "look at it, and run the command again.")
    if status == 429:
        return _refusal(repo, "the hub's rate limit is reached.", "wait some minutes; with a token (`hf auth login`) the limit is higher.")
    if status >= 500:
        return _refusal(repo, f"the hub failed with status {status}{said}.", "run the same command later; it goes on.")
    return _refusal(repo, f"the hub refused with status {status}{said}.", "check the command; update huggingface_hub.")


def _absent(repo: str, do: str) -> WeightsError:
    return _refusal(repo, "does not exist, or is private to others.", f"check the name; for a private repository {_LOG_IN} {do}.")


def _refusal(repo: str, message: str, fix: str) -> WeightsError:
    shown = repo if repo.isprintable() else repr(repo)
    return WeightsError(message, key=shown[:200], fix=fix)


def safe_text(api: HfApi, text: str) -> str:
    """Text of a server in brackets, made safe to print: one short line, no control characters, tokens blanked."""
    text = " ".join(text.split())
    for secret in (api.token, huggingface_hub.get_token()):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    text = "".join(char for char in text if char.isprintable()).strip(" .")
    return f" ({text[:_MAX_SERVER_TEXT]})" if text else ""


def _host(api: HfApi) -> str:
    """The hub's address without a user's name and password."""
    parts = urlsplit(api.endpoint)
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.scheme}://{parts.hostname or '?'}{port}"
