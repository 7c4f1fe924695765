"""What does an error of `datasets` or of the Hub's clients mean, and what is to be done about it?"""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import datasets
import huggingface_hub
import pyarrow
import yaml
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from agritransfer.errors import DataError, UsageError, in_one_line

# What `datasets` raises for files that it cannot read.
UNREADABLE = (
    *(OSError, ValueError, pyarrow.ArrowException, tarfile.TarError, yaml.YAMLError),
    datasets.exceptions.DatasetsError,
)


@contextmanager
def hub_errors(name: str, revision: str | None = None, kind: Literal["dataset", "model"] = "dataset") -> Iterator[None]:
    """Turn the errors of the Hub's clients into a `UsageError` of one line with the remedy."""
    try:
        yield
    except (UsageError, DataError):
        raise
    except (httpx.HTTPError, *UNREADABLE) as error:
        raise UsageError(f"the Hub {kind} '{name}' {_cause(error, name, revision, kind)}") from error


@contextmanager
def table_errors(name: str) -> Iterator[None]:
    """Turn the errors of `datasets` with the files of a dataset on this machine into a `DataError` of one line."""
    try:
        yield
    except (UsageError, DataError):
        raise
    except UNREADABLE as error:
        # The error of a builder says only that there was one; its cause says which.
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        raise DataError(
            f"'{name}' cannot be read: {in_one_line(cause or error)}; correct or replace its files"
        ) from error


def _cause(error: Exception, name: str, revision: str | None, kind: str) -> str:
    page = f"{huggingface_hub.constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if isinstance(error, GatedRepoError):
        return f"is gated; accept its terms at {page}, then set HF_TOKEN or run hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        if kind == "dataset" and huggingface_hub.HfApi().repo_exists(name, repo_type="model"):
            return (
                "does not exist, but a model of this name does; give a dataset, and the model to --model_name_or_path"
            )
        return "does not exist, or is private; check the name, and for a private one set HF_TOKEN or run hf auth login"
    if isinstance(error, RevisionNotFoundError):
        return f"has no branch, tag or commit '{revision}'; correct --{kind}_revision (see {page}/tree/main)"
    if isinstance(error, LocalEntryNotFoundError) and huggingface_hub.constants.HF_HUB_OFFLINE:
        return "is not on this machine and HF_HUB_OFFLINE=1; run once with --download_only while there is a network"
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"may not be read ({error.response.status_code}); set HF_TOKEN to a token that may, or run hf auth login"
    return f"could not be read: {in_one_line(error)}; check the name, the network and HF_TOKEN"
