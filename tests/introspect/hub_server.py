"""A hub on this machine: a real HTTP server with repositories, ranges, redirects to another port, and bad manners."""

from __future__ import annotations

import json
import re
import select
import socket
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """Files by name, and what the hub says about access."""

    files: dict[str, bytes] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", COMMIT)
    gated: bool = False
    token: str | None = None


@dataclass
class Manners:
    """How the server behaves. `failures` are statuses to answer first, one per request."""

    failures: list[int] = field(default_factory=list)
    retry_after: str | None = None
    redirect: bool = False
    ignores_ranges: bool = False
    breaks_off: bool = False
    wrong_range: bool = False
    says_nothing: bool = False
    garbage: bytes | None = None
    closes: bool = False
    bad_token: bool = False


@dataclass
class Seen:
    """One request: where it went, and what was sent along."""

    server: str
    path: str
    authorization: str | None
    range: str | None
    connection: int


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that hang up are part of the tests."""


class HubServer:
    """The hub and its content server, each on a port of its own."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.manners = Manners()
        self.seen: list[Seen] = []
        self._servers = [self._start("hub"), self._start("content")]
        self.url, self.content_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def encrypt(self, certificate: Path, key: Path) -> None:
        """Speak TLS from now on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        for server in self._servers:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        self.url, self.content_url = (url.replace("http:", "https:") for url in (self.url, self.content_url))

    def paths(self) -> list[str]:
        return [seen.path for seen in self.seen]

    def _start(self, name: str) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            server_name = name
            home = hub

        server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_name: str
    home: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        manners = self.home.manners
        sent = Seen(
            self.server_name, path, self.headers.get("Authorization"), self.headers.get("Range"), self.client_address[1]
        )
        self.home.seen.append(sent)
        if manners.says_nothing:
            self.close_connection = True
            return
        if manners.failures:
            extra = {"Retry-After": manners.retry_after} if manners.retry_after else {}
            self._say(manners.failures.pop(0), b"no", extra)
            return
        if manners.garbage is not None:
            self._say(200, manners.garbage)
            return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._describe(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._send_file(match[1], match[2], match[3])
        else:
            self._say(404, b"?")

    def _describe(self, name: str, revision: str) -> None:
        repository = self._allowed(name)
        if repository is None:
            return
        if revision not in repository.revisions:
            self._say(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        files = [{"rfilename": file} for file in repository.files]
        self._say(200, json.dumps({"sha": COMMIT, "siblings": files}).encode())

    def _send_file(self, name: str, revision: str, file: str) -> None:
        repository = self._allowed(name) if self.server_name == "hub" else self.home.repositories[name]
        if repository is None:
            return
        if repository.gated and self.headers.get("Authorization") != f"Bearer {repository.token}":
            self._say(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        if file not in repository.files:
            self._say(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if self.home.manners.redirect and self.server_name == "hub":
            self._say(302, b"", {"Location": f"{self.home.content_url}{self.path}?signature=abc"})
            return
        self._send_part(repository.files[file])

    def _send_part(self, data: bytes) -> None:
        manners = self.home.manners
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked or manners.ignores_ranges:
            self._say(200, data)
            return
        begin, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
        if begin >= len(data):
            self._say(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        said = begin + 1 if manners.wrong_range else begin
        self._say(206, data[begin:end], {"Content-Range": f"bytes {said}-{end - 1}/{len(data)}"})

    def _allowed(self, name: str) -> Repository | None:
        if self.home.manners.bad_token and self.headers.get("Authorization"):
            self._say(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return None
        repository = self.home.repositories.get(name)
        token = repository.token if repository else None
        if repository is None or (token and not repository.gated and self._token() != token):
            self._say(401 if not self._token() else 404, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if self.home.manners.closes:
            self.send_header("Connection", "close")
        self.end_headers()
        cut = self.home.manners.breaks_off and status in (200, 206)
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True


class TunnelProxy:
    """A proxy that opens tunnels, and remembers where to and with which login."""

    def __init__(self) -> None:
        self.tunnels: list[tuple[str, str | None]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_CONNECT(self) -> None:
                proxy.tunnels.append((self.path, self.headers.get("Proxy-Authorization")))
                host, _, port = self.path.partition(":")
                with socket.create_connection((host, int(port))) as there:
                    self.send_response(200)
                    self.end_headers()
                    _pump(self.connection, there)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _pump(here: socket.socket, there: socket.socket) -> None:
    """Carry bytes both ways until one side ends."""
    while True:
        for ready in select.select([here, there], [], [], 5)[0]:
            data = ready.recv(65_536)
            if not data:
                return
            (there if ready is here else here).sendall(data)
