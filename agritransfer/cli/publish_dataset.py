"""Publish a photo dataset on the Hub as Parquet, with its splits, labels, audit and dataset card.

    agritransfer publish-dataset photos --repo_id user/leaves

A run on user/leaves has the same splits and fingerprint as a run on the folder. Broken and leaked
photos are skipped and counted. Files in the repository that agritransfer did not write are never
deleted. Exit code 0 on success; 2 if the repository holds files of others (see --replace), or the
corrections of a Space's visitors; 4 on failure: rerun the same command to retry.
"""

import argparse

from agritransfer.cli.dataset_flags import SOURCE_FLAGS, SPLIT_FLAGS, add_dataset_flags, load_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    from agritransfer.cli.publish import add_repository_flags

    add_dataset_flags(parser, *SOURCE_FLAGS, *SPLIT_FLAGS)
    add_repository_flags(parser)
    parser.add_argument("--license", help="license of the photos, such as cc-by-4.0")


def run(arguments: argparse.Namespace) -> int:
    """Publish and verify the dataset; returns 0."""
    from pathlib import Path

    from agritransfer.data.dataset import counts_table, load_splits
    from agritransfer.errors import PublishError
    from agritransfer.hub.client import preflight
    from agritransfer.hub.dataset import publish_dataset

    private, replace = arguments.hub_private_repo, arguments.replace
    repo_id = preflight(arguments.repo_id, private, Path.cwd(), kind="dataset", replace=replace)
    splits = load_splits(arguments.dataset, **load_options(arguments, *SOURCE_FLAGS, *SPLIT_FLAGS))
    print(counts_table(splits))
    try:
        published = publish_dataset(splits, repo_id, arguments.license, private, replace)
    except PublishError as error:
        raise PublishError(f"not published: {error}; rerun the same command to retry") from error
    print("published and verified: {url} ({tag}, {commit}); fingerprint {fingerprint}".format(**published))
    return 0
