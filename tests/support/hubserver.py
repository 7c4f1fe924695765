"""A Hugging Face Hub on 127.0.0.1: the unmodified clients read from it and write to it over real HTTP.

Each folder `root/{models,datasets,spaces}/<namespace>/<name>` is one public repository. A test may write into it at
any time: every change of the folder is a commit to its main branch. What the clients create and commit is kept in
memory alone. A client with a token of `users` may do what that user may; the faults in `faults` are injected on the
way; `requests` and `has_received` tell what came in.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Event, RLock, Thread
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit


def hub_environment(url: str, home: Path) -> dict[str, str]:
    """Return the variables that point a new process at this Hub; the clients read them when they are imported."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_test_write",
        # The suite may forbid downloads for itself; this process is meant to download, from here.
        "HF_HUB_OFFLINE": "0",
        # Without the next four lines the clients also report to hosts outside this machine.
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        # Where both spellings are set, Python obeys the lower case one.
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


@dataclass
class User:
    """Whom a token belongs to; with the role "read" it may write nowhere."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()
    pro: bool = False

    def is_in(self, namespace: str) -> bool:
        """Tell whether a namespace is the user's own or one of its organizations."""
        return namespace in (self.name, *self.orgs)


@dataclass
class Fault:
    """What happens to the requests `first` to `first + times - 1` of those that match, instead of a plain answer.

    `method` must match whole, `path` anywhere in the path and query. A `delay` comes first. Then `status`, with
    `headers` and `body`, is answered instead of doing what was asked, or `drop` resets the connection. With
    `apply_then_fail` what was asked is done, and the answer is lost: to `status`, or else to a reset. `truncate` ends
    the connection after so many bytes of the body, `corrupt` changes one byte of it.
    """

    method: str
    path: str
    first: int = 1
    times: float = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    delay: float = 0
    drop: bool = False
    truncate: int | None = None
    corrupt: bool = False
    apply_then_fail: bool = False
    seen: int = field(default=0, init=False)
    hits: int = field(default=0, init=False)

    def is_due(self, method: str, path: str) -> bool:
        """Count a request if it matches, and tell whether it is one of those to fail."""
        if not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        self.seen += 1
        return self.first <= self.seen < self.first + self.times


class Request(NamedTuple):
    """One line of the log; the status is 0 where the answer was lost."""

    method: str
    path: str
    status: int
    has_token: bool
    host: str


class Answer(NamedTuple):
    """A status, a body and headers."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = {}


class HubError(Exception):
    """An answer that is an error; its X-Error-Code decides which exception the client raises."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None, **more: str):
        super().__init__(status, message)
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.answer = as_json({"error": message, **more}, status, headers)


def as_json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """Return an answer whose body is JSON."""
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


@dataclass(frozen=True)
class Blob:
    """The content of a file; a large one has a `sha256`, and one that lies in the Xet storage a `xet_hash`."""

    content: bytes
    size: int
    git_id: str
    sha256: str = ""
    xet_hash: str = ""

    def row(self, path: str) -> dict:
        """Describe the file as the tree and paths-info calls do."""
        row = {"type": "file", "path": path, "size": self.size, "oid": self.git_id}
        if self.sha256:
            pointer_size = len(lfs_pointer(self.sha256, self.size))
            row["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": pointer_size}
        return row | ({"xetHash": self.xet_hash} if self.xet_hash else {})


def git_blob_id(content: bytes) -> str:
    """Return the id that git gives to a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return what git holds instead of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def plain_blob(content: bytes) -> Blob:
    """Return a file that git itself holds."""
    return Blob(content, len(content), git_blob_id(content))


def large_blob(content: bytes, sha256: str, size: int, xet_hash: str = "") -> Blob:
    """Return a file that git holds a pointer to."""
    return Blob(content, size, git_blob_id(lfs_pointer(sha256, size)), sha256, xet_hash)


def xet_hashes(storage: Path) -> dict[str, str]:
    """Read from the shards of a Xet storage which hash each file has there, by the file's sha256."""
    hashes = {}
    for shard in storage.rglob("*.mdb"):
        data, at = shard.read_bytes(), 48
        while data[at : at + 32] != b"\xff" * 32:
            file_hash, flags, segments = struct.unpack_from("<32sII", data, at)
            at += 48 + 48 * segments * (2 if flags & 0x80000000 else 1)
            if flags & 0x40000000:
                hashes[xet_text(data[at : at + 32])] = xet_text(file_hash)
                at += 48
    return hashes


