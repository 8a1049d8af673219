"""Downloads from the stand-in for the Hub:

    GET      /api/models/{repo}[/revision/{revision}]        commit and list of files
    GET      /api/models/{repo}/tree/{revision}              the files with their sizes and object ids
    GET/HEAD /{repo}/resolve/{revision}/{file}               a file, with ETag, X-Repo-Commit and Content-Length

What does not exist gives 404 with the Hub's X-Error-Code, by which `huggingface_hub` chooses
its exception; a private repository gives the same to all but its owner.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Lock
from urllib.parse import unquote, urlsplit

REPO = r"(?P<repo>[^/]+/[^/]+)"
_INFO = re.compile(rf"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)")
_FILE = re.compile(rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class Repository:
    """Files by name, and a commit hash made of their contents."""

    def __init__(self, files: Mapping[str, bytes], private: bool = False):
        self.private = private
        self.commit_files(files)

    @classmethod
    def of_folder(cls, folder: Path) -> "Repository":
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})

    def commit_files(self, files: Mapping[str, bytes]) -> None:
        """Make these the files of the repository."""
        self.files = dict(sorted(files.items()))
        self.object_ids = {name: git_object_id(content) for name, content in self.files.items()}
        self.commit = hashlib.sha1(json.dumps(self.object_ids).encode()).hexdigest()

    def info(self, name: str) -> dict:
        """What `HfApi.model_info` reads."""
        siblings = [{"rfilename": file} for file in self.files]
        visibility = {"private": self.private, "gated": False}
        return {"id": name, "sha": self.commit, "siblings": siblings, "tags": [], **visibility}

    def tree(self) -> list[dict]:
        """What `HfApi.list_repo_tree` reads."""
        return [
            {"type": "file", "path": file, "size": len(content), "oid": self.object_ids[file]}
            for file, content in self.files.items()
        ]


@dataclass
class Hub:
    """State of the stand-in.

    Attributes:
        repositories: by id; tests may look into them.
        tokens: user of each token. A user may write below the own name.
        requests: method and path of everything that was asked, in order.
        fails: whether every write gets 503.
        uploads: contents of large files by SHA-256, before and after they are committed.
        address: what HF_ENDPOINT takes.
    """

    repositories: dict[str, Repository]
    tokens: Mapping[str, str]
    requests: list[str] = field(default_factory=list)
    fails: bool = False
    uploads: dict[str, bytes] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)
    address: str = ""


class DownloadHandler(BaseHTTPRequestHandler):
    """Reads."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        path = self.take_request()
        for pattern, answer in ((_TREE, self._tree), (_INFO, self._info), (_FILE, self._file)):
            if match := pattern.fullmatch(path):
                name, revision = match["repo"], match["revision"]
                repository = self.hub.repositories.get(name)
                if repository is None or (repository.private and not self.may_write(name)):
                    self.refuse(404, "RepoNotFound", f"Repository {name} not found")
                elif revision not in (None, "main", repository.commit):
                    self.refuse(404, "RevisionNotFound", f"Revision {revision} not found")
                else:
                    answer(repository, match)
                return
        self.refuse(404, "EntryNotFound", f"No such endpoint: {path}")

    do_HEAD = do_GET

    def take_request(self) -> str:
        """Path of the request, noted."""
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def user(self) -> str | None:
        """Who sent the request, by its token."""
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def may_write(self, repo: str) -> bool:
        return self.user() is not None and repo.split("/")[0] == self.user()

    def _info(self, repository: Repository, match: re.Match) -> None:
        self.json(repository.info(match["repo"]))

    def _tree(self, repository: Repository, match: re.Match) -> None:
        self.json(repository.tree())

    def _file(self, repository: Repository, match: re.Match) -> None:
        file = match["file"]
        headers = {"X-Repo-Commit": repository.commit}
        if file not in repository.files:
            self.refuse(404, "EntryNotFound", f"File {file} not found", headers)
            return
        headers["ETag"] = f'"{repository.object_ids[file]}"'
        self.send(200, repository.files[file], "application/octet-stream", headers)

    def json(self, content: dict | list, status: int = 200) -> None:
        self.send(status, json.dumps(content).encode(), "application/json", {})

    def refuse(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> None:
        headers = {**(headers or {}), **({"X-Error-Code": code} if code else {}), "X-Error-Message": message}
        self.send(status, json.dumps({"error": message}).encode(), "application/json", headers)

    def send(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str]) -> None:
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


def git_object_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
