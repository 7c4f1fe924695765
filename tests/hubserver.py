"""A read-only Hugging Face Hub on 127.0.0.1, so that tests can run the unmodified clients over real HTTP.

Each folder `root/{models,datasets}/<namespace>/<name>` is one repository. It is read anew for every request, so a
test may write into it at any time; its only commit is its present content.
"""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit


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


class HubError(Exception):
    """An answer that is an error; its X-Error-Code decides which exception the client raises."""

    def __init__(self, status: int, headers: dict[str, str]):
        super().__init__(status, headers)
        self.status = status
        self.headers = headers


class Repository:
    """The files of one folder, with the ids that git would give them."""

    def __init__(self, folder: Path):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        self.blob_ids = {path: git_blob_id(content) for path, content in self.files.items()}
        self.commit_id = hashlib.sha1(json.dumps(self.blob_ids).encode()).hexdigest()

    def entries(self) -> set[PurePosixPath]:
        """Return every file and folder, the root left out."""
        files = [PurePosixPath(path) for path in self.files]
        return {entry for file in files for entry in (file, *file.parents) if entry.name}

    def row(self, entry: PurePosixPath) -> dict:
        """Describe one file or folder as the tree and paths-info calls do."""
        path = str(entry)
        if path in self.files:
            return {"type": "file", "path": path, "size": len(self.files[path]), "oid": self.blob_ids[path]}
        # The clients keep a folder's id but never look it up, so any stable one will do.
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def git_blob_id(content: bytes) -> str:
    """Return the id that git gives to a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """Serves the repositories below `root` and keeps a log of its answers in `requests`."""

    # The clients open a connection per download thread at once; the default of 5 makes some of them wait a second.
    request_queue_size = 64

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.root = root
        self.requests: list[tuple[str, str, int]] = []


class HubHandler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes; with Nagle's algorithm the second waits 40 ms for the first one's receipt.
    disable_nagle_algorithm = True

    def answer(self) -> None:
        """Answer one request with the call that its route names, or with the error that the call raises."""
        # An unread body would be taken for the next request of this connection.
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self.call_route()
        except HubError as error:
            self.send(error.status, b"{}", error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def call_route(self) -> None:
        """Find the route of this request and call it with the parts of the path that it names."""
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, call in ROUTES:
            match = re.fullmatch(pattern, urlsplit(self.path).path)
            if match and method == route_method:
                # Decoded only now: a revision or a file name may hold an encoded slash.
                return call(self, **{name: unquote(part) for name, part in match.groupdict().items() if part})
        raise HubError(404, {"X-Error-Code": "UnknownPath"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Log and send one answer; HEAD gets the headers of GET alone."""
        self.server.requests.append((self.command, urlsplit(self.path).path, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value: object) -> None:
        """Send a value as JSON."""
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the log is `server.requests`."""

    def repository(self, kind: str, name: str, revision: str = "main") -> Repository:
        """Read the repository at the one revision it has, or refuse."""
        folder = self.server.root / kind / name
        if not folder.is_dir():
            raise HubError(404, {"X-Error-Code": "RepoNotFound"})
        repository = Repository(folder)
        if revision not in ("main", repository.commit_id):
            raise HubError(404, {"X-Error-Code": "RevisionNotFound"})
        return repository

    def agent_harnesses(self) -> None:
        """Answer a client that asks which coding agents the Hub knows."""
        self.send_json([])

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        """Describe a repository and list its files."""
        repository = self.repository(kind, name, revision)
        info = {"id": name, "sha": repository.commit_id, "private": False, "author": name.split("/")[0], "tags": []}
        info["lastModified"] = "2026-01-01T00:00:00.000Z"
        info["siblings"] = [{"rfilename": path} for path in repository.files]
        self.send_json(info)

    def refs(self, kind: str, name: str) -> None:
        """List the branches and tags: one branch, main."""
        commit_id = self.repository(kind, name).commit_id
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit_id}
        self.send_json({"branches": [main], "converts": [], "tags": []})

    def tree(self, kind: str, name: str, revision: str, path: str = "") -> None:
        """List a folder, with all that is below it when asked for."""
        repository = self.repository(kind, name, revision)
        folder = PurePosixPath(path)
        below = [entry for entry in sorted(repository.entries()) if folder in entry.parents]
        if path and not below:
            raise HubError(404, {"X-Error-Code": "EntryNotFound"})
        recursive = parse_qs(urlsplit(self.path).query).get("recursive") == ["true"]
        self.send_json([repository.row(entry) for entry in below if recursive or entry.parent == folder])

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        """Describe those of the paths in the form that exist."""
        repository = self.repository(kind, name, revision)
        paths = {PurePosixPath(path) for path in parse_qs(self.body.decode()).get("paths", [])}
        self.send_json([repository.row(entry) for entry in sorted(paths & repository.entries())])

    def resolve(self, name: str, revision: str, path: str, kind: str = "models") -> None:
        """Send a file, or the range of it that was asked for."""
        repository = self.repository(kind, name, revision)
        headers = {"X-Repo-Commit": repository.commit_id}
        if path not in repository.files:
            raise HubError(404, {"X-Error-Code": "EntryNotFound", **headers})
        content = repository.files[path]
        headers |= {"ETag": f'"{repository.blob_ids[path]}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            self.send_part(content, int(asked[1]), int(asked[2] or len(content)), headers)
        else:
            self.send(200, content, headers)

    def send_part(self, content: bytes, first: int, last: int, headers: dict[str, str]) -> None:
        """Send the bytes from the first to the last, or to the end where that comes sooner."""
        part = content[first : last + 1]
        if not part:
            raise HubError(416, {"Content-Range": f"bytes */{len(content)}"})
        place = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        self.send(206, part, {"Content-Range": place, **headers})


KIND = "(?P<kind>models|datasets)"
NAME = r"(?P<name>\w[\w.-]*/\w[\w.-]*)"
REVISION = "(?P<revision>[^/]+)"

ROUTES = [
    ("GET", "/api/agent-harnesses", HubHandler.agent_harnesses),
    ("GET", f"/api/{KIND}/{NAME}(?:/revision/{REVISION})?", HubHandler.info),
    ("GET", f"/api/{KIND}/{NAME}/refs", HubHandler.refs),
    ("GET", f"/api/{KIND}/{NAME}/tree/{REVISION}(?:/(?P<path>.*))?", HubHandler.tree),
    ("POST", f"/api/{KIND}/{NAME}/paths-info/{REVISION}", HubHandler.paths_info),
    ("GET", f"/(?:(?P<kind>datasets)/)?{NAME}/resolve/{REVISION}/(?P<path>.+)", HubHandler.resolve),
]


def serve(root: Path) -> tuple[HubServer, str]:
    """Start a Hub over the repositories below `root`; return the server and its address."""
    server = HubServer(root)
    Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"
