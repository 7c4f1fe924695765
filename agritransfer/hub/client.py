"""How do files reach the Hub, and how is the upload verified?

Uploads of the client library may hang forever, fail at the first error or commit twice, and downloads are not verified.
Here every wait has a timeout, an upload succeeds only if the branch then holds exactly the files, and downloads are
compared with the uploaded files.
"""

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import parse_ratelimit_headers

from agritransfer.errors import PublishError, UsageError, in_one_line
from agritransfer.runtime.process import say
from agritransfer.wording import counted

# A pickle of the whole command line, which nothing needs.
NEVER = ["training_args.bin"]
ATTEMPTS = 5
LONGEST_WAIT = 120
# Seconds after which no new attempt is started.
PATIENCE = 300
# Seconds per read or write. Without a timeout the client would wait forever.
TIMEOUT = 60.0
LOST = (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError)


@dataclass
class Destination:
    """Where and how a run is published, and the last error of each branch."""

    repo_id: str
    private: bool
    hub_strategy: str = "end"
    share_splits: bool = True
    licence: str | None = None
    examples: tuple[Path, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)


def last_part(name: str) -> str:
    """The last part of a POSIX or Windows path."""
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def preflight(name: str, private: bool, folder: Path, kind: str = "model") -> str:
    """Check that the token may publish to a repository and create it; returns its full ID.

    Raises `UsageError` with the remedy if it may not. The token itself is never printed.
    """
    api = huggingface_hub.HfApi()
    with patient_client(), _refusals(name, kind):
        me = api.whoami()
        repo_id = name if "/" in name else f"{me['name']}/{name}"
        namespace = repo_id.split("/")[0]
        allowed = [me["name"], *(org["name"] for org in me.get("orgs", []))]
        if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UsageError(
                "the Hub token is read-only; create a token with write access at huggingface.co/settings/tokens"
            )
        if namespace not in allowed:
            raise UsageError(
                f"the Hub token has no write access to '{namespace}'; it has access to {', '.join(allowed)}"
            )
        huggingface_hub.utils.validate_repo_id(repo_id)
        sdk = "gradio" if kind == "space" else None
        api.create_repo(repo_id, repo_type=kind, private=private, space_sdk=sdk, exist_ok=True)
    free = shutil.disk_usage(_nearest(folder)).free
    if free < 10**9:
        raise UsageError(f"only {free / 1e6:.0f} MB of disk space are left at {folder}; publishing needs 1 GB there")
    return repo_id


def _nearest(folder: Path) -> Path:
    return folder if folder.exists() else _nearest(folder.absolute().parent)


