"""Publish a set of photos on the Hub as parquet, with its splits, label names, a card and what the audit found.

    python -m agritransfer publish-dataset photos --repo_id user/leaves

A run on user/leaves has the same splits and the same fingerprint as one on the folder. Broken photos and leaked ones
are left out and counted. Exit code 0; 4 when the Hub does not have it in the end: the same command tries again.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    from agritransfer.cli.publish import yes_or_no

    parser.add_argument("dataset", help="a folder, or a Hub id, as --dataset_name of the training scripts")
    parser.add_argument("--repo_id", required=True, help="where to: user/name or organisation/name")
    parser.add_argument(
        "--hub_private_repo", type=yes_or_no, default=True, help="false opens it to all (default: true)"
    )
    parser.add_argument("--license", help="licence of the photos, such as cc-by-4.0")
    parser.add_argument("--validation_fraction", type=float, default=0.15, help="where the data has no such split")
    parser.add_argument("--test_fraction", type=float, default=0.15, help="where the data has no such split")
    parser.add_argument("--split_seed", type=int, default=0, help="seed of the cut, as in the training scripts")
    parser.add_argument("--group_column_name", help="column of what must stay in one split, such as the plant")
    parser.add_argument("--group_pattern", help="the same from file names, a regular expression")
    parser.add_argument(
        "--on_broken", choices=("stop", "skip"), default="stop", help="leave broken photos out, or stop"
    )


def run(arguments: argparse.Namespace) -> int:
    """Publish and check; returns 0."""
    from pathlib import Path

    from agritransfer.data.dataset import counts_table, load_splits
    from agritransfer.errors import PublishError
    from agritransfer.hub.client import preflight
    from agritransfer.hub.dataset import publish_dataset

    repo_id = preflight(arguments.repo_id, arguments.hub_private_repo, Path.cwd(), kind="dataset")
    splits = load_splits(
        arguments.dataset,
        validation_fraction=arguments.validation_fraction,
        test_fraction=arguments.test_fraction,
        split_seed=arguments.split_seed,
        group_column_name=arguments.group_column_name,
        group_pattern=arguments.group_pattern,
        on_broken=arguments.on_broken,
    )
    print(counts_table(splits))
    try:
        published = publish_dataset(splits, repo_id, arguments.license, arguments.hub_private_repo)
    except PublishError as error:
        raise PublishError(f"not published: {error}; the same command tries again") from error
    print("published and checked: {url} ({tag}, {commit}); fingerprint {fingerprint}".format(**published))
    return 0