def xet_text(raw: bytes) -> str:
    """Return the spelling of a hash of a shard: four little-endian numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


class Commit(NamedTuple):
    """All files of a repository at one time, and how they came there."""

    id: str
    parent: str
    files: dict[str, Blob]
    title: str
    message: str
    author: str
    date: str


@dataclass
class Repository:
    """The commits of one repository, and the branches and tags that name some of them."""

    kind: str
    name: str
    large_from: int
    private: bool = False
    sdk: str = ""
    # Of a Space: what its program is told, and the stages that it goes through, one each time it is asked.
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    # The objects that a client said it would upload, by sha256, and those that came.
    expected: dict[str, int] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    # What the folder held when it was last looked at.
    folder: dict[str, bytes] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, Blob]:
        """The files at the head of main."""
        return self.commits[self.branches["main"]].files if self.branches else {}

    @property
    def prefix(self) -> str:
        """What stands before the name of the repository in its web address."""
        return "" if self.kind == "models" else f"{self.kind}/"

    def is_large(self, sample: bytes, size: int) -> bool:
        """Tell whether a file goes to the large file storage: those that git holds are short and of text."""
        return size > 0 and (b"\0" in sample[:512] or size >= self.large_from)

    def commit(self, branch: str, files: dict[str, Blob], title: str, message: str = "", author: str = "") -> Commit:
        """Add a commit to a branch; no other has its id, because the clients keep what they know of a commit."""
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        parent = self.branches.get(branch, "")
        commit = Commit(os.urandom(20).hex(), parent, dict(sorted(files.items())), title, message, author, date)
        self.commits[commit.id] = commit
        self.branches[branch] = commit.id
        return commit

    def read_folder(self, folder: Path) -> None:
        """Commit what has changed in the folder."""
        found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        contents = {name: path.read_bytes() for name, path in found.items()}
        if contents == self.folder and self.branches:
            return
        files = {name: blob for name, blob in self.files.items() if name in contents or name not in self.folder}
        files |= {name: self.store(content) for name, content in contents.items() if self.folder.get(name) != content}
        self.folder = contents
        self.commit("main", files, "Change the folder", author=self.name.split("/")[0])

    def store(self, content: bytes) -> Blob:
        """Return a file as git or the large file storage holds it."""
        if not self.is_large(content, len(content)):
            return plain_blob(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.large[sha256] = content
        return large_blob(content, sha256, len(content))

    def at(self, revision: str) -> Commit:
        """Find the commit that a branch, a tag or its own id names."""
        commit_id = self.branches.get(revision) or self.tags.get(revision) or revision
        if commit_id not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[commit_id]

    def runtime(self) -> dict:
        """Describe what a Space runs: something as soon as it has a program."""
        stage = "RUNNING" if {"app.py", "Dockerfile", "index.html"} & self.files.keys() else "NO_APP_FILE"
        stage = self.stages[0] if self.stages else stage
        return {"stage": stage, "hardware": {"current": "cpu-basic", "requested": "cpu-basic"}, "gcTimeout": 172800}


class HubServer(ThreadingHTTPServer):
    """Serves the repositories below `root` and those that the clients create."""

    # The clients open a connection per download thread at once; the default of 5 makes some of them wait a second.
    request_queue_size = 64

    def __init__(
        self,
        root: Path,
        users: dict[str, User] | None = None,
        lfs_threshold: int = 10_000_000,
        page_size: int = 1000,
        # Not the host of the Hub, so that a client that sends its token on to the large file storage is found out.
        cdn_host: str = "localhost",
        xet_cas: Path | None = None,
    ):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.root = root
        self.users = {"hf_test_write": User("user"), "hf_test_read": User("user", "read")} if users is None else users
        self.lfs_threshold, self.page_size, self.xet_cas = lfs_threshold, page_size, xet_cas
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://{cdn_host}:{self.server_port}/_lfs"
        # Signs the addresses of the storage, which ask for no token.
        self.key = os.urandom(8).hex()
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.received: list[bytes] = []
        self.unknown_paths: list[str] = []
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.stopping = Event()
        self.lock = RLock()

    def stop(self) -> None:
        """Go down at once: connections that are open, which `shutdown` goes on serving, are reset when next used."""
        self.stopping.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: socket.socket, client_address: tuple) -> None:
        """Print what went wrong, unless it was the client that left."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def repository(self, kind: str, name: str) -> Repository | None:
        """Return a repository with the present content of its folder, or None if there is none."""
        with self.lock:
            folder = self.root / kind / name
            if folder.is_dir():
                new = Repository(kind, name, self.lfs_threshold)
                self.repositories.setdefault((kind, name), new).read_folder(folder)
            return self.repositories.get((kind, name))

    def due_fault(self, method: str, path: str) -> Fault:
        """Return the first fault that is due for a request, or one that changes nothing."""
        with self.lock:
            due = [fault for fault in self.faults if fault.is_due(method, path)]
            fault = due[0] if due else Fault(method, path)
            fault.hits += 1
            return fault

    def has_received(self, needle: bytes) -> bool:
        """Tell whether bytes came in, in a path, header or body, or in a file that a body carried as base64.

        Left out are the header that tokens belong in, and what a client with Xet wrote to its storage itself.
        """
        return any(needle in part for request in self.received for part in (request, *decoded_files(request)))


