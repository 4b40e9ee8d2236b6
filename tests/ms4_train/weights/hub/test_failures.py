"""Every way in which a hub can refuse, fail or be absent: one line with the fix, never a traceback, never a token."""

import socket

import pytest
from huggingface_hub import constants
from support.hub_client import both_copies
from support.hub_server import READER, TOKEN

from ms4_train.errors import MS4Error, StorageError, WeightsError
from ms4_train.weights.hub import pull
from ms4_train.weights.hub.failures import hub_errors, open_hub, safe_text

NAME = "owner/model"


def refused(hub, tmp_path, **options):
    with pytest.raises(MS4Error) as caught:
        pull(options.pop("repo", NAME), tmp_path / "out", **({"endpoint": hub.endpoint} | options))
    text = str(caught.value)
    assert text.isprintable()
    assert not any(token in text for token in (TOKEN, READER, "hf_wrong"))
    assert not (tmp_path / "out" / "SHA256SUMS").exists()
    return text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ((404, "RepoNotFound", "gone"), "does not exist, or is private"),
        ((404, "", "gone"), "does not exist, or is private"),
        ((404, "RevisionNotFound", "gone"), "has no revision main"),
        ((401, "", "Invalid username or password."), "hf auth login"),
        ((403, "", f"token {TOKEN} may not"), "the access token may not read it (token *** may not)"),
        ((403, "GatedRepo", "restricted"), f"accept its terms at ENDPOINT/{NAME}"),
        ((403, "", "Access to this resource is disabled."), "disabled by the hub"),
        ((429, "", "slow down"), "rate limit"),
        ((500, "", "oh"), "failed with status 500 (oh)"),
        ((418, "", "tea\x1b[2J"), "refused with status 418 (tea[2J)"),
    ],
)
@pytest.mark.parametrize("token", [TOKEN, None], ids=["token", "no token"])
def test_answers_of_the_hub(hub, tmp_path, status, words, token):
    hub.status["/api/models/"] = status
    if token is None and "***" in words:
        return
    text = refused(hub, tmp_path, token=token)
    assert words.replace("ENDPOINT", hub.endpoint) in text
    assert not (tmp_path / "out").exists()


def test_gated_files_and_files_that_went_away(hub, tmp_path):
    hub.add(NAME, both_copies())
    hub.repos[NAME].gated = True
    assert "is gated" in refused(hub, tmp_path, token=TOKEN)
    hub.repos[NAME].gated = False
    hub.status["/resolve/"] = (404, "EntryNotFound", "gone")
    assert "no longer has a file" in refused(hub, tmp_path)


def test_tokens(hub, tmp_path, monkeypatch):
    hub.add(NAME, both_copies(), private=True)
    assert "does not accept the access token" in refused(hub, tmp_path, token="hf_wrong")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not accept the access token" in refused(hub, tmp_path)
    for bad in ("hf wrong", "hf_wröng", "hf_wrong\nX-Evil: 1"):
        assert "characters that no token has" in refused(hub, tmp_path, token=bad)


def test_no_network(hub, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://user:secret@127.0.0.1:{probe.getsockname()[1]}"
    text = refused(hub, tmp_path, endpoint=address)
    assert "cannot be reached" in text
    assert "secret" not in text
    assert "cannot be reached" in refused(hub, tmp_path, endpoint="http://no-such-host.invalid")


def test_offline_mode_is_named(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "unset HF_HUB_OFFLINE" in refused(hub, tmp_path)


def test_something_that_is_not_a_hub(hub, tmp_path):
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Portal(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>please log in to the wireless network</html>")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Portal)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    assert "does not answer as a hub" in refused(hub, tmp_path, endpoint=f"http://127.0.0.1:{server.server_address[1]}")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("repo", ["", "a/b/c", "../x", "a b/c", "owner/--x", "o/\x1b[2J"])
def test_names_that_are_no_repositories(hub, tmp_path, repo):
    assert "owner/name" in refused(hub, tmp_path, repo=repo)
    assert hub.requests == []


@pytest.mark.parametrize("endpoint", ["ftp://x", "localhost:80", "http://", "http://a b"])
def test_addresses_that_are_no_hubs(hub, tmp_path, endpoint):
    assert "http" in refused(hub, tmp_path, endpoint=endpoint)


def raised(error, **options):
    with pytest.raises(BaseException) as caught, hub_errors(open_hub("http://x", TOKEN), NAME, **options):
        raise error
    return caught.value


def test_errors_of_the_disk_and_of_the_transfer(tmp_path):
    assert isinstance(raised(OSError(28, "No space left on device"), folder=tmp_path), StorageError)
    assert isinstance(raised(PermissionError(13, "Permission denied"), folder=tmp_path), StorageError)
    assert "the transfer failed (no *** today)" in str(raised(RuntimeError(f"no {TOKEN}\ntoday")))
    outer = RuntimeError("while uploading")
    outer.__cause__ = ConnectionResetError(104, "reset")
    assert "cannot be reached" in str(raised(outer))


def test_our_own_errors_and_defects_pass(tmp_path):
    mine = WeightsError("x")
    assert raised(mine) is mine
    assert isinstance(raised(ZeroDivisionError()), ZeroDivisionError)
    assert isinstance(raised(BrokenPipeError(), folder=tmp_path), BrokenPipeError)
    assert isinstance(raised(KeyboardInterrupt()), KeyboardInterrupt)


def test_the_text_of_a_server_is_short_and_on_one_line():
    assert safe_text(open_hub("http://x", TOKEN), "a\n" * 1000) == f" ({('a ' * 100)[:200]})"
    assert safe_text(open_hub("http://x", TOKEN), "\x1b") == ""
