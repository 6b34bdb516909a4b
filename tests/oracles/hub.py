"""A Hugging Face hub on this machine, which answers the requests of Hugging Face's library for a model's files."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

COMMIT = "0123456789abcdef" * 2 + "01234567"


@contextlib.contextmanager
def hub(models: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as models.

    Args:
        models: the folder of each model by the model's name.

    Yields:
        The hub's address, and the list of the paths requested so far.
    """
    requested = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            requested.append(self.path)
            for name, folder in models.items():
                paths = sorted(folder.iterdir())
                if self.path.startswith(f"/api/models/{name}/revision/"):
                    siblings = [{"rfilename": path.name} for path in paths]
                    return self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
                if self.path.startswith(f"/api/models/{name}/tree/{COMMIT}"):
                    files = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0"} for p in paths]
                    return self.answer(200, json.dumps(files).encode())
                prefix = f"/{name}/resolve/{COMMIT}/"
                if self.path.startswith(prefix):
                    path = folder / self.path.removeprefix(prefix)
                    if path.exists():
                        return self.answer(200, path.read_bytes())
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def answer(self, status: int, content: bytes, headers=()):
            self.send_response(status)
            headers = {"Content-Length": len(content), "X-Repo-Commit": COMMIT, **dict(headers)}
            for name, value in (headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}).items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requested
        finally:
            server.shutdown()
            thread.join()