def decoded_files(request: bytes) -> Iterator[bytes]:
    """Give the files, or starts of files, that a preupload or commit request holds."""
    for encoded in re.findall(rb'"(?:content|sample)": ?"([\w+/=]*)"', request):
        with suppress(binascii.Error):
            yield base64.b64decode(encoded)


class HubHandler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes; with Nagle's algorithm the second waits 40 ms for the first one's receipt.
    disable_nagle_algorithm = True

    def answer(self) -> None:
        """Answer one request as its route does, or as a fault wants it."""
        # An unread body would be taken for the next request of this connection.
        self.body = self.read_body()
        headers = "".join(
            f"{name}: {value}\n" for name, value in self.headers.items() if name.lower() != "authorization"
        )
        self.server.received.append(f"{self.requestline}\n{headers}\n".encode() + self.body)
        fault = self.server.due_fault(self.command, self.path)
        if self.server.stopping.wait(fault.delay):
            return self.reset()
        failed = Answer(fault.status, fault.body, fault.headers)
        if fault.drop or (fault.status and not fault.apply_then_fail):
            return self.send(failed)
        answer = self.call_route()
        if fault.corrupt and answer.body:
            middle = len(answer.body) // 2
            changed = bytes([answer.body[middle] ^ 1])
            answer = answer._replace(body=answer.body[:middle] + changed + answer.body[middle + 1 :])
        return self.send(failed if fault.apply_then_fail else answer, fault.truncate)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def read_body(self) -> bytes:
        """Read the body of the request, in one piece or in chunks."""
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def call_route(self) -> Answer:
        """Find the route of this request and call it with the parts of the path that it names."""
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, call in ROUTES:
            match = re.fullmatch(pattern, urlsplit(self.path).path)
            if match and method == route_method:
                # Decoded only now: a revision or a file name may hold an encoded slash.
                parts = {name: unquote(part) for name, part in match.groupdict().items() if part}
                try:
                    with self.server.lock:
                        return call(self, **parts)
                except HubError as error:
                    return error.answer
        self.server.unknown_paths.append(f"{method} {self.path}")
        return HubError(404, "Not found", "UnknownPath").answer

    def send(self, answer: Answer, truncate: int | None = None) -> None:
        """Log and send one answer; HEAD gets the headers of GET alone, and an answer without a status is lost."""
        path, host = urlsplit(self.path).path, self.headers.get("Host", "")
        has_token = "Authorization" in self.headers
        self.server.requests.append(Request(self.command, path, answer.status, has_token, host))
        if not answer.status:
            return self.reset()
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:truncate])
        self.close_connection = self.close_connection or truncate is not None
        return None

    def reset(self) -> None:
        """End the connection as a crashed host does, not politely."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The socket stays open for as long as this file on it does.
        self.rfile.close()
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the log is `server.requests`."""

    def json(self) -> dict:
        """Return the body, which must be JSON."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise HubError(400, f"Malformed JSON: {error}") from error

    def query(self, name: str) -> str:
        """Return a parameter of the address."""
        return parse_qs(urlsplit(self.path).query).get(name, [""])[0]

    def page(self, rows: list[dict]) -> Answer:
        """Answer the part of a list that was asked for, with the address of the next part."""
        start, address = int(self.query("cursor") or 0), urlsplit(self.path)
        stop = start + self.server.page_size
        others = [part for part in address.query.split("&") if part and not part.startswith("cursor=")]
        link = f'<{self.server.url}{address.path}?{"&".join([*others, f"cursor={stop}"])}>; rel="next"'
        return as_json(rows[start:stop], headers={"Link": link} if stop < len(rows) else {})

    def user(self) -> User | None:
        """Return whom the token belongs to, or None where none was sent."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.server.users.get(token)

    def writer(self, namespace: str) -> User:
        """Return the user, who must be allowed to write into the namespace."""
        user = self.user()
        if user is None:
            # Over https the clients take any 401 for a missing repository, over http only where this code says so.
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if user.role != "write" or not user.is_in(namespace):
            raise HubError(403, f"You don't have the rights to write under the namespace {namespace!r}")
        return user

    def repository(self, kind: str, name: str, write: bool = False) -> Repository:
        """Return a repository that the user may read, and write where asked."""
        user, repository = self.user(), self.server.repository(kind, name)
        namespace = name.split("/")[0]
        hidden = repository is None or (repository.private and not (user and user.is_in(namespace)))
        if hidden:
            # A stranger must not learn whether it exists.
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.writer(namespace)
        return repository

    def agent_harnesses(self) -> Answer:
        """Answer a client that asks which coding agents the Hub knows."""
        return as_json([])

    def whoami(self) -> Answer:
        """Tell whose token it is and what it allows."""
        user = self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}}
        orgs = [{"type": "org", "name": org, "roleInOrg": "write"} for org in user.orgs]
        return as_json({"type": "user", "name": user.name, "isPro": user.pro, "orgs": orgs, "auth": token})

    def named(self) -> tuple[str, str]:
        """Return the kind and name of the repository that the body asks for."""
        asked, user = self.json(), self.user()
        kind = f"{asked.get('type') or 'model'}s"
        name = f"{asked.get('organization') or (user.name if user else '')}/{asked['name']}"
        if user and not (re.fullmatch(KIND, kind) and re.fullmatch(NAME, name)):
            raise HubError(400, f"Invalid repository {kind} {name}")
        return kind, name

    def create_repository(self) -> Answer:
        """Create a repository with one file, as the Hub does."""
        (kind, name), asked = self.named(), self.json()
        user, sdk = self.writer(name.split("/")[0]), asked.get("sdk", "")
        new = Repository(kind, name, self.server.lfs_threshold, asked.get("visibility") == "private", sdk)
        url = f"{self.server.url}/{new.prefix}{name}"
        if self.server.repository(kind, name):
            raise HubError(409, f"You already created this {kind[:-1]} repo", url=url)
        if kind == "spaces" and not sdk:
            raise HubError(400, "A Space needs an sdk")
        if sdk in ("gradio", "docker") and not user.pro:
            raise HubError(402, "hosting Gradio and Docker Spaces on free cpu-basic requires a PRO subscription")
        attributes = plain_blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        new.commit("main", {".gitattributes": attributes}, "initial commit", author=user.name)
        self.server.repositories[kind, name] = new
        return as_json({"url": url, "name": name})

    def delete_repository(self) -> Answer:
        """Forget a repository, and delete its folder where it has one."""
        kind, name = self.named()
        self.repository(kind, name, write=True)
        del self.server.repositories[kind, name]
        shutil.rmtree(self.server.root / kind / name, ignore_errors=True)
        return Answer(200)

    def validate_yaml(self) -> Answer:
        """Accept a card: what is wrong with its front matter a test tells by a fault."""
        has_yaml = self.json()["content"].startswith("---\n")
        return as_json({"errors": [], "warnings": [] if has_yaml else [{"message": "empty or missing yaml metadata"}]})

    def info(self, kind: str, name: str, revision: str = "main") -> Answer:
        """Describe a repository and list its files."""
        repository = self.repository(kind, name)
        commit = repository.at(revision)
        info = {"id": name, "sha": commit.id, "private": repository.private, "author": name.split("/")[0], "tags": []}
        info |= {"lastModified": commit.date, "siblings": [{"rfilename": path} for path in commit.files]}
        if self.query("blobs").lower() in ("true", "1"):
            for sibling in info["siblings"]:
                row = commit.files[sibling["rfilename"]].row("")
                sibling |= {"size": row["size"], "blobId": row["oid"]}
                if "lfs" in row:
                    sibling["lfs"] = {**row["lfs"], "sha256": row["lfs"]["oid"]}
        if kind == "spaces":
            info |= {"sdk": repository.sdk, "runtime": repository.runtime()}
        return as_json(info)

    def refs(self, kind: str, name: str) -> Answer:
        """List the branches and tags."""
        repository, rows = self.repository(kind, name), {"converts": []}
        for key, folder, named in (("branches", "heads", repository.branches), ("tags", "tags", repository.tags)):
            rows[key] = [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": id} for n, id in named.items()]
        return as_json(rows)

    def history(self, kind: str, name: str, revision: str) -> Answer:
        """List the commits that led to a revision, the newest first."""
        repository, rows = self.repository(kind, name), []
        commit = repository.at(revision)
        while commit:
            row = {"id": commit.id, "title": commit.title, "message": commit.message, "date": commit.date}
            rows.append({**row, "authors": [{"user": commit.author}]})
            commit = repository.commits.get(commit.parent)
        return self.page(rows)

    def create_ref(self, kind: str, name: str, branch: str = "", revision: str = "main") -> Answer:
        """Create a branch or a tag."""
        repository, asked = self.repository(kind, name, write=True), self.json()
        target = repository.at(asked.get("startingPoint", "main") if branch else revision)
        named, new = (repository.branches, branch) if branch else (repository.tags, asked["tag"])
        if new.startswith("refs/"):
            raise HubError(400, f"Invalid reference name: {new}")
        if new in named:
            raise HubError(409, f"Reference already exists: {new}")
        named[new] = target.id
        return Answer(200)

    def delete_ref(self, kind: str, name: str, branch: str = "", tag: str = "") -> Answer:
        """Delete a branch, other than main, or a tag; the commits stay."""
        repository = self.repository(kind, name, write=True)
        if branch == "main":
            raise HubError(403, "The default branch cannot be deleted")
        named = repository.branches if branch else repository.tags
        if not named.pop(branch or tag, None):
            raise HubError(404, f"Invalid rev id: {branch or tag}", "RevisionNotFound")
        return Answer(200)

    def rows(self, commit: Commit) -> dict[PurePosixPath, dict]:
        """Describe every file and folder of a commit, the root left out."""
        files = {PurePosixPath(path): blob.row(path) for path, blob in commit.files.items()}
        folders = {folder for file in files for folder in file.parents if folder.name}
        # The clients keep a folder's id but never look it up, so any stable one will do.
        ids = {folder: hashlib.sha1(str(folder).encode()).hexdigest() for folder in folders}
        rows = {folder: {"type": "directory", "path": str(folder), "size": 0, "oid": ids[folder]} for folder in folders}
        return dict(sorted((files | rows).items()))

    def tree(self, kind: str, name: str, revision: str, path: str = "") -> Answer:
        """List a folder, with all that is below it when asked for."""
        rows, folder = self.rows(self.repository(kind, name).at(revision)), PurePosixPath(path)
        below = [entry for entry in rows if folder in entry.parents]
        if path and not below:
            raise HubError(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
        recursive = self.query("recursive").lower() in ("true", "1")
        return self.page([rows[entry] for entry in below if recursive or entry.parent == folder])

    def paths_info(self, kind: str, name: str, revision: str) -> Answer:
        """Describe those of the paths in the form that exist."""
        rows = self.rows(self.repository(kind, name).at(revision))
        paths = {PurePosixPath(path) for path in parse_qs(self.body.decode()).get("paths", [])}
        return as_json([rows[entry] for entry in sorted(paths & rows.keys())])

    def resolve(self, name: str, revision: str, path: str, kind: str = "models") -> Answer:
        """Send a file, or where the large file storage has it."""
        repository = self.repository(kind, name)
        commit = repository.at(revision)
        headers = {"X-Repo-Commit": commit.id}
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        blob = commit.files[path]
        if not blob.sha256:
            return self.part(blob.content, {"ETag": f'"{blob.git_id}"', **headers})
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        if blob.xet_hash:
            link = f'<{self.server.url}/api/{kind}/{name}/xet-read-token/{commit.id}>; rel="xet-auth"'
            headers |= {"X-Xet-Hash": blob.xet_hash, "Link": link}
        return Answer(302, headers={"Location": self.storage_address(repository, blob.sha256), **headers})

    def part(self, content: bytes, headers: dict[str, str]) -> Answer:
        """Answer a content, or the range of it that was asked for."""
        headers = {"Accept-Ranges": "bytes", **headers}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return Answer(200, content, headers)
        first, last = int(asked[1]), int(asked[2] or len(content))
        part = content[first : last + 1]
        if not part:
            raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{len(content)}"})
        return Answer(206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}", **headers})

    def preupload(self, kind: str, name: str, revision: str) -> Answer:
        """Tell how each file is to be uploaded, and what is there now."""
        repository = self.repository(kind, name, write=True)
        now, files = repository.at(revision).files, []
        for file in self.json()["files"]:
            is_large = repository.is_large(base64.b64decode(file["sample"]), file["size"])
            row = {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            if blob := now.get(file["path"]):
                row["oid"] = blob.sha256 or blob.git_id
            files.append(row)
        return as_json({"files": files})

    def storage_address(self, repository: Repository, sha256: str) -> str:
        """Return where a large file is put and got without a token."""
        return f"{self.server.storage}/{repository.kind}/{quote(repository.name)}/{sha256}?key={self.server.key}"

    def lfs_batch(self, name: str, kind: str = "models") -> Answer:
        """Tell where to upload those large files that are not here yet."""
        repository, rows = self.repository(kind, name, write=True), []
        for asked in self.json()["objects"]:
            row = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in repository.large:
                repository.expected[asked["oid"]] = asked["size"]
                verify = f"{self.server.url}/{repository.prefix}{name}.git/info/lfs/objects/verify"
                upload = {"href": self.storage_address(repository, asked["oid"])}
                row["actions"] = {"upload": upload, "verify": {"href": verify}}
            rows.append(row)
        return as_json({"transfer": "basic", "objects": rows})

    def lfs_verify(self, name: str, kind: str = "models") -> Answer:
        """Confirm that a large file has come."""
        large, asked = self.repository(kind, name, write=True).large, self.json()
        if len(large.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(404, "The object was not uploaded")
        return Answer(200)

    def storage(self, kind: str, name: str) -> Repository:
        """Return the repository of a signed address of the large file storage."""
        if "Authorization" in self.headers:
            raise HubError(400, "Only one auth mechanism allowed")
        repository = self.server.repository(kind, name)
        if self.query("key") != self.server.key or repository is None:
            raise HubError(403, "Request has expired")
        return repository

    def put_large(self, kind: str, name: str, sha256: str) -> Answer:
        """Keep a large file, if it is the one that was announced."""
        repository = self.storage(kind, name)
        if repository.expected.get(sha256) != len(self.body) or hashlib.sha256(self.body).hexdigest() != sha256:
            raise HubError(400, "The content does not have the announced sha256 and size")
        repository.large[sha256] = self.body
        return Answer(200)

    def get_large(self, kind: str, name: str, sha256: str) -> Answer:
        """Send a large file."""
        large = self.storage(kind, name).large
        if sha256 not in large:
            raise HubError(404, "No such object")
        return self.part(large[sha256], {})

    def commit(self, kind: str, name: str, revision: str) -> Answer:
        """Apply the operations of a commit to a branch: all of them, or none."""
        repository = self.repository(kind, name, write=True)
        if self.headers.get("Content-Type") != "application/x-ndjson" or self.query("create_pr"):
            raise HubError(400, "Only commits as application/x-ndjson and to a branch are served")
        if revision not in repository.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        try:
            first, *lines = [json.loads(line) for line in self.body.splitlines()]
        except ValueError as error:
            raise HubError(400, f"Malformed commit: {error}") from error
        if first["key"] != "header" or not first["value"].get("summary"):
            raise HubError(400, "The first line must be a header with a summary")
        head = repository.at(revision)
        if first["value"].get("parentCommit", head.id) != head.id:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines:
            self.apply(repository, files, line["key"], line["value"])
        text = (first["value"]["summary"], first["value"].get("description", ""))
        commit = repository.commit(revision, files, *text, author=self.user().name)
        url = f"{self.server.url}/{repository.prefix}{name}/commit/{commit.id}"
        return as_json({"success": True, "commitUrl": url, "commitOid": commit.id})

    def apply(self, repository: Repository, files: dict[str, Blob], key: str, value: dict) -> None:
        """Apply one operation of a commit to the files."""
        path = value["path"]
        if {"", ".", "..", ".git"} & set(path.removesuffix("/" if key == "deletedFolder" else "").split("/")):
            raise HubError(400, f"Invalid path: {path}")
        if key == "file":
            try:
                files[path] = plain_blob(base64.b64decode(value["content"], validate=True))
            except binascii.Error as error:
                raise HubError(400, f"Malformed content of {path}") from error
        elif key == "lfsFile":
            files[path] = self.uploaded(repository, value)
        elif key in ("deletedFile", "deletedFolder"):
            folder = path.removesuffix("/") + "/"
            gone = [file for file in files if (file == path if key == "deletedFile" else file.startswith(folder))]
            if not gone:
                raise HubError(404, f"{path} does not exist", "EntryNotFound")
            for file in gone:
                del files[file]
        else:
            raise HubError(400, f"Unknown operation {key}")

    def uploaded(self, repository: Repository, value: dict) -> Blob:
        """Return a large file in a commit, which must have been uploaded before."""
        sha256 = value["oid"]
        if sha256 in repository.large:
            content = repository.large[sha256]
            if value.get("size", len(content)) == len(content):
                return large_blob(content, sha256, len(content))
        xet_hash = xet_hashes(self.server.xet_cas).get(sha256) if self.server.xet_cas else None
        if not xet_hash:
            raise HubError(400, f"The LFS object {sha256} of {value['path']} was not uploaded")
        return large_blob(b"", sha256, value["size"], xet_hash)

    def xet_token(self, kind: str, name: str, access: str, revision: str) -> Answer:
        """Send a client with Xet to a folder: it can use one as its storage."""
        self.repository(kind, name, write=access == "write").at(revision)
        if self.server.xet_cas is None:
            raise HubError(404, "This Hub has no Xet storage")
        token = {"accessToken": "xet", "exp": int(time.time()) + 3600, "casUrl": f"local://{self.server.xet_cas}"}
        names = {"casUrl": "X-Xet-Cas-Url", "accessToken": "X-Xet-Access-Token", "exp": "X-Xet-Token-Expiration"}
        return as_json(token, headers={header: str(token[key]) for key, header in names.items()})

    def runtime(self, name: str) -> Answer:
        """Tell whether a Space runs."""
        repository = self.repository("spaces", name)
        told = repository.runtime()
        del repository.stages[:1]
        return as_json(told)

    def settings(self, name: str, what: str) -> Answer:
        """Tell or set a Space's variables, or its secrets, whose values nobody is told."""
        repository = self.repository("spaces", name, write=True)
        of = {"variables": repository.variables, "secrets": repository.secrets}[what]
        if self.command == "POST":
            asked = self.json()
            of[asked["key"]] = asked["value"]
        hidden = what == "secrets"
        return as_json({key: {"key": key} if hidden else {"key": key, "value": of[key]} for key in of})


KIND = "(?P<kind>models|datasets|spaces)"
WEB = "(?:(?P<kind>datasets|spaces)/)?"
NAME = r"(?P<name>\w[\w.-]*/\w[\w.-]*)"
REVISION = "(?P<revision>[^/]+)"
STORED = f"/_lfs/{KIND}/{NAME}/(?P<sha256>[0-9a-f]{{64}})"

ROUTES = [
    ("GET", "/api/agent-harnesses", HubHandler.agent_harnesses),
    ("GET", "/api/whoami-v2", HubHandler.whoami),
    ("POST", "/api/repos/create", HubHandler.create_repository),
    ("DELETE", "/api/repos/delete", HubHandler.delete_repository),
    ("POST", "/api/validate-yaml", HubHandler.validate_yaml),
    ("GET", f"/api/{KIND}/{NAME}(?:/revision/{REVISION})?", HubHandler.info),
    ("GET", f"/api/{KIND}/{NAME}/refs", HubHandler.refs),
    ("GET", f"/api/{KIND}/{NAME}/commits/{REVISION}", HubHandler.history),
    ("POST", f"/api/{KIND}/{NAME}/branch/(?P<branch>[^/]+)", HubHandler.create_ref),
    ("DELETE", f"/api/{KIND}/{NAME}/branch/(?P<branch>[^/]+)", HubHandler.delete_ref),
    ("POST", f"/api/{KIND}/{NAME}/tag/{REVISION}", HubHandler.create_ref),
    ("DELETE", f"/api/{KIND}/{NAME}/tag/(?P<tag>[^/]+)", HubHandler.delete_ref),
    ("GET", f"/api/{KIND}/{NAME}/tree/{REVISION}(?:/(?P<path>.*))?", HubHandler.tree),
    ("POST", f"/api/{KIND}/{NAME}/paths-info/{REVISION}", HubHandler.paths_info),
    ("POST", f"/api/{KIND}/{NAME}/preupload/{REVISION}", HubHandler.preupload),
    ("POST", f"/api/{KIND}/{NAME}/commit/{REVISION}", HubHandler.commit),
    ("GET", f"/api/{KIND}/{NAME}/xet-(?P<access>read|write)-token/{REVISION}", HubHandler.xet_token),
    ("GET", f"/api/spaces/{NAME}/runtime", HubHandler.runtime),
    ("GET", f"/api/spaces/{NAME}/(?P<what>variables|secrets)", HubHandler.settings),
    ("POST", f"/api/spaces/{NAME}/(?P<what>variables|secrets)", HubHandler.settings),
    ("GET", f"/{WEB}{NAME}/resolve/{REVISION}/(?P<path>.+)", HubHandler.resolve),
    ("POST", f"/{WEB}{NAME}\\.git/info/lfs/objects/batch", HubHandler.lfs_batch),
    ("POST", f"/{WEB}{NAME}\\.git/info/lfs/objects/verify", HubHandler.lfs_verify),
    ("PUT", STORED, HubHandler.put_large),
    ("GET", STORED, HubHandler.get_large),
]


def serve(root: Path, **options: object) -> tuple[HubServer, str]:
    """Start a Hub over the repositories below `root`; return the server and its address."""
    server = HubServer(root, **options)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server, server.url
