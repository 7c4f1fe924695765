"""How do files reach the Hub, and how is the upload verified?

Uploads of the client library may hang forever, fail at the first error or commit twice, and downloads are not verified.
Here every wait has a timeout, an upload succeeds only if the branch then holds the files, downloads are compared with
the uploaded files, and files of others are never deleted.
"""

import glob
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, LocalTokenNotFoundError
from huggingface_hub.utils import parse_ratelimit_headers

from agritransfer.errors import PublishError, UsageError, in_one_line
from agritransfer.hub.ownership import NEVER, REMEDY, Branch, Ids, local_files, read_branch, write_record
from agritransfer.runtime.process import say
from agritransfer.wording import counted

ATTEMPTS = 5
LONGEST_WAIT = 120
# Seconds after which no new attempt is started.
PATIENCE = 300
# Seconds per read or write. Without a timeout the client would wait forever.
TIMEOUT = 60.0
LOST = (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError)


@dataclass
class Destination:
    """Where and how a run is published, and the last error of each branch.

    `replace` allows a repository with files of others, of which those whose names are needed are overwritten.
    """

    repo_id: str
    private: bool
    hub_strategy: str = "end"
    share_splits: bool = True
    licence: str | None = None
    examples: tuple[Path, ...] = ()
    replace: bool = False
    failed: dict[str, str] = field(default_factory=dict)


def last_part(name: str) -> str:
    """The last part of a POSIX or Windows path."""
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def preflight(
    name: str, private: bool, folder: Path, kind: str = "model", *, replace: bool = False, remedy: str = REMEDY
) -> str:
    """Check that the token may publish to a repository and create it; returns its full ID.

    Raises `UsageError` with the remedy if it may not, or if others have files there that it must not touch without
    `replace`. The token itself is never printed.
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
        # A Space may be public while its model is private.
        if private and kind != "space" and not api.repo_info(repo_id, repo_type=kind).private:
            raise UsageError(
                f"'{repo_id}' is public; make it private in its settings on the Hub, or add --hub_private_repo false"
            )
        if obstacle := read_branch(api, repo_id, "main", kind).obstacle(replace):
            raise UsageError(obstacle.replace(REMEDY, remedy))
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
    except (httpx2.HTTPError, LocalEntryNotFoundError) as error:
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
    replace: bool = False,
) -> str:
    """Upload the files of a folder to a branch and delete those that we wrote before and no longer write.

    Returns the commit. Files of others stay, except those whose names are needed, which are overwritten and printed.
    Adds `published.json` to the folder. Failures are retried a few times. Before each attempt the branch is compared
    with the folder, so that a commit is not repeated if only its response was lost. Raises `PublishError`.
    """
    write_record(folder)
    files, started = local_files(folder), time.monotonic()
    for attempt in range(1, attempts + 1):
        try:
            found = read_branch(api, repo_id, branch, kind)
            if found.holds(files):
                return found.head
            _check_others(found, files, branch, replace)
            api.upload_folder(
                repo_id=repo_id,
                repo_type=kind,
                folder_path=folder,
                revision=branch,
                commit_message=message,
                # If anyone commits in between, the Hub refuses this one.
                parent_commit=found.head,
                ignore_patterns=list(NEVER),
                delete_patterns=[glob.escape(name) for name in found.outdated(files)] or None,
            )
            found = read_branch(api, repo_id, branch, kind)
            if found.holds(files):
                return found.head
        except PublishError:
            raise
        except LOST as error:
            wait = _wait_after(error, attempt)
            spent = time.monotonic() - started
            if attempt == attempts or wait > LONGEST_WAIT or spent + wait > PATIENCE:
                raise PublishError(f"the Hub failed {counted(attempt, 'time')}, last: {in_one_line(error)}") from error
            say(f"the upload failed ({in_one_line(error)}); retrying in {wait:.0f} s")
            time.sleep(wait)
    raise PublishError(f"after {counted(attempts, 'attempt')} {repo_id} still does not hold the files of this run")


def _check_others(found: Branch, files: Ids, branch: str, replace: bool) -> None:
    """Raise `PublishError` if the repository is not ours; print which files of others will be overwritten."""
    # Whose repository it is stands on its main branch.
    if branch != "main":
        return
    if obstacle := found.obstacle(replace):
        raise PublishError(obstacle)
    if names := found.overwritten(files):
        say(f"overwritten in {found.repo_id}, not listed as written by agritransfer: {', '.join(names)}")


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


def download(
    api: huggingface_hub.HfApi, repo_id: str, commit: str, folder: Path, cache: Path, kind: str = "model"
) -> Path:
    """Download the files of a folder, at a commit, into an empty cache and compare them; if any differ, once more.

    Raises `PublishError` if files differ again.
    """
    expected = {name: sha256 for name, (sha256, _) in local_files(folder).items()}
    for attempt in range(2):
        try:
            served = Path(
                api.snapshot_download(
                    repo_id,
                    revision=commit,
                    cache_dir=cache,
                    repo_type=kind,
                    allow_patterns=[glob.escape(name) for name in expected],
                    force_download=attempt > 0,
                )
            )
        except LOST as error:
            if attempt:
                raise PublishError(f"the upload cannot be downloaded again ({in_one_line(error)})") from error
            continue
        found = {name: sha256 for name, (sha256, _) in local_files(served).items()}
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
