"""A hub on this machine with one model: its main branch, and the copy that the hub's bot converted to safetensors."""

import contextlib
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit

MAIN, PULL = "a" * 40, "b" * 40
DATE = "2026-01-01T00:00:00.000Z"


@contextlib.contextmanager
def serve(name, main, pull):
    """Serves folder `main` as the model `name`, and folder `pull` as the bot's pull request; yields the address and a
    list of what was asked for."""
    asked, commit = [], dict(title="", message="", date=DATE, authors=[])
    request = dict(title="Adding `safetensors` variant of this model", status="open", isPullRequest=True, num=1)
    request |= dict(author={"name": "SFconvertbot"}, createdAt=DATE, repo={"name": name, "type": "model"})
    answers = {
        f"/api/models/{name}": {"id": name, "private": False, "siblings": []},
        f"/api/models/{name}/commits/main": [commit | {"id": MAIN}],
        f"/api/models/{name}/commits/refs/pr/1": [commit | {"id": PULL}, commit | {"id": MAIN}],
        f"/api/models/{name}/discussions": {"discussions": [request], "count": 1, "start": 0},
    }
    revisions = {"main": (main, MAIN), MAIN: (main, MAIN), "refs/pr/1": (pull, PULL), PULL: (pull, PULL)}

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, path):
            """Status, headers and content."""
            if path in answers:
                return 200, {"Content-Type": "application/json"}, json.dumps(answers[path]).encode()
            for revision, (folder, number) in revisions.items():
                start = f"/{name}/resolve/{revision}/"
                if path.startswith(start) and (folder / path.removeprefix(start)).is_file():
                    content = (folder / path.removeprefix(start)).read_bytes()
                    tag = f'"{hashlib.sha256(content).hexdigest()}"'
                    return 200, {"ETag": tag, "X-Repo-Commit": number}, content
            return 404, {"X-Error-Code": "EntryNotFound"}, b""

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            asked.append(path)
            status, headers, content = self.answer(path)
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
