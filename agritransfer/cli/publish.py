"""Publish a finished run on the Hub, prove that it serves what was tested, and say so only then.

    python -m agritransfer publish runs/NAME --repo_id user/name
    python -m agritransfer publish runs/NAME --repo_id user/name --hub_private_repo false --license apache-2.0

A page where anyone can try it (a Space; after `export`), with photos that you choose:
    python -m agritransfer publish runs/NAME --repo_id user/name --hub_private_repo false \\
        --space user/name --examples leaf.jpg other.jpg

What is published is the model, its card, results and figures, the adapter and, after `export`, the ONNX files; never
checkpoints, photos or paths of this machine. It is downloaded again, compared byte by byte and asked for its answers.
The token comes from `hf auth login` or HF_TOKEN. Exit code 0, or 4 with the command that tries again, which uploads
nothing twice.
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
    parser.add_argument("--repo_id", required=True, help="where to: user/name or organisation/name")
    parser.add_argument(
        "--hub_private_repo", type=yes_or_no, default=True, help="false opens the repository to all (default: true)"
    )
    parser.add_argument(
        "--share_splits", type=yes_or_no, default=True, help="false leaves the names of the photos' files out"
    )
    parser.add_argument("--license", help="licence of the published weights, such as apache-2.0")
    parser.add_argument("--examples", nargs="+", type=Path, default=[], help="photos to publish for visitors to try")
    parser.add_argument("--space", help="make or renew this Space to serve it: user/name; needs onnx/ in the run")


def yes_or_no(text: str) -> bool:
    """The type of a flag that is true or false."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not '{text}'")
    return text.lower() == "true"


def run(arguments: argparse.Namespace) -> int:
    """Publish and check, with its Space where one is asked for; returns 0."""
    from agritransfer.errors import UsageError
    from agritransfer.hub.client import Destination, preflight
    from agritransfer.hub.model import publish_run
    from agritransfer.hub.space import preflight_space

    if not (arguments.run / "results.json").is_file():
        raise UsageError(f"'{arguments.run}' is no finished run; a finished run holds results.json")
    repo_id = preflight(arguments.repo_id, arguments.hub_private_repo, arguments.run)
    space_id = None
    if arguments.space is not None:
        space_id = preflight_space(arguments.space, arguments.hub_private_repo, arguments.run)
    destination = Destination(
        repo_id,
        arguments.hub_private_repo,
        share_splits=arguments.share_splits,
        licence=arguments.license,
        examples=tuple(arguments.examples),
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
        space = publish_space(space_id, destination.repo_id, published, destination.licence)
    except PublishError as error:
        again = f"{retry_command(run, destination)} --space {space_id}"
        raise PublishError(f"the model is published, its Space is not: {error}; to try again: {again}") from error
    print(f"its Space runs after {space['seconds']:.0f} s: {space['url']} ({space['commit']})")
