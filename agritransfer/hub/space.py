"""How does a published model get a page of its own?

A Space on the Hub: the files of `space/`, told by two variables which model to serve and at which commit, so that what
it answers with is what was checked.
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import RepoCard

from agritransfer.errors import PublishError, UsageError
from agritransfer.hub.client import LOST, patient_client, preflight, upload
from agritransfer.hub.model import Published

# The Space's files: in a checkout beside the package, in an installed package within it.
SOURCE = Path(__file__).parents[2] / "space"
if not (SOURCE / "app.py").is_file():
    SOURCE = Path(__file__).parent / "space_files"
SERVED = ("*.py", "*.css", "*.json", "requirements.txt", "README.md")
# Seconds for the Hub to install what the Space needs and to start it.
PATIENCE = 900
POLL = 2.0


def preflight_space(name: str, model_is_private: bool, run: Path) -> str:
    """Make the Space, empty where it is new, and return its whole id; raises `UsageError` where it could not serve."""
    if not (run / "onnx/model.onnx").is_file():
        raise UsageError(f"{run} has no onnx/, which a Space serves; first: python -m agritransfer export {run}")
    space_id = preflight(name, model_is_private, run, kind="space")
    if model_is_private and "HF_TOKEN" not in huggingface_hub.HfApi().get_space_secrets(space_id):
        raise UsageError(
            f"a Space cannot read a private model: add --hub_private_repo false, or give it a secret HF_TOKEN that may "
            f"read it at {space_url(space_id)}/settings, then run this again"
        )
    return space_id


def publish_space(space_id: str, model_id: str, published: Published, licence: str | None) -> dict[str, Any]:
    """Upload the Space for a published model and wait until it runs; gives {url, commit, seconds}.

    Raises `PublishError` when it does not run in the end.
    """
    started = time.perf_counter()
    api = huggingface_hub.HfApi()
    with patient_client(), tempfile.TemporaryDirectory() as parent:
        write_space(Path(parent) / "space", model_id, licence)
        try:
            # Before the files, whose commit starts it.
            api.add_space_variable(space_id, "MODEL_ID", model_id)
            api.add_space_variable(space_id, "MODEL_REVISION", published.commit)
        except LOST as error:
            raise PublishError(f"the Space's variables could not be set ({error})") from error
        commit = upload(
            api, Path(parent) / "space", space_id, f"Serve {model_id} at {published.commit[:7]}", kind="space"
        )
        _wait_until_it_runs(api, space_id)
    return {"url": space_url(space_id), "commit": commit, "seconds": time.perf_counter() - started}


def space_url(space_id: str) -> str:
    """Where people find it."""
    return f"{huggingface_hub.constants.ENDPOINT}/spaces/{space_id}"


def write_space(folder: Path, model_id: str, licence: str | None) -> None:
    """Copy the Space's files to a new folder, its header naming the model; the sample model stays here."""
    folder.mkdir()
    for pattern in SERVED:
        for path in sorted(SOURCE.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
    card = RepoCard.load(folder / "README.md")
    card.data.title = model_id.split("/")[-1]
    card.data.models = [model_id]
    card.data.license = licence
    card.save(folder / "README.md")


def _wait_until_it_runs(api: huggingface_hub.HfApi, space_id: str) -> None:
    try:
        runtime = api.wait_for_space(space_id, timeout=PATIENCE, poll_interval=POLL)
    except LOST as error:
        raise PublishError(f"it is uploaded, but whether it runs is not known ({error})") from error
    if runtime.stage != "RUNNING":
        raise PublishError(f"it is uploaded, but its stage is {runtime.stage}; its log is at {space_url(space_id)}")
