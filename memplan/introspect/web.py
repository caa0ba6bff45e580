"""Fetching parts of files over HTTP, with the standard library alone: the one module that talks to a network.

Connections are kept alive and shared by threads; redirects are followed by hand, so that a token never leaves the host
that it is for; proxies come from the environment (`HTTPS_PROXY`, `NO_PROXY`). What went wrong is told apart: no way to
the host (`Offline`), or an answer, which the caller reads.

Not done: compression, cookies, pages, uploads.
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from memplan.errors import Offline, SourceError
from memplan.records import dataclass

_MAX_REDIRECTS = 8
_RETRIED = (429, 500, 502, 503, 504)
_WAITS_S = (0.5, 1.5)
_LONGEST_WAIT_S = 20.0
_DRAINED_BYTES = 1 << 16  # a body this short is read to its end, to keep the connection
_MOST_SKIPPED_BYTES = 1 << 26
_LONGEST_ANSWER_S = 120.0
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_Origin = tuple[str, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server said. `body` is cut at the length that was asked for; `total_bytes` is the whole file's size."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    total_bytes: int | None = None
    is_cut: bool = False


class Web:
    """A client with its idle connections. `token` is sent to `origin_url`'s host only."""

    def __init__(
        self,
        origin_url: str,
        *,
        token: str | None = None,
        timeout_s: float = 10.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._origin = _origin(_split(origin_url))
        self._token = token
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._idle: dict[_Origin, list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()

    def get(self, url: str, *, limit_bytes: int) -> Answer:
        """Return the file at `url`, at most `limit_bytes` of it.

        Raises: Offline when the host cannot be reached; SourceError when it answers nonsense.
        """
        return self._retried(url, {}, 0, limit_bytes)

    def get_range(self, url: str, offset: int, length: int) -> Answer:
        """Return up to `length` bytes from `offset`; a server that ignores ranges is read from the start.

        Raises: as `get`.
        """
        return self._retried(url, {"Range": f"bytes={offset}-{offset + length - 1}"}, offset, length)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    def _retried(self, url: str, headers: Mapping[str, str], offset: int, length: int) -> Answer:
        host = _split(url).hostname or url
        for wait_s in (*_WAITS_S, None):
            try:
                answer = self._followed(url, headers, offset, length)
            except ssl.SSLCertVerificationError as error:
                hint = "set SSL_CERT_FILE to your proxy's certificate, or use --offline"
                raise Offline(f"the certificate of {host} is not trusted: {error.verify_message}", hint=hint) from None
            except (OSError, http.client.HTTPException) as error:
                if wait_s is None or isinstance(error, (socket.gaierror, ConnectionRefusedError)):
                    raise Offline(f"cannot reach {host}: {_reason(error)}", hint=_OFFLINE_HINT) from None
                self._sleep(wait_s)
                continue
            if answer.status not in _RETRIED or wait_s is None:
                return answer
            self._sleep(max(wait_s, _asked_wait_s(answer)))
        raise AssertionError("the last attempt returns or raises")

    def _followed(self, url: str, headers: Mapping[str, str], offset: int, length: int) -> Answer:
        """One attempt, through its redirects."""
        for _ in range(_MAX_REDIRECTS):
            answer = self._once(url, headers, offset, length)
            target = answer.headers.get("location")
            if answer.status not in (301, 302, 303, 307, 308) or not target:
                return answer
            url = urljoin(url, target)
        raise SourceError(f"more than {_MAX_REDIRECTS} redirects from {_split(url).hostname}")

    def _once(self, url: str, headers: Mapping[str, str], offset: int, length: int) -> Answer:
        parts = _split(url)
        origin = _origin(parts)
        sent = {"User-Agent": "memplan", "Accept-Encoding": "identity", **headers}
        if self._token and origin == self._origin:
            sent["Authorization"] = f"Bearer {self._token}"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        proxy = _proxy(parts)
        if proxy and parts.scheme == "http":
            target, sent = url, {**sent, **_proxy_headers(proxy)}
        connection, response = self._send(origin, proxy, target, sent)
        try:
            return self._read(connection, response, url, origin, offset, length)
        except BaseException:
            connection.close()
            raise

    def _send(
        self, origin: _Origin, proxy: SplitResult | None, target: str, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a request on an idle connection, or on a new one when the other side has closed that."""
        while True:
            with self._lock:
                idle = self._idle.get(origin)
                kept = idle.pop() if idle else None
            connection = kept or self._connect(origin, proxy)
            try:
                connection.request("GET", target, headers=dict(headers))
                return connection, connection.getresponse()
            except (ConnectionError, http.client.HTTPException):
                connection.close()
                if kept is None:
                    raise
            except BaseException:
                connection.close()
                raise

    def _connect(self, origin: _Origin, proxy: SplitResult | None) -> http.client.HTTPConnection:
        scheme, host, port = origin
        if proxy is None:
            return self._open(scheme, host, port)
        if not proxy.hostname:
            raise SourceError("the proxy in the environment has no host", hint="write it as http://host:port")
        connection = self._open(proxy.scheme if scheme == "http" else "https", proxy.hostname, proxy.port or 8080)
        if scheme == "https":
            # The tunnel itself is plain; http.client starts TLS with the target inside it.
            connection.set_tunnel(host, port, headers=_proxy_headers(proxy))
        return connection

    def _open(self, scheme: str, host: str, port: int) -> http.client.HTTPConnection:
        if scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=_tls())
        return http.client.HTTPConnection(host, port, timeout=self._timeout_s)

    def _read(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        url: str,
        origin: _Origin,
        offset: int,
        length: int,
    ) -> Answer:
        headers = {name.lower(): value for name, value in response.getheaders()}
        total = _whole(headers.get("content-length")) if response.status == 200 else None
        skip, wanted = offset, length
        if response.status == 206:
            begin, total = _content_range(headers, url)
            if begin != offset:
                raise SourceError(f"{_split(url).hostname} sent another part of the file than was asked for")
            skip = 0
        elif response.status != 200:
            skip, wanted = 0, _DRAINED_BYTES
            total = _content_range(headers, url)[1] if response.status == 416 else None
        elif offset > _MOST_SKIPPED_BYTES:
            raise SourceError(f"{_split(url).hostname} does not serve parts of files")
        body = _read_up_to(response, skip + wanted)[skip:]
        rest = response.read(1) if len(body) == wanted else b""
        if response.isclosed() and not response.will_close:
            with self._lock:
                self._idle.setdefault(origin, []).append(connection)
        else:
            connection.close()
        return Answer(status=response.status, headers=headers, body=body, url=url, total_bytes=total, is_cut=bool(rest))


_OFFLINE_HINT = "check the network, or use --offline with a catalogue alias, a config.json or a downloaded model"


def _read_up_to(response: http.client.HTTPResponse, length: int) -> bytes:
    """Read `length` bytes of a body, or all of a shorter one. Raises: IncompleteRead when the connection breaks off."""
    chunks: list[bytes] = []
    have = 0
    deadline = time.monotonic() + _LONGEST_ANSWER_S
    while have < length:
        if time.monotonic() > deadline:
            raise TimeoutError
        chunk = response.read(min(length - have, 1 << 20))
        if not chunk:
            break
        chunks.append(chunk)
        have += len(chunk)
    if have < length and response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(chunks)


def _content_range(headers: Mapping[str, str], url: str) -> tuple[int | None, int | None]:
    """Return where a part begins, and the whole file's size."""
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if not match:
        raise SourceError(f"{_split(url).hostname} sent a part of a file without saying which")
    return _whole(match[1]), _whole(match[3])


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise SourceError(f"not a web address: `{url[:80]}`") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\x00-\x20\x7f]", url):
        raise SourceError(f"not a web address: `{url[:80]!a}`", hint="it must begin with https://")
    return parts


def _origin(parts: SplitResult) -> _Origin:
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for a URL; None where it is to be reached directly."""
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def _tls() -> ssl.SSLContext:
    """A verifying context; the variables that other Python clients know name a certificate file of one's own."""
    context = ssl.create_default_context()
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        bundle = os.environ.get(variable)
        if bundle and os.path.isfile(bundle):
            context.load_verify_locations(bundle)
    return context


def _asked_wait_s(answer: Answer) -> float:
    asked = _whole(answer.headers.get("retry-after"))
    return min(float(asked), _LONGEST_WAIT_S) if asked else 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection broke off"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:120]
