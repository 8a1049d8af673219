"""Uploads to the stand-in for the Hub: a repository is made, large files come first, a commit names all files.

POST /api/repos/create                            409 if it exists; 401 without a token, 403 below another's name
POST /api/validate-yaml                           400 if the metadata of a card cannot be read
POST /api/models/{repo}/preupload/{revision}      which files are large (LFS), and which are there already
POST /{repo}.git/info/lfs/objects/batch           where to put large files (basic transfer)
PUT  /lfs/{repo}/{sha256}                         a large file; refused if its hash is another
POST /lfs/{repo}/verify                           whether it arrived
POST /api/models/{repo}/commit/{revision}         NDJSON of added and deleted files, all or nothing
"""

import base64
import hashlib
import json
import re

import yaml

from tests.hub.hub_downloads import REPO, DownloadHandler, Repository

_LARGE = (".safetensors", ".png")
_PREUPLOAD = re.compile(rf"/api/models/{REPO}/preupload/main")
_BATCH = re.compile(rf"/{REPO}\.git/info/lfs/objects/batch")
_PUT = re.compile(rf"/lfs/{REPO}/(?P<oid>[0-9a-f]{{64}})")
_VERIFY = re.compile(rf"/lfs/{REPO}/verify")
_COMMIT = re.compile(rf"/api/models/{REPO}/commit/main")


class UploadHandler(DownloadHandler):
    """Reads and writes."""

    def do_POST(self) -> None:
        path, body = self.take_request(), self._body()
        if self.hub.fails:
            self.refuse(503, None, "Down for maintenance")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        else:
            actions = (
                (_PREUPLOAD, self._preupload),
                (_BATCH, self._batch),
                (_VERIFY, self._verify),
                (_COMMIT, self._commit),
            )
            self._act(path, body, actions)

    def do_PUT(self) -> None:
        path, body = self.take_request(), self._body()
        if (match := _PUT.fullmatch(path)) is None:
            self.refuse(404, "EntryNotFound", f"No such endpoint: {path}")
        elif hashlib.sha256(body).hexdigest() != match["oid"]:
            self.refuse(400, None, f"The content is not that of {match['oid']}")
        else:  # no token: the address itself was given to one who may write
            with self.hub.lock:
                self.hub.uploads[match["oid"]] = body
            self.json({})

    def _act(self, path: str, body: bytes, actions: tuple) -> None:
        for pattern, action in actions:
            if match := pattern.fullmatch(path):
                name = match["repo"]
                if self._refused(name):
                    return
                if name not in self.hub.repositories:
                    self.refuse(404, "RepoNotFound", f"Repository {name} not found")
                else:
                    action(name, self.hub.repositories[name], body)
                return
        self.refuse(404, "EntryNotFound", f"No such endpoint: {path}")

    def _refused(self, name: str) -> bool:
        """Whether this user may not write there, and was told so."""
        if self.user() is None:
            self.refuse(401, None, "Invalid username or password.")
        elif not self.may_write(name):
            self.refuse(403, None, f"You don't have the rights to write below {name.split('/')[0]}")
        else:
            return False
        return True

    def _create(self, request: dict) -> None:
        name = f"{request.get('organization') or self.user()}/{request['name']}"
        if self._refused(name):
            return
        with self.hub.lock:
            exists = name in self.hub.repositories
            if not exists:
                self.hub.repositories[name] = Repository({}, request.get("visibility") == "private")
        answer = {"url": f"{self.hub.address}/{name}"}
        if exists:
            answer["error"] = "You already created this model repo"
        self.json(answer, 409 if exists else 200)

    def _validate(self, content: str) -> None:
        front = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            metadata = yaml.safe_load(front[1]) if front else {}
            errors = [] if isinstance(metadata, dict) else ["not a mapping"]
        except yaml.YAMLError as error:
            errors = [str(error)]
        self.json({"errors": [{"message": text} for text in errors], "warnings": []}, 400 if errors else 200)

    def _preupload(self, name: str, repository: Repository, body: bytes) -> None:
        answers = []
        for file in json.loads(body)["files"]:
            path, there = file["path"], repository.files.get(file["path"])
            large = path.endswith(_LARGE)
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if there is not None:
                answer["oid"] = hashlib.sha256(there).hexdigest() if large else repository.object_ids[path]
            answers.append(answer)
        self.json({"files": answers})

    def _batch(self, name: str, repository: Repository, body: bytes) -> None:
        request, objects = json.loads(body), []
        if request["operation"] != "upload" or "basic" not in request["transfers"]:
            self.refuse(400, None, "Only uploads by basic transfer")
            return
        for wanted in request["objects"]:
            place = f"{self.hub.address}/lfs/{name}"
            actions = {"upload": {"href": f"{place}/{wanted['oid']}"}, "verify": {"href": f"{place}/verify"}}
            there = wanted["oid"] in self.hub.uploads
            objects.append({"oid": wanted["oid"], "size": wanted["size"], **({} if there else {"actions": actions})})
        self.json({"transfer": "basic", "objects": objects})

    def _verify(self, name: str, repository: Repository, body: bytes) -> None:
        wanted = json.loads(body)
        if len(self.hub.uploads.get(wanted["oid"], b"")) == wanted["size"]:
            self.json({})
        else:
            self.refuse(404, None, f"Object {wanted['oid']} is not there")

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        with self.hub.lock:
            files = dict(repository.files)
            for key, value in ((line["key"], line["value"]) for line in lines):
                if key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile" and value["oid"] in self.hub.uploads:
                    files[value["path"]] = self.hub.uploads[value["oid"]]
                elif key == "deletedFile" and value["path"] in files:
                    del files[value["path"]]
                elif key != "header":
                    self.refuse(400, None, f"Cannot commit {key} {value}")
                    return
            repository.commit_files(files)
        self.json(
            {"commitUrl": f"{self.hub.address}/{name}/commit/{repository.commit}", "commitOid": repository.commit}
        )

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)