@contextmanager
def _refusals(name: str, kind: str) -> Iterator[None]:
    """Turn an error of the Hub into one line with the remedy."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UsageError("no Hub token found; run `hf auth login` or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        paid = f"the Hub requires a paid account for '{name}'"
        if kind == "space":
            paid = (
                "the Hub runs Gradio Spaces only for PRO accounts (huggingface.co/pro); remove --space and serve the "
            )
            paid += "model yourself: python space/app.py --model RUN"
        reasons = {
            401: "the Hub token is not valid; run `hf auth login` again or set a new HF_TOKEN",
            402: paid,
            403: f"the Hub token has no write access to '{name}'; grant it at huggingface.co/settings/tokens",
        }
        told = reasons.get(error.response.status_code)
        raise UsageError(told or f"the Hub refused '{name}': {in_one_line(error)}; retry later") from error
    except httpx2.HTTPError as error:
        raise UsageError(
            f"the Hub at {huggingface_hub.constants.ENDPOINT} cannot be reached ({in_one_line(error)}); train without "
            "--push_to_hub and publish later: agritransfer publish RUN --repo_id USER/NAME"
        ) from error
    except huggingface_hub.errors.HFValidationError as error:
        raise UsageError(
            f"'{name}' is not a valid Hub ID; use USER/NAME with letters, digits, '.', '-' and '_'"
        ) from error


@contextmanager
def patient_client() -> Iterator[None]:
    """Within this context, requests to the Hub time out after a minute; by default they never do."""
    ours = huggingface_hub.utils._http.default_client_factory

    def with_timeout() -> httpx2.Client:
        client = ours()
        client.timeout = httpx2.Timeout(TIMEOUT)
        return client

    huggingface_hub.set_client_factory(with_timeout)
    try:
        yield
    finally:
        huggingface_hub.set_client_factory(ours)


def upload(
    api: huggingface_hub.HfApi,
    folder: Path,
    repo_id: str,
    message: str,
    *,
    branch: str = "main",
    kind: str = "model",
    attempts: int = ATTEMPTS,
) -> str:
    """Make a branch hold exactly the files of a folder; returns its commit.

    Failures are retried a few times. Before each attempt the branch is compared with the folder, so that a commit is
    not repeated if only its response was lost. Raises `PublishError`.
    """
    files, started = local_files(folder), time.monotonic()
    for attempt in range(1, attempts + 1):
        try:
            head, same = _compare(api, repo_id, branch, kind, files)
            if same:
                return head
            api.upload_folder(
                repo_id=repo_id,
                repo_type=kind,
                folder_path=folder,
                revision=branch,
                commit_message=message,
                parent_commit=head,
                ignore_patterns=list(NEVER),
                delete_patterns="*",
            )
            head, same = _compare(api, repo_id, branch, kind, files)
            if same:
                return head
        except LOST as error:
            wait = _wait_after(error, attempt)
            spent = time.monotonic() - started
            if attempt == attempts or wait > LONGEST_WAIT or spent + wait > PATIENCE:
                raise PublishError(f"the Hub failed {counted(attempt, 'time')}, last: {in_one_line(error)}") from error
            say(f"the upload failed ({in_one_line(error)}); retrying in {wait:.0f} s")
            time.sleep(wait)
    raise PublishError(f"after {counted(attempts, 'attempt')} {repo_id} still does not hold the files of this run")


def _wait_after(error: Exception, attempt: int) -> float:
    """Seconds before the next attempt, at least twice as long as before; raises if a retry cannot help."""
    wait = float(2 ** (attempt - 1))
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (400, 401, 402, 403, 404):
            remedy = "the Hub token was revoked or has no write access" if status in (401, 403) else "the Hub refused"
            raise PublishError(f"{remedy} ({in_one_line(error)})") from error
        limit = parse_ratelimit_headers(error.response.headers)
        told = limit.reset_in_seconds if limit else error.response.headers.get("Retry-After", "0")
        wait = max(wait, float(told))
    return wait


def local_files(folder: Path) -> dict[str, tuple[str, str]]:
    """The SHA-256 and the git blob ID of each file; the Hub reports one of the two."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in NEVER:
            content = path.read_bytes()
            git_id = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            files[path.relative_to(folder).as_posix()] = (hashlib.sha256(content).hexdigest(), git_id)
    return files


def _compare(
    api: huggingface_hub.HfApi, repo_id: str, branch: str, kind: str, files: dict[str, tuple[str, str]]
) -> tuple[str, bool]:
    """The head of a branch, and whether it holds exactly these files."""
    head = api.repo_info(repo_id, revision=branch, repo_type=kind).sha
    tree = api.list_repo_tree(repo_id, recursive=True, revision=head, repo_type=kind)
    rows = [entry for entry in tree if isinstance(entry, huggingface_hub.hf_api.RepoFile)]
    ids = {row.path: row.lfs.sha256 if row.lfs else row.blob_id for row in rows if row.path != ".gitattributes"}
    return head, ids.keys() == files.keys() and all(ids[name] in files[name] for name in files)


def download(
    api: huggingface_hub.HfApi, repo_id: str, commit: str, folder: Path, cache: Path, kind: str = "model"
) -> Path:
    """Download a commit into an empty cache and compare every file; if files differ, download once more.

    Raises `PublishError` if files differ again.
    """
    expected = {name: sha256 for name, (sha256, _) in local_files(folder).items()}
    for attempt in range(2):
        try:
            served = Path(
                api.snapshot_download(
                    repo_id, revision=commit, cache_dir=cache, repo_type=kind, force_download=attempt > 0
                )
            )
        except LOST as error:
            if attempt:
                raise PublishError(f"the upload cannot be downloaded again ({in_one_line(error)})") from error
            continue
        found = {name: sha256 for name, (sha256, _) in local_files(served).items() if name != ".gitattributes"}
        if found == expected:
            return served
        differing = sorted(name for name in expected if found.get(name) != expected[name])
        say(f"downloaded files that differ from the upload: {len(differing)}, such as {differing[0]}; retrying")
    raise PublishError(f"the Hub serves files that differ from the upload: {', '.join(differing)}")


def tag_commit(api: huggingface_hub.HfApi, repo_id: str, commit: str, kind: str = "model") -> str:
    """The tag of this commit (v1, v2, ...), created if it has none."""
    try:
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id, repo_type=kind).tags}
        if names := sorted(name for name, target in tags.items() if target == commit):
            return names[-1]
        numbers = [int(name[1:]) for name in tags if name[0] == "v" and name[1:].isdecimal()]
        tag = f"v{max(numbers, default=0) + 1}"
        api.create_tag(repo_id, tag=tag, revision=commit, repo_type=kind)
    except LOST as error:
        raise PublishError(f"the upload is complete, but could not be tagged ({in_one_line(error)})") from error
    return tag
