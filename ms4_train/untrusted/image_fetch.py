"""Downloads one image from a listed host, with bounds on bytes and time.

The host must be listed, every redirect is checked like the first address, and the connection goes to the very network address that was
checked, so a name cannot be pointed at a private machine between check and use. Proxies of the environment are not used.

Exercise it: ``pytest tests/ms4_train/untrusted/test_image_fetch.py``.

Not covered: retries; authentication (an address with a user name is refused); the time that the system takes to look up a name.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from urllib.parse import urljoin, urlsplit

from ms4_train.errors import ImageError, ImageRefusedError

MAX_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)


def fetch_image(url: str, allowed_hosts: Sequence[str], *, max_bytes: int, timeout_s: float) -> bytes:
    """The bytes that ``url`` answers with.

    Raises:
        ImageRefusedError: the host is not listed, or it is a name for a private address.
        ImageError: no answer, another status than 200, too large, or too slow.
    """
    deadline = time.monotonic() + timeout_s
    allowed = {host.lower() for host in allowed_hosts}
    for _ in range(MAX_REDIRECTS + 1):
        result = _fetch_once(url, allowed, max_bytes, deadline)
        if isinstance(result, bytes):
            return result
        url = result
    raise ImageError(f"{_shown(url)} is redirected more than {MAX_REDIRECTS} times.", fix="give the final address.")


def _fetch_once(url: str, allowed: set[str], max_bytes: int, deadline: float) -> bytes | str:
    """The body, or the address that the answer redirects to."""
    from http.client import HTTPException

    scheme, host, port, target = _checked(url, allowed)
    sock: socket.socket | None = None
    watch: threading.Timer | None = None
    try:
        sock = _open_socket(scheme, host, _address(host, port, allowed), port, _seconds_left(deadline))
        # A server that drips bytes would outlast any timeout of single reads, so the whole exchange is cut off at the deadline.
        watch = threading.Timer(_seconds_left(deadline), _cut_off, [sock])
        watch.daemon = True
        watch.start()
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        return _exchange(sock, host, port, url, target, max_bytes)
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
            raise ImageError(f"{_shown(url)} does not answer in time.", fix="download the image, and give its path.") from None
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ImageError(f"{_shown(url)} cannot be fetched ({reason}).", fix="download the image, and give its path.") from None
    finally:
        if watch is not None:
            watch.cancel()
        if sock is not None:
            sock.close()


def _exchange(sock: socket.socket, host: str, port: int, url: str, target: str, max_bytes: int) -> bytes | str:
    from http.client import HTTPConnection

    connection = HTTPConnection(host, port)
    connection.sock = sock
    connection.request("GET", target, headers={"User-Agent": "ms4-train", "Accept": "image/*", "Accept-Encoding": "identity"})
    with connection.getresponse() as response:
        location = response.headers.get("Location")
        if response.status in _REDIRECTS and location:
            return urljoin(url, location)
        if response.status != 200:
            raise ImageError(f"{_shown(url)} answers with status {response.status}.", fix="check the address.")
        body = response.read(max_bytes + 1) if (response.length or 0) <= max_bytes else b""
        if len(body) > max_bytes or (response.length or 0) > max_bytes:
            raise ImageError(f"{_shown(url)} has more than {max_bytes:,} bytes.", fix="save it smaller.")
        if response.length:
            raise OSError("it ends too early")
        return body


def _checked(url: str, allowed: set[str]) -> tuple[str, str, int, str]:
    """Scheme, host, port and request target of an allowed address."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise ImageError(f"{_shown(url)} is not an address.", fix="correct the address.") from None
    if parts.scheme not in _PORTS or not host or any(ord(char) <= 32 or ord(char) >= 127 for char in url):
        raise ImageError(f"{_shown(url)} is not an http address.", fix="correct the address; write other letters than ASCII as %XX.")
    if parts.username is not None or parts.password is not None:
        raise ImageRefusedError("an address with a user name is not read.", fix="remove it from the address.")
    number = port or _PORTS[parts.scheme]
    listed = f"{host}:{number}" in allowed or (host in allowed and number == _PORTS[parts.scheme])
    if not listed:
        name = host if number == _PORTS[parts.scheme] else f"{host}:{number}"
        raise ImageRefusedError(
            f"the remote image {_shown(url)} is not fetched.",
            fix=f"give its bytes or a data URL, or allow {name} (ms4 serve: --allowed-image-host; training: data.images.allowed_hosts).",
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.scheme, host, number, target


def _address(host: str, port: int, allowed: set[str]) -> str:
    """The network address to connect to."""
    try:
        literal = str(ipaddress.ip_address(host))
    except ValueError:
        literal = None
    if literal is not None:
        return literal  # listed as such, or ``_checked`` would have refused it
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        if not ipaddress.ip_address(address.split("%")[0]).is_global and not {address, f"{address}:{port}"} & allowed:
            raise ImageRefusedError(
                f"the host {host} is the private address {address}.", fix="list that address itself, if it is really meant."
            )
    return found[0]


def _open_socket(scheme: str, host: str, address: str, port: int, timeout_s: float) -> socket.socket:
    raw = socket.create_connection((address, port), timeout=timeout_s)
    if scheme == "http":
        return raw
    try:
        return ssl.create_default_context().wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)
    except BaseException:
        raw.close()
        raise


def _cut_off(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _seconds_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _shown(url: str) -> str:
    return ascii(url if len(url) <= 120 else url[:117] + "...")
