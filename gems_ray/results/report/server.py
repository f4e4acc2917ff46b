"""The report while runs go on: a server for this machine alone, whose page asks for newer content."""

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gems_ray.errors import ConfigError, RunFolderError
from gems_ray.experiments.readable_run import ReadableRun
from gems_ray.results.report.content import content, embedded
from gems_ray.results.report.page import write_page
from gems_ray.results.results import Results

HOST = "127.0.0.1"
FRESH = 2.0  # seconds for which what was read is new enough
SHARE = 5  # a run that takes long to read is read so much less often


class ReportServer(ThreadingHTTPServer):
    """Serves the report of runs on 127.0.0.1, read again when somebody asks and something may have changed.

    Args:
        folders: of the runs.
        port: of the server; 0 for a free one.
    Raises:
        ConfigError: the port is taken.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, folders: Sequence[Path], port: int = 0) -> None:
        self._folders = folders
        self._lock = threading.Lock()
        self._content: dict[str, Any] = {}
        self._next = 0.0
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(f"--port {port}: cannot be used ({error.strerror}). Choose another one.") from None
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is nobody's mistake: the terminal shows the address, and nothing else."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"

    def content(self) -> dict[str, Any]:
        """What the folders hold now, or held a moment ago.

        Raises:
            RunFolderError: the experiment of a run cannot be read any more.
        """
        with self._lock:
            begin = time.monotonic()
            if begin >= self._next:
                self._content = content(Results([ReadableRun.open(folder) for folder in self._folders]))
                now = time.monotonic()
                self._next = now + max(FRESH, SHARE * (now - begin))
            return self._content


class _Handler(BaseHTTPRequestHandler):
    """The page, and its content."""

    server: ReportServer

    def do_GET(self) -> None:
        """Answers a request that names this machine; a page of somebody else may not lead its name here."""
        if self.headers.get("Host") not in self.server.hosts:
            self._answer(403, "text/plain", "This server answers to its own address alone.")
        elif self.path not in ("/", "/data.json"):
            self._answer(404, "text/plain", "There is nothing here.")
        else:
            try:
                found = self.server.content()
            except (RunFolderError, OSError) as error:
                self._answer(503, "text/plain", str(error))
                return
            except Exception as error:  # a mistake of ours; the page tries again
                self._answer(500, "text/plain", f"{type(error).__name__}: {error}")
                return
            if self.path == "/":
                self._answer(200, "text/html", write_page(found, live=True))
            else:
                self._answer(200, "application/json", embedded(found))

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        with suppress(ConnectionError):  # the browser has left meanwhile
            self._send(status, kind, body)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Silent: the terminal shows the address, and nothing else."""
