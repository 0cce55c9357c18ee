"""A Hub on the loopback interface, in memory: repositories, LFS, commits, collections and downloads, as the real
clients (huggingface_hub, transformers, `hf`) use them; and failures on demand.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".pt", ".png")
TOKEN = "loopback-token"
NOW = "2026-01-01T00:00:00.000Z"


def git_oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def file_oid(path: str, content: bytes) -> str:
    """What the Hub names a file's content by: SHA-256 where it is stored by LFS, else git's own."""
    return hashlib.sha256(content).hexdigest() if path.endswith(LFS_SUFFIXES) else git_oid(content)


@dataclass
class Repo:
    """A repository: commits in order, each path -> content."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        self.commits.append((uuid.uuid4().hex + "0" * 8, files))
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass
class Failure:
    """What happens to the next `times` requests that match: a status code, or a dropped connection (`None`)."""

    method: str
    path: str
    status: int | None
    times: int


class LoopbackHub:
    """The server. Use it as a context manager; `url` is its address.

    Attributes:
        repos: `namespace/name` -> repository.
        lfs: SHA-256 -> content that was uploaded.
        collections: slug -> collection, as the Hub's JSON.
        requests: (method, path) of every request.
        failures: what goes wrong next.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.collections: dict[str, dict] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: list[Failure] = []

    def reset(self) -> None:
        """Forgets everything."""
        for state in (self.repos, self.lfs, self.collections, self.requests, self.failures):
            state.clear()

    def add(self, name: str, folder: Path) -> None:
        """A public repository with the files of a folder."""
        self.repos[name] = Repo(private=False)
        self.repos[name].commit({path.name: path.read_bytes() for path in folder.iterdir()})

    def sent(self, *methods: str) -> list[str]:
        """Paths of the requests with one of these methods."""
        return [path for method, path in self.requests if method in methods]

    def fail(self, method: str, path: str, status: int | None = None, times: int = 1) -> None:
        """Makes requests fail whose path matches the regular expression; status `None` drops the connection."""
        self.failures.append(Failure(method, path, status, times))

    def __enter__(self) -> "LoopbackHub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_ANY(self) -> None:
                Exchange(hub, self).answer()

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_ANY

            def log_message(self, *args) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Environment of a client process that knows no other Hub than this one, with a cache of its own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        return {**kept, **settings, **({"HF_TOKEN": token} if token else {})}


class Exchange:
    """One request and its response."""

    def __init__(self, hub: LoopbackHub, handler: BaseHTTPRequestHandler) -> None:
        self.hub, self.handler, self.method = hub, handler, handler.command
        path = unquote(urlsplit(handler.path).path)
        self.path = re.sub(r"^/spaces/", "/", re.sub(r"^/api/spaces/", "/api/models/", path))  # all of one kind here

    def answer(self) -> None:
        self.hub.requests.append((self.method, self.path))
        for failure in self.hub.failures:
            if failure.times > 0 and failure.method == self.method and re.search(failure.path, self.path):
                failure.times -= 1
                if failure.status is None:  # in the middle of the upload: some of the body was read, nothing answered
                    self.handler.rfile.read(min(1024, int(self.handler.headers.get("Content-Length") or 0)))
                    self.handler.close_connection = True
                    self.handler.connection.close()
                else:
                    self._body()
                    self.json({"error": f"injected {failure.status}"}, failure.status)
                return
        body = self._body()
        for method, pattern, action in ROUTES:
            match = re.fullmatch(pattern, self.path)
            if match and self.method in method.split("|"):
                getattr(self, action)(body, *match.groups())
                return
        self.json({"error": f"no such address: {self.method} {self.path}"}, 404)

    def _body(self) -> bytes:
        if self.handler.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.handler.rfile.readline().split(b";")[0], 16):
                parts.append(self.handler.rfile.read(size))
                self.handler.rfile.readline()
            self.handler.rfile.readline()
            return b"".join(parts)
        return self.handler.rfile.read(int(self.handler.headers.get("Content-Length") or 0))

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.handler.send_header(name.replace("_", "-"), str(value))
        self.handler.end_headers()
        if self.method != "HEAD":
            self.handler.wfile.write(content)

    def json(self, content: object, status: int = 200, **headers: str) -> None:
        self.send(json.dumps(content).encode(), status, **headers)

    def repo(self, name: str) -> Repo | None:
        """The repository, for those who may see it; otherwise the answer is sent here."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.handler.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self.json({"error": "Repository not found"}, 404 if repo is None else 401, X_Error_Code="RepoNotFound")
            return None
        return repo

    # Repositories

    def whoami(self, body: bytes) -> None:
        self.json({"name": "tester", "type": "user", "orgs": []})

    def create(self, body: bytes) -> None:
        request = json.loads(body)
        name = f"{request.get('organization') or 'tester'}/{request['name']}"
        if request.get("type") == "space" and request.get("sdk") != "gradio":
            return self.json({"error": "a Space needs its SDK"}, 400)
        if name in self.hub.repos:
            return self.json({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
        private = request.get("visibility") == "private" or bool(request.get("private"))
        self.hub.repos[name] = Repo(private)
        self.hub.repos[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        if (repo := self.repo(name)) is None:
            return
        if (commit := repo.at(revision or "main")) is None:
            return self.json({"error": "no such revision"}, 404, X_Error_Code="RevisionNotFound")
        siblings = [{"rfilename": path} for path in commit[1]]
        about = {"id": name, "modelId": name, "sha": commit[0], "private": repo.private, "siblings": siblings}
        self.json({**about, "tags": [], "downloads": 0, "likes": 0, "lastModified": NOW, "createdAt": NOW})

    def tree(self, body: bytes, name: str, revision: str, folder: str | None = None) -> None:
        if (repo := self.repo(name)) is None:
            return
        if (commit := repo.at(revision)) is None:
            return self.json({"error": "no such revision"}, 404, X_Error_Code="RevisionNotFound")
        prefix = f"{folder}/" if folder else ""
        files = {path: content for path, content in commit[1].items() if path.startswith(prefix)}
        if folder and not files:
            return self.json({"error": "no such entry"}, 404, X_Error_Code="EntryNotFound")
        entries = []
        for path, content in files.items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            if path.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"oid": file_oid(path, content), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self.json(entries)

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        if (repo := self.repo(name)) is None:
            return
        commit = repo.at(revision)
        if commit is None or path not in commit[1]:
            code = "RevisionNotFound" if commit is None else "EntryNotFound"
            return self.json({"error": code}, 404, X_Error_Code=code)
        content = commit[1][path]
        headers = {"X_Repo_Commit": commit[0], "Accept_Ranges": "bytes", "Content_Type": "application/octet-stream"}
        etag = file_oid(path, content)
        if path.endswith(LFS_SUFFIXES):
            headers |= {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": len(content)}
        self.send(content, **headers, ETag=f'"{etag}"')

    # Uploads

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if (repo := self.repo(name)) is None:
            return
        files = []
        for file in json.loads(body)["files"]:
            content = repo.at(revision)[1].get(file["path"])
            oid = None if content is None else file_oid(file["path"], content)
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.json({"files": files})

    def lfs_batch(self, body: bytes, name: str) -> None:
        objects = []
        for entry in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}
            actions["verify"] = {"href": f"{self.hub.url}/lfs-verify"}
            objects.append({**entry, **({} if entry["oid"] in self.hub.lfs else {"actions": actions})})
        self.json({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.json({"error": "broken upload"}, 400)
        self.hub.lfs[oid] = body
        self.send(b"")

    def lfs_verify(self, body: bytes) -> None:
        known = json.loads(body)["oid"] in self.hub.lfs
        self.json({}, 200 if known else 404)

    def commit(self, body: bytes, name: str, revision: str) -> None:
        if (repo := self.repo(name)) is None:
            return
        files = dict(repo.at("main")[1])
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                if value.get("parentCommit") not in (None, repo.commits[-1][0]):
                    return self.json({"error": "The branch has moved on"}, 412)
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    return self.json({"error": f"LFS object {value['oid']} was never uploaded"}, 400)
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(files)
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self.json({"commitUrl": url, "commitOid": oid, "pullRequestUrl": None})

    def commits(self, body: bytes, name: str, revision: str) -> None:
        if (repo := self.repo(name)) is not None:
            rows = [
                {"id": oid, "title": "a commit", "message": "", "authors": [], "date": NOW} for oid, _ in repo.commits
            ]
            self.json(rows[::-1])

    def validate_yaml(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        bad = "license: no-such-licence" in content or not content.startswith("---\n")
        self.json({"errors": [{"message": "bad metadata"}] if bad else [], "warnings": []}, 400 if bad else 200)

    # Collections

    def collection_create(self, body: bytes) -> None:
        request = json.loads(body)
        stem = f"{request['namespace']}/{re.sub(r'[^a-z0-9]+', '-', request['title'].lower())}"
        for slug in self.hub.collections:
            if slug.rpartition("-")[0] == stem:
                return self.json({"error": "exists", "slug": slug}, 409)
        slug = f"{stem}-{uuid.uuid4().hex[:24]}"
        self.hub.collections[slug] = {
            "slug": slug, "title": request["title"], "owner": request["namespace"], "items": [], "lastUpdated": NOW,
            "position": 0, "private": request["private"], "theme": "green", "upvotes": 0,
            "description": request.get("description"),
        }  # fmt: skip
        self.json(self.hub.collections[slug])

    def collection_get(self, body: bytes, slug: str) -> None:
        self.json(self.hub.collections[slug])

    def collection_add(self, body: bytes, slug: str) -> None:
        request, collection = json.loads(body), self.hub.collections[slug]
        if any(item["id"] == request["item"]["id"] for item in collection["items"]):
            return self.json({"error": "already there"}, 409)
        if request["item"]["id"] not in self.hub.repos:
            return self.json({"error": "no such repository"}, 404)
        note = {"note": {"text": request["note"], "html": ""}} if request.get("note") else {}
        collection["items"].append({"_id": uuid.uuid4().hex[:24], **request["item"], **note})
        self._number(collection)
        self.json(collection)

    def collection_change(self, body: bytes, slug: str, item_id: str) -> None:
        request, collection = json.loads(body), self.hub.collections[slug]
        item = next(item for item in collection["items"] if item["_id"] == item_id)
        if "note" in request:
            item["note"] = {"text": request["note"], "html": ""}
        if "position" in request:
            collection["items"].remove(item)
            collection["items"].insert(request["position"], item)
        self._number(collection)
        self.json({"success": True})

    @staticmethod
    def _number(collection: dict) -> None:
        for position, item in enumerate(collection["items"]):
            item["position"] = position


REPO, SLUG = r"([^/]+/[^/]+?)", r"([^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"/api/models/{REPO}/preupload/([^/]+)", "preupload"),
    ("POST", rf"/api/models/{REPO}/commit/([^/]+)", "commit"),
    ("GET", rf"/api/models/{REPO}/commits/([^/]+)", "commits"),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)", "tree"),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)/(.+)", "tree"),
    ("GET", rf"/api/models/{REPO}/revision/([^/]+)", "info"),
    ("GET", rf"/api/models/{REPO}", "info"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/([0-9a-f]+)", "lfs_put"),
    ("POST", r"/lfs-verify", "lfs_verify"),
    ("GET|HEAD", rf"/{REPO}/resolve/([^/]+)/(.+)", "resolve"),
    ("POST", r"/api/collections", "collection_create"),
    ("GET", rf"/api/collections/{SLUG}", "collection_get"),
    ("POST", rf"/api/collections/{SLUG}/items", "collection_add"),
    ("PATCH", rf"/api/collections/{SLUG}/items/([^/]+)", "collection_change"),
]

# Runs commands and blocks of code that it reads, one JSON line each, and answers with one: what a person would start
# one after another, without starting Python for each.
WORKER = """
import contextlib, io, json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    request, out, status = json.loads(line), io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            if "command" in request:
                from recursivemas import cli
                status = cli.main(request["command"])
            else:
                exec(compile(request["code"], "block", "exec"), {"__name__": "__main__"})
    except SystemExit as error:
        status = error.code
    except BaseException:
        out.write(traceback.format_exc())
        status = 1
    print(json.dumps([status, out.getvalue()]), file=answers, flush=True)
"""


class Worker:
    """A client process of a Hub: the unmodified libraries, the Hub's address and nothing else.

    Args:
        hub: the server.
        home: its cache and working directory.
        token: `None` for a stranger.
    """

    def __init__(self, hub: LoopbackHub, home: Path, token: str | None = TOKEN) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.environment, self.home = hub.environment(home / "cache", token), home
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER],
            cwd=home,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _ask(self, request: dict) -> tuple[int, str]:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        status, output = json.loads(self._process.stdout.readline())
        return status, output

    def run(self, *command: str) -> tuple[int, str]:
        """`recursivemas command …` -> (exit status, what it printed)."""
        return self._ask({"command": list(command)})

    def block(self, language: str, code: str) -> tuple[int, str]:
        """A block of code as it stands in a card -> (exit status, what it printed)."""
        if language == "python":
            return self._ask({"code": code})
        result = subprocess.run(
            ["bash", "-eu", "-c", code], cwd=self.home, env=self.environment, capture_output=True, text=True
        )
        return result.returncode, result.stdout + result.stderr
