"""A server on loopback with the routes of the Hugging Face Hub that a download and an upload take."""

import base64
import hashlib
import json
import re
import socket
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Hub:
    """Repositories by name, each a list of commits, each a dictionary of files; `requests` is what was asked for."""

    def __init__(self):
        self.repositories, self.gated, self.requests, self.tokens = {}, set(), [], []
        self.cut_after = None
        self.stalled = None  # an event: a commit is read half, which sets it, and never answered

    def commit(self, name, files):
        self.repositories.setdefault(name, []).append(files)

    def commit_id(self, name, number=-1):
        commits = self.repositories[name]
        number = number % len(commits)
        return hashlib.sha1(f"{name} {number}".encode()).hexdigest()


def handler_of(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status=200, content=b"", headers=(), error=None):
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            if error:
                self.send_header("X-Error-Code", error)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def as_json(self, content):
            self.answer(content=json.dumps(content).encode(), headers=[("Content-Type", "application/json")])

        def body(self):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            hub.requests.append((self.command, self.path))
            hub.tokens.append(self.headers.get("Authorization"))
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            if not found or found[1] not in hub.repositories:
                return self.answer(401, error="RepoNotFound")
            name, revision, file = found.groups()
            if name in hub.gated:
                return self.answer(403, error="GatedRepo")
            commits = hub.repositories[name]
            ids = [hub.commit_id(name, number) for number in range(len(commits))]
            if revision != "main" and revision not in ids:
                return self.answer(404, error="RevisionNotFound")
            place = ids.index(revision) if revision in ids else -1
            if file not in commits[place]:
                return self.answer(404, error="EntryNotFound", headers=[("X-Repo-Commit", ids[place])])
            content = commits[place][file]
            digest = hashlib.sha256(content).hexdigest()
            headers = [("ETag", f'"{digest}"'), ("X-Linked-Etag", f'"{digest}"'), ("X-Repo-Commit", ids[place])]
            headers.append(("X-Linked-Size", str(len(content))))
            if self.command == "GET" and hub.cut_after is not None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: hub.cut_after])
                self.wfile.flush()
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_RDWR)
            begin = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
            if begin:
                headers.append(("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}"))
            self.answer(206 if begin else 200, content[begin:], headers)

        def do_POST(self):
            hub.requests.append(("POST", self.path))
            hub.tokens.append(self.headers.get("Authorization"))
            if hub.stalled is not None and "/commit/" in self.path:
                self.rfile.read(int(self.headers["Content-Length"]) // 2)
                hub.stalled.set()
                while self.rfile.read(1024):
                    pass
                self.close_connection = True
                return None
            content = self.body()
            address = f"http://127.0.0.1:{self.server.server_port}"
            if self.path == "/api/repos/create":
                asked = json.loads(content)
                name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
                hub.repositories.setdefault(name, [])
                return self.as_json({"url": f"{address}/{name}", "name": name, "id": name})
            if self.path == "/api/validate-yaml":
                return self.as_json({"errors": [], "warnings": []})
            if "/preupload/" in self.path:
                files = json.loads(content)["files"]
                modes = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in files
                ]
                return self.as_json({"files": modes})
            name = re.match(r"/api/models/([^/]+/[^/]+)/commit/", self.path)[1]
            lines = [json.loads(line) for line in content.splitlines() if line]
            files = dict(hub.repositories[name][-1]) if hub.repositories[name] else {}
            for line in lines:
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            hub.commit(name, files)
            self.as_json({"commitUrl": f"{address}/{name}/commit/1", "commitOid": hub.commit_id(name)})

    return Handler


@contextmanager
def serving(hub):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
