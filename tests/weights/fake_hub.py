"""A small Hub on 127.0.0.1: the few endpoints by which repositories are listed and downloaded."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlparse


class FakeHub:
    """Serves folders as repositories: `repositories[name][revision] = folder`."""

    def __init__(self):
        self.repositories: dict[str, dict[str, Path]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.down = False
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def do_GET(self):
                hub.answer(self, body=True)

            def do_HEAD(self):
                hub.answer(self, body=False)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def files(self):
        """Paths of the files that were asked for."""
        marks = [r.split("/resolve/")[1] for r in self.requests if "/resolve/" in r]
        return sorted({mark.split("/", 1)[1] for mark in marks})

    def answer(self, handler, body):
        url = urlparse(handler.path)
        path = unquote(url.path).strip("/")
        self.requests.append(f"{handler.command} {path}")
        allowed = "Bearer secret" in handler.headers.get("Authorization", "")
        status, headers, content = self.find(path, parse_qs(url.query), allowed)
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if body:
            handler.wfile.write(content)

    def find(self, path, query, allowed):
        if self.down:
            return 503, {}, b""
        api = path.startswith("api/models/")
        owner, repository, *rest = path.removeprefix("api/models/").split("/")
        name = f"{owner}/{repository}"
        revisions = self.repositories.get(name)
        if revisions is None or (name in self.private and not allowed):
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if name in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        revision = rest[1] if len(rest) > 1 else "main"
        by_commit = {commit_of(name, branch): branch for branch in revisions}
        branch = by_commit.get(revision, revision)
        if branch not in revisions:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        folder, commit = revisions[branch], commit_of(name, branch)
        if api:
            return 200, {"Content-Type": "application/json"}, self.listing(name, folder, commit)
        file = folder.joinpath(*rest[2:])
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        content = file.read_bytes()
        etag = hashlib.sha1(content).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, content

    def listing(self, name, folder, commit):
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        siblings = [{"rfilename": file} for file in sorted(names)]
        info = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
        return json.dumps(info | {"private": False, "downloads": 0, "likes": 0}).encode()


def commit_of(name, branch):
    return hashlib.sha1(f"{name}@{branch}".encode()).hexdigest()
