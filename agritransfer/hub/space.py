"""How does a published model get its own Space?

The Space consists of the files of `space/`; two variables name the model and the commit to serve, so that it serves
exactly the verified model.
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
from agritransfer.hub.ownership import TAG

# The Space's files: in a checkout beside the package, in an installed package within it.
SOURCE = Path(__file__).parents[2] / "space"
if not (SOURCE / "app.py").is_file():
    SOURCE = Path(__file__).parent / "space_files"
SERVED = ("*.py", "*.css", "*.json", "requirements.txt", "README.md")
# Seconds for the Hub to install the requirements of the Space and start it.
PATIENCE = 900
POLL = 2.0


def preflight_space(name: str, model_is_private: bool, run: Path, replace: bool = False) -> str:
    """Create the Space if it is new and return its full ID; raises `UsageError` if it could not serve the model."""
    if not (run / "onnx/model.onnx").is_file():
        raise UsageError(f"{run} has no onnx/ folder, which a Space needs; first run: agritransfer export {run}")
    space_id = preflight(name, model_is_private, run, kind="space", replace=replace)
    if model_is_private and "HF_TOKEN" not in huggingface_hub.HfApi().get_space_secrets(space_id):
        raise UsageError(
            f"the Space cannot read a private model: add --hub_private_repo false, or add a secret HF_TOKEN with read "
            f"access at {space_url(space_id)}/settings, then rerun this command"
        )
    return space_id


def publish_space(
    space_id: str, model_id: str, published: Published, licence: str | None, replace: bool = False
) -> dict[str, Any]:
    """Upload the Space of a published model and wait until it runs; returns {url, commit, seconds}.

    Raises `PublishError` if it does not start.
    """
    started = time.perf_counter()
    api = huggingface_hub.HfApi()
    with patient_client(), tempfile.TemporaryDirectory() as parent:
        write_space(Path(parent) / "space", model_id, licence)
        try:
            # Set before the upload, which starts the Space.
            api.add_space_variable(space_id, "MODEL_ID", model_id)
            api.add_space_variable(space_id, "MODEL_REVISION", published.commit)
        except LOST as error:
            raise PublishError(f"the variables of the Space could not be set ({error})") from error
        message = f"Serve {model_id} at {published.commit[:7]}"
        commit = upload(api, Path(parent) / "space", space_id, message, kind="space", replace=replace)
        _wait_until_it_runs(api, space_id)
    return {"url": space_url(space_id), "commit": commit, "seconds": time.perf_counter() - started}


def space_url(space_id: str) -> str:
    """The address of the Space."""
    return f"{huggingface_hub.constants.ENDPOINT}/spaces/{space_id}"


def write_space(folder: Path, model_id: str, licence: str | None) -> None:
    """Copy the files of the Space to a new folder, with the model in the header; the sample model is not copied."""
    folder.mkdir()
    for pattern in SERVED:
        for path in sorted(SOURCE.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
    card = RepoCard.load(folder / "README.md")
    card.data.title = model_id.split("/")[-1]
    card.data.models = [model_id]
    card.data.license = licence
    card.data.tags = [TAG]
    card.save(folder / "README.md")


def _wait_until_it_runs(api: huggingface_hub.HfApi, space_id: str) -> None:
    try:
        runtime = api.wait_for_space(space_id, timeout=PATIENCE, poll_interval=POLL)
    except LOST as error:
        raise PublishError(f"it was uploaded, but its state is unknown ({error})") from error
    if runtime.stage != "RUNNING":
        raise PublishError(f"it was uploaded, but its stage is {runtime.stage}; see its log at {space_url(space_id)}")
