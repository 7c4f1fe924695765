"""Which files of a repository did we write, and which must stay as they are?

`published.json` in the repository lists what we wrote: a later upload deletes only that. Repositories of earlier
versions have no such list; they are recognized by their card, and nothing in them is deleted.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml

from agritransfer.wording import counted

# A pickle of the whole command line, which nothing needs.
NEVER = ["training_args.bin"]
RECORD = "published.json"
CARD = "README.md"
TAG = "agritransfer"
# The last sentence of the card of our Spaces.
SPACE_SENTENCE = "Made with agritransfer."
# The text of the card that the Hub writes into a new Space.
INITIAL_TEXT = "Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference"
# Where a Space keeps the corrections of its visitors.
CORRECTIONS = re.compile(r"answers/[0-9a-f]{32}\.jsonl")
# Names in a message.
SHOWN = 5
REMEDY = (
    "choose another repository, or add --replace, which keeps all of its files except those whose name is needed, and "
    "overwrites these"
)

# The SHA-256 and the git blob ID of each file; the Hub reports one of the two.
Ids = dict[str, tuple[str, str]]


def local_files(folder: Path) -> Ids:
    """The SHA-256 and the git blob ID of each file of a folder, by its path in the folder."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in NEVER:
            content = path.read_bytes()
            git_id = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            files[path.relative_to(folder).as_posix()] = (hashlib.sha256(content).hexdigest(), git_id)
    return files


def write_record(folder: Path) -> None:
    """List the files of a folder in its `published.json`, which is uploaded with them."""
    (folder / RECORD).unlink(missing_ok=True)
    record = {"schema": 1, "written_by": TAG, "files": local_files(folder)}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Branch:
    """A branch of a repository at its commit `head`; `ids` has the SHA-256 or the git blob ID of each file."""

    api: huggingface_hub.HfApi
    repo_id: str
    kind: str
    head: str
    ids: dict[str, str]

    @cached_property
    def record(self) -> dict[str, list[str]] | None:
        """The IDs of each file that we wrote, from `published.json`; None without a list of ours."""
        try:
            facts = json.loads(self._read(RECORD))
        except ValueError:
            return None
        is_ours = isinstance(facts, dict) and facts.get("written_by") == TAG and isinstance(facts.get("files"), dict)
        return {RECORD: [self.ids[RECORD]], **facts["files"]} if is_ours else None

    @cached_property
    def is_empty(self) -> bool:
        """Whether it holds nothing, or only the card that the Hub writes into a new repository."""
        return not self.ids or (self.ids.keys() == {CARD} and _parts(self._read(CARD))[1] in ("", INITIAL_TEXT))

    @cached_property
    def is_ours(self) -> bool:
        """Whether we wrote to it before."""
        if self.record is not None:
            return True
        header, text = _parts(self._read(CARD))
        return TAG in (header.get("tags") or []) or (self.kind == "space" and text.endswith(SPACE_SENTENCE))

    def holds(self, files: Ids) -> bool:
        """Whether it holds these files, whatever else it holds."""
        return all(self.ids.get(name) in both for name, both in files.items())

    def outdated(self, files: Ids) -> list[str]:
        """What we wrote and no longer write; a file that was changed since is not ours."""
        record = self.record or {}
        return [name for name, found in self.ids.items() if name not in files and found in record.get(name, ())]

    def obstacle(self, replace: bool) -> str | None:
        """Why nothing may be uploaded here, with the remedy; None if nothing speaks against it."""
        if corrections := [name for name in self.ids if CORRECTIONS.fullmatch(name)]:
            return (
                f"'{self.repo_id}' holds the corrections of a Space's visitors ({_named(corrections)}); choose another "
                "repository"
            )
        if replace or self.is_empty or self.is_ours:
            return None
        return f"'{self.repo_id}' holds {_named(self.ids)} not written by agritransfer; {REMEDY}"

    def overwritten(self, files: Ids) -> list[str]:
        """The files that an upload would change and that are not as our list says; all of them without a list."""
        if self.is_empty:
            return []
        record = self.record or {}
        changed = [name for name in files if name in self.ids and self.ids[name] not in files[name]]
        return [name for name in changed if self.ids[name] not in record.get(name, ())]

    def _read(self, name: str) -> str:
        if name not in self.ids:
            return ""
        with tempfile.TemporaryDirectory() as cache:
            path = self.api.hf_hub_download(
                self.repo_id, name, repo_type=self.kind, revision=self.head, cache_dir=cache
            )
            return Path(path).read_text(encoding="utf-8", errors="replace")


def read_branch(api: huggingface_hub.HfApi, repo_id: str, branch: str, kind: str) -> Branch:
    """The files of a branch; errors of the Hub's client are not caught."""
    head = api.repo_info(repo_id, revision=branch, repo_type=kind).sha
    tree = api.list_repo_tree(repo_id, recursive=True, revision=head, repo_type=kind)
    rows = [entry for entry in tree if isinstance(entry, huggingface_hub.hf_api.RepoFile)]
    ids = {row.path: row.lfs.sha256 if row.lfs else row.blob_id for row in rows if row.path != ".gitattributes"}
    return Branch(api, repo_id, kind, head, ids)


def _parts(card: str) -> tuple[dict[str, Any], str]:
    """The header of a card, empty if it cannot be read, and the text below it."""
    found = re.fullmatch(r"\s*---\s*\n(.*?)\n---\s*?(?:\n(.*))?", card, re.DOTALL)
    if not found:
        return {}, card.strip()
    try:
        header = yaml.safe_load(found[1])
    except yaml.YAMLError:
        header = None
    return header if isinstance(header, dict) else {}, (found[2] or "").strip()


def _named(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{counted(len(names), 'file')} ({', '.join(names[:SHOWN])}{more})"
