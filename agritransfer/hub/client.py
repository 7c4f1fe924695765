"""How do files reach the Hub, and how is it known that they did?

The client's own uploads may hang for ever, give up at the first hiccup or commit twice; a plain download is checked
by nobody. Here every wait has an end, an upload counts when the branch holds exactly the files, and a download is
compared.
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

# Pickles of the whole command line; Trainer needs it for nothing.
NEVER = ["training_args.bin"]
ATTEMPTS = 5
LONGEST_WAIT = 120
# Seconds after which no new attempt is begun.
PATIENCE = 300
# Seconds without a sign of the Hub, of one read or write. The client itself would wait for ever.
TIMEOUT = 60.0
LOST = (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError)


@dataclass
class Destination:
    """Where a run is published, how, and what went wrong on the way there last."""

    repo_id: str
    private: bool
    hub_strategy: str = "end"
    share_splits: bool = True
    licence: str | None = None
    examples: tuple[Path, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)


def last_part(name: str) -> str:
    """The last part of a path, in the way of this machine or of the other kind."""
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def preflight(name: str, private: bool, folder: Path, kind: str = "model") -> str:
    """Ask the Hub whether this token may publish there, and make the repository; returns its whole id.

    Raises `UsageError`, with the remedy, where it may not. The token itself is never told.
    """
    api = huggingface_hub.HfApi()
    with patient_client(), _refusals(name, kind):
        me = api.whoami()
        repo_id = name if "/" in name else f"{me['name']}/{name}"
        namespace = repo_id.split("/")[0]
        allowed = [me["name"], *(org["name"] for org in me.get("orgs", []))]
        if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UsageError("the token may only read; make one that may write at huggingface.co/settings/tokens")
        if namespace not in allowed:
            raise UsageError(f"the token may not write to '{namespace}'; it may to {', '.join(allowed)}")
        huggingface_hub.utils.validate_repo_id(repo_id)
        sdk = "gradio" if kind == "space" else None
        api.create_repo(repo_id, repo_type=kind, private=private, space_sdk=sdk, exist_ok=True)
    free = shutil.disk_usage(_nearest(folder)).free
    if free < 10**9:
        raise UsageError(f"only {free / 1e6:.0f} MB are free at {folder}; a publish is checked there, free 1 GB")
    return repo_id


def _nearest(folder: Path) -> Path:
    return folder if folder.exists() else _nearest(folder.absolute().parent)


@contextmanager
def _refusals(name: str, kind: str) -> Iterator[None]:
    """Turn the Hub's refusals into one line with the remedy."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UsageError("there is no token for the Hub; run `hf auth login`, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        paid = f"the Hub wants a paid account for '{name}'"
        if kind == "space":
            paid = (
                "the Hub runs a Gradio Space for PRO accounts only (huggingface.co/pro); leave --space out, and serve "
            )
            paid += "the model yourself: python space/app.py --model RUN"
        reasons = {
            401: "the Hub does not know this token; run `hf auth login` again, or set HF_TOKEN anew",
            402: paid,
            403: f"the token may not write to '{name}'; give it the right to, at huggingface.co/settings/tokens",
        }
        told = reasons.get(error.response.status_code)
        raise UsageError(told or f"the Hub refused '{name}': {in_one_line(error)}; try again later") from error
    except httpx2.HTTPError as error:
        raise UsageError(
            f"the Hub at {huggingface_hub.constants.ENDPOINT} cannot be reached ({in_one_line(error)}); train without "
            "--push_to_hub and publish later: python -m agritransfer publish RUN --repo_id USER/NAME"
        ) from error
    except huggingface_hub.errors.HFValidationError as error:
        raise UsageError(f"'{name}' cannot be a name on the Hub; give USER/NAME of letters, digits, . - _") from error


@contextmanager
def patient_client() -> Iterator[None]:
    """Within, a Hub that says nothing for a minute is an error; the client's own would wait for ever."""
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
    """Make a branch hold exactly the files of a folder; returns the commit that does.

    A failure is tried again, a few times; before that the branch is compared with the folder, so that a commit whose
    answer was lost is not made twice. Raises `PublishError`.
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
                raise PublishError(f"the Hub failed {attempt} times, last: {in_one_line(error)}") from error
            say(f"the Hub did not take it ({in_one_line(error)}); again in {wait:.0f} s")
            time.sleep(wait)
    raise PublishError(f"after {attempts} attempts the files of {repo_id} are still not those of this run")


def _wait_after(error: Exception, attempt: int) -> float:
    """Seconds before the next attempt: as the Hub tells, at least twice as long as before; raises where none helps."""
    wait = float(2 ** (attempt - 1))
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (400, 401, 402, 403, 404):
            remedy = "the token was taken back or may not write" if status in (401, 403) else "the Hub refused"
            raise PublishError(f"{remedy} ({in_one_line(error)})") from error
        limit = parse_ratelimit_headers(error.response.headers)
        told = limit.reset_in_seconds if limit else error.response.headers.get("Retry-After", "0")
        wait = max(wait, float(told))
    return wait


def local_files(folder: Path) -> dict[str, tuple[str, str]]:
    """For each file its sha256 and the id that git gives it; the Hub tells one of them."""
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
    """Download a commit into an empty cache and compare every file; a differing one is fetched once more.

    Raises `PublishError` when it differs again, since a plain download is not checked by anyone else.
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
                raise PublishError(f"it was uploaded, but cannot be downloaded again ({in_one_line(error)})") from error
            continue
        found = {name: sha256 for name, (sha256, _) in local_files(served).items() if name != ".gitattributes"}
        if found == expected:
            return served
        differing = sorted(name for name in expected if found.get(name) != expected[name])
        say(f"downloaded again, {len(differing)} files differ, such as {differing[0]}")
    raise PublishError(f"what the Hub serves differs from what was uploaded: {', '.join(differing)}")


def tag_commit(api: huggingface_hub.HfApi, repo_id: str, commit: str, kind: str = "model") -> str:
    """The tag of this commit: v1, v2, ...; a new one where it has none."""
    try:
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id, repo_type=kind).tags}
        if names := sorted(name for name, target in tags.items() if target == commit):
            return names[-1]
        numbers = [int(name[1:]) for name in tags if name[0] == "v" and name[1:].isdecimal()]
        tag = f"v{max(numbers, default=0) + 1}"
        api.create_tag(repo_id, tag=tag, revision=commit, repo_type=kind)
    except LOST as error:
        raise PublishError(f"it is on the Hub and right, but could not be tagged ({in_one_line(error)})") from error
    return tag
