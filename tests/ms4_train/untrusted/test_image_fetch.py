"""Downloads from a small server on this machine that answers honestly, slowly, endlessly, or with a redirect."""

from __future__ import annotations

import contextlib
import http.server
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.images import encoded, picture

from ms4_train.errors import ImageError, ImageRefusedError
from ms4_train.untrusted import ImageReader
from ms4_train.untrusted.image_fetch import fetch_image

PNG = encoded(picture(30, 20))


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        seen.append((self.path, self.headers.get("Host")))
        with contextlib.suppress(OSError):
            _ANSWERS.get(self.path.split("?")[0], _missing)(self)


def _ok(handler: http.server.BaseHTTPRequestHandler, length: int | None = len(PNG)) -> None:
    handler.send_response(200)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()


def _png(handler: http.server.BaseHTTPRequestHandler) -> None:
    _ok(handler)
    handler.wfile.write(PNG)


def _without_length(handler: http.server.BaseHTTPRequestHandler) -> None:
    _ok(handler, None)
    handler.wfile.write(PNG)


def _endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    _ok(handler, None)
    for _ in range(1000):
        handler.wfile.write(bytes(1 << 16))


def _cut(handler: http.server.BaseHTTPRequestHandler) -> None:
    _ok(handler)
    handler.wfile.write(PNG[:100])


def _drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    _ok(handler)
    for _ in range(100):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def _drip_headers(handler: http.server.BaseHTTPRequestHandler) -> None:
    for _ in range(100):
        handler.wfile.write(b"H")
        time.sleep(0.05)


def _silent(handler: http.server.BaseHTTPRequestHandler) -> None:
    time.sleep(1.5)


def _missing(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_error(404)


def _to(target: str):
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    return answer


_ANSWERS = {
    "/a.png": _png,
    "/no-length": _without_length,
    "/endless": _endless,
    "/large": lambda handler: _ok(handler, 10**12),
    "/cut": _cut,
    "/drip": _drip,
    "/drip-headers": _drip_headers,
    "/silent": _silent,
    "/moved": _to("/a.png"),
    "/loop": _to("/loop"),
    "/elsewhere": _to("http://example.org/a.png"),
    "/metadata": _to("http://169.254.169.254/latest"),
    "/to-file": _to("file:///etc/passwd"),
}
seen: list[tuple[str, str | None]] = []


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """Address of the server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def fetch(host: str, path: str, *, timeout_s: float = 5.0, max_bytes: int = 100_000) -> bytes:
    return fetch_image(f"http://{host}{path}", [host], max_bytes=max_bytes, timeout_s=timeout_s)


@pytest.mark.parametrize("path", ["/a.png", "/a.png?size=1&x=y", "/no-length", "/moved"])
def test_listed_hosts_are_read(host: str, path: str) -> None:
    assert fetch(host, path) == PNG
    assert seen[-1][1] == host
    image = ImageReader(allowed_hosts=(host,)).read_reference(f"http://{host}{path}")
    assert (image.width, image.data) == (30, PNG)


@pytest.mark.parametrize("listed", [(), ("example.org",), ("127.0.0.1",), ("127.0.0.1:1",)])
def test_unlisted_hosts_and_ports_are_not_asked(host: str, listed: tuple[str, ...]) -> None:
    before = len(seen)
    with pytest.raises(ImageRefusedError, match="is not fetched"):
        fetch_image(f"http://{host}/a.png", listed, max_bytes=1000, timeout_s=1)
    assert len(seen) == before


@pytest.mark.parametrize("path", ["/elsewhere", "/metadata"])
def test_redirects_to_other_hosts_are_refused(host: str, path: str) -> None:
    with pytest.raises(ImageRefusedError, match="is not fetched"):
        fetch(host, path)
    with pytest.raises(ImageError):
        fetch(host, "/to-file")


@pytest.mark.parametrize(("path", "message"), [
    ("/gone", "status 404"), ("/endless", "more than 100,000 bytes"), ("/large", "more than 100,000 bytes"), ("/cut", "cannot be fetched"),
    ("/loop", "more than 3 times"),
])  # fmt: skip
def test_bad_answers(host: str, path: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        fetch(host, path)


@pytest.mark.parametrize("path", ["/drip", "/drip-headers", "/silent"])
def test_slow_answers_end_at_the_deadline(host: str, path: str) -> None:
    started = time.monotonic()
    with pytest.raises(ImageError, match="in time"):
        fetch(host, path, timeout_s=0.4)
    assert time.monotonic() - started < 1.2


def test_https_is_checked_and_bounded(host: str) -> None:
    with pytest.raises(ImageError, match="cannot be fetched"):  # the server speaks no TLS
        fetch_image(f"https://{host}/a.png", [host], max_bytes=1000, timeout_s=2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ImageError, match="in time"):
            fetch_image(f"https://{address}/a.png", [address], max_bytes=1000, timeout_s=0.4)
        assert time.monotonic() - started < 1.2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_https_with_a_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_address[1]}"
    with pytest.raises(ImageError, match="certificate verify failed"):
        fetch_image(f"https://{address}/a.png", [address], max_bytes=100_000, timeout_s=5)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
    assert fetch_image(f"https://{address}/a.png", [address], max_bytes=100_000, timeout_s=5) == PNG
    server.shutdown()
    server.server_close()


def test_a_closed_port_is_our_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ImageError, match="cannot be fetched"):
        fetch_image(f"http://{address}/a.png", [address], max_bytes=1000, timeout_s=1)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.7", "169.254.169.254", "::1", "::ffff:127.0.0.1", "0.0.0.0"])
def test_a_name_for_a_private_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, **options: [(0, 0, 0, "", ("93.184.215.14", port)), (0, 0, 0, "", (address, port))]
    )
    monkeypatch.setattr(socket, "create_connection", lambda *arguments, **options: pytest.fail("connected"))
    with pytest.raises(ImageRefusedError, match="private address"):
        fetch_image("http://images.example.org/a.png", ["images.example.org"], max_bytes=1000, timeout_s=1)


def test_the_connection_goes_to_the_address_that_was_checked(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The private address is listed beside the name, so the name may lead there; it is looked up once, and the connection names the address.
    port = int(host.split(":")[1])
    looked_up: list[str] = []

    def look_up(name: str, *arguments: object, **options: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        looked_up.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    url = f"http://my.example.org:{port}/a.png"
    assert fetch_image(url, [f"my.example.org:{port}", "127.0.0.1"], max_bytes=100_000, timeout_s=5) == PNG
    assert looked_up == ["my.example.org", "127.0.0.1"]
    assert seen[-1][1] == f"my.example.org:{port}"


@pytest.mark.parametrize(
    "url",
    [
        "http://user:password@example.org/a",
        "http:///a.png",
        "http://example.org:99999/a",
        "http://[::1/a",
        "http://example.org/a b",
        "http://example.org/\r\nX: y",
        "http://exämple.org/",
    ],
)
def test_odd_addresses_are_refused(url: str) -> None:
    with pytest.raises(ImageError):
        fetch_image(url, ["example.org"], max_bytes=1000, timeout_s=1)
