"""A hub on this machine with one model: its main branch, and the copy that the hub's bot converted to safetensors."""

import contextlib
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit

MAIN = "a" * 40  # the commit of the main branch
PULL = "b" * 40  # the commit of the bot's pull request
DATE = "2026-01-01T00:00:00.000Z"


def commit(number):
    """A commit, as the hub describes it."""
    return {"id": number, "title": "", "message": "", "date": DATE, "authors": []}


def pages_of(name):
    """{path: what the hub answers there, as JSON} of a model with one pull request."""
    request = {
        "title": "Adding `safetensors` variant of this model",
        "status": "open",
        "isPullRequest": True,
        "num": 1,
        "author": {"name": "SFconvertbot"},
        "createdAt": DATE,
        "repo": {"name": name, "type": "model"},
    }
    return {
        f"/api/models/{name}": {"id": name, "private": False, "siblings": []},
        f"/api/models/{name}/commits/main": [commit(MAIN)],
        f"/api/models/{name}/commits/refs/pr/1": [commit(PULL), commit(MAIN)],
        f"/api/models/{name}/discussions": {"discussions": [request], "count": 1, "start": 0},
    }


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers from what stands in the attributes of its server: pages, revisions, asked."""

    def answer(self, path):
        """Status, headers and content."""
        if path in self.server.pages:
            return 200, {"Content-Type": "application/json"}, json.dumps(self.server.pages[path]).encode()
        for start, (folder, number) in self.server.revisions.items():
            if path.startswith(start) and (folder / path.removeprefix(start)).is_file():
                content = (folder / path.removeprefix(start)).read_bytes()
                tag = hashlib.sha256(content).hexdigest()
                return 200, {"ETag": f'"{tag}"', "X-Repo-Commit": number}, content
        return 404, {"X-Error-Code": "EntryNotFound"}, b""

    def do_GET(self):  # the name that http.server calls
        """Answer a request, and note its path."""
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        status, headers, content = self.answer(path)
        headers["Content-Length"] = str(len(content))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815  (as above)

    def log_message(self, *args):
        """Say nothing."""


@contextlib.contextmanager
def serve(name, main, pull):
    """Serve folder `main` as the model `name`, and folder `pull` as the bot's pull request; yield the address and a
    list of the paths that were asked for."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.pages = pages_of(name)
    server.revisions = {}  # {how the address of a file begins: (folder, commit)}
    for revision in ("main", MAIN):
        server.revisions[f"/{name}/resolve/{revision}/"] = (main, MAIN)
    for revision in ("refs/pr/1", PULL):
        server.revisions[f"/{name}/resolve/{revision}/"] = (pull, PULL)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked
    finally:
        server.shutdown()
        server.server_close()
