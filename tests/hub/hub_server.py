"""A stand-in for the Hugging Face Hub: serves repositories from local folders to `huggingface_hub`, on this machine.

It speaks the read-only endpoints that downloads use, with one commit per repository and none of the Hub's storage
backends, so files travel as plain HTTP bodies:

    GET      /api/models/{repo}[/revision/{revision}]        commit and list of files
    GET      /api/models/{repo}/tree/{revision}              the files with their sizes and object ids
    GET/HEAD /{repo}/resolve/{revision}/{file}               a file, with ETag, X-Repo-Commit and Content-Length

What does not exist gives 404 with the Hub's X-Error-Code, by which `huggingface_hub` chooses its exception.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

_REPO = r"(?P<repo>[^/]+/[^/]+)"
_INFO = re.compile(rf"/api/models/{_REPO}(/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)")
_FILE = re.compile(rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class Repository:
    """The files below a folder, read once, and a commit hash made of their contents."""

    def __init__(self, folder: Path):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        self.object_ids = {name: _git_object_id(content) for name, content in self.files.items()}
        self.commit = hashlib.sha1(json.dumps(self.object_ids).encode()).hexdigest()

    def info(self, name: str) -> dict:
        """What `HfApi.model_info` reads."""
        siblings = [{"rfilename": file} for file in self.files]
        return {"id": name, "sha": self.commit, "siblings": siblings, "tags": [], "private": False, "gated": False}

    def tree(self) -> list[dict]:
        """What `HfApi.list_repo_tree` reads."""
        return [
            {"type": "file", "path": file, "size": len(content), "oid": self.object_ids[file]}
            for file, content in self.files.items()
        ]


@contextmanager
def serve(folders: Mapping[str, Path]) -> Iterator[str]:
    """Serve `{repo id: folder}` on a free port of 127.0.0.1; yields the address, which is what HF_ENDPOINT takes."""
    repositories = {name: Repository(Path(folder)) for name, folder in folders.items()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"repositories": repositories}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: Mapping[str, Repository]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        for pattern, answer in ((_TREE, self._tree), (_INFO, self._info), (_FILE, self._file)):
            if match := pattern.fullmatch(path):
                name, revision = match["repo"], match["revision"]
                repository = self.repositories.get(name)
                if repository is None:
                    self._error("RepoNotFound", f"Repository {name} not found")
                elif revision not in (None, "main", repository.commit):
                    self._error("RevisionNotFound", f"Revision {revision} not found")
                else:
                    answer(repository, match)
                return
        self._error("EntryNotFound", f"No such endpoint: {path}")

    do_HEAD = do_GET

    def _info(self, repository: Repository, match: re.Match) -> None:
        self._json(repository.info(match["repo"]))

    def _tree(self, repository: Repository, match: re.Match) -> None:
        self._json(repository.tree())

    def _file(self, repository: Repository, match: re.Match) -> None:
        file = match["file"]
        headers = {"X-Repo-Commit": repository.commit}
        if file not in repository.files:
            self._error("EntryNotFound", f"File {file} not found", headers)
            return
        headers["ETag"] = f'"{repository.object_ids[file]}"'
        self._send(200, repository.files[file], "application/octet-stream", headers)

    def _json(self, content: dict | list) -> None:
        self._send(200, json.dumps(content).encode(), "application/json", {})

    def _error(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        headers = {**(headers or {}), "X-Error-Code": code, "X-Error-Message": message}
        self._send(404, json.dumps({"error": message}).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        """Says nothing."""


def _git_object_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
