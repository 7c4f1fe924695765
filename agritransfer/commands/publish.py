"""Publish a finished run on the Hub, prove that it serves what was tested, and say so only then.

    python -m agritransfer publish runs/NAME --repo_id user/name
    python -m agritransfer publish runs/NAME --repo_id user/name --hub_private_repo false --license apache-2.0

What is published is the model, its card, results and figures, the adapter and, after `export`, the ONNX files; never
checkpoints, photos or paths of this machine. It is downloaded again, compared byte by byte and asked for its answers.
The token comes from `hf auth login` or HF_TOKEN. Exit code 0, or 4 with the command that tries again, which uploads
nothing twice.
"""

import argparse
import json
from pathlib import Path


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


def yes_or_no(text: str) -> bool:
    """The type of a flag that is true or false."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not '{text}'")
    return text.lower() == "true"


def run(arguments: argparse.Namespace) -> int:
    """Publish and check; returns 0."""
    from agritransfer.errors import UsageError
    from agritransfer.publishing import Destination, publish_run
    from agritransfer.uploading import preflight

    if not (arguments.run / "results.json").is_file():
        raise UsageError(f"'{arguments.run}' is no finished run; a finished run holds results.json")
    repo_id = preflight(arguments.repo_id, arguments.hub_private_repo, arguments.run)
    destination = Destination(
        repo_id, arguments.hub_private_repo, share_splits=arguments.share_splits, licence=arguments.license
    )
    publish_run(arguments.run, destination)
    (arguments.run / "status.json").write_text(json.dumps({"state": "done", "exit_code": 0}) + "\n")
    return 0
