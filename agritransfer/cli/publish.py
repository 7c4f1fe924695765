"""Publish a finished run on the Hub and verify that the Hub serves the tested model.

    agritransfer publish runs/NAME --repo_id user/name
    agritransfer publish runs/NAME --repo_id user/name \\
        --hub_private_repo false --license apache-2.0

With a Space where visitors can try the model on their photos or on your examples (run `export` first):
    agritransfer publish runs/NAME --repo_id user/name --hub_private_repo false \\
        --space user/name --examples leaf.jpg other.jpg

It uploads the model, its card, results and figures, the LoRA adapter and, after `export`, the ONNX
files; never checkpoints, training photos or local paths. It then downloads the repository, compares it byte by
byte and compares the predictions with those of the test. The token comes from `hf auth login` or
HF_TOKEN. Files that agritransfer did not write are never deleted. Exit code 0 on success; 2 if the
repository holds files of others (see --replace); 4 on failure, with the command to retry, which
uploads nothing twice.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agritransfer.hub.client import Destination
    from agritransfer.hub.model import Published


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("run", type=Path, help="folder of a finished run")
    add_repository_flags(parser)
    parser.add_argument(
        "--share_splits",
        type=yes_or_no,
        default=True,
        metavar="true|false",
        help="whether to publish splits.csv, which holds the file names of the photos (default: true)",
    )
    parser.add_argument("--license", help="license of the published weights, such as apache-2.0")
    parser.add_argument(
        "--examples", nargs="+", type=Path, default=[], metavar="PHOTO", help="photos to publish as examples"
    )
    parser.add_argument(
        "--space", help="create or update a Space that serves the model: user/name; needs onnx/ in the run"
    )


def add_repository_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say where to publish, and for whom."""
    parser.add_argument(
        "--repo_id", required=True, metavar="REPO", help="Hub repository: user/name or organization/name"
    )
    parser.add_argument(
        "--hub_private_repo",
        type=yes_or_no,
        default=True,
        metavar="true|false",
        help="whether the repository is private (default: true)",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="publish also to a repository with files that agritransfer did not write: they stay, except those whose "
        "name is needed, which are overwritten and listed",
    )


def yes_or_no(text: str) -> bool:
    """The argparse type of a flag that takes true or false."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, found '{text}'")
    return text.lower() == "true"


def run(arguments: argparse.Namespace) -> int:
    """Publish and verify the run, and its Space if one is given; returns 0."""
    from agritransfer.errors import UsageError
    from agritransfer.hub.client import Destination, preflight
    from agritransfer.hub.model import publish_run
    from agritransfer.hub.space import preflight_space

    if not (arguments.run / "results.json").is_file():
        raise UsageError(f"'{arguments.run}' is not a finished run; a finished run has results.json")
    repo_id = preflight(arguments.repo_id, arguments.hub_private_repo, arguments.run, replace=arguments.replace)
    space_id = None
    if arguments.space is not None:
        space_id = preflight_space(arguments.space, arguments.hub_private_repo, arguments.run, arguments.replace)
    destination = Destination(
        repo_id,
        arguments.hub_private_repo,
        share_splits=arguments.share_splits,
        licence=arguments.license,
        examples=tuple(arguments.examples),
        replace=arguments.replace,
    )
    published = publish_run(arguments.run, destination)
    (arguments.run / "status.json").write_text(json.dumps({"state": "done", "exit_code": 0}) + "\n")
    if space_id is not None:
        _publish_space(space_id, destination, published, arguments.run)
    return 0


def _publish_space(space_id: str, destination: "Destination", published: "Published", run: Path) -> None:
    from agritransfer.errors import PublishError
    from agritransfer.hub.model import retry_command
    from agritransfer.hub.space import publish_space

    try:
        space = publish_space(space_id, destination.repo_id, published, destination.licence, destination.replace)
    except PublishError as error:
        again = f"{retry_command(run, destination)} --space {space_id}"
        raise PublishError(f"the model is published, but its Space is not: {error}; to retry: {again}") from error
    print(f"the Space was running after {space['seconds']:.0f} s: {space['url']} ({space['commit']})")
