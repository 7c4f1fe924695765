"""Publish a photo dataset on the Hub as Parquet, with its splits, labels, audit and dataset card.

    agritransfer publish-dataset photos --repo_id user/leaves

A run on user/leaves has the same splits and fingerprint as a run on the folder. Broken and leaked
photos are skipped and counted. Files in the repository that agritransfer did not write are never
deleted. Exit code 0 on success; 2 if the repository holds files of others (see --replace), or the
corrections of a Space's visitors; 4 on failure: rerun the same command to retry.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    from agritransfer.cli.publish import add_repository_flags

    parser.add_argument("dataset", help="folder or Hub dataset ID, as for --dataset_name of the training scripts")
    add_repository_flags(parser)
    parser.add_argument("--license", help="license of the photos, such as cc-by-4.0")
    parser.add_argument(
        "--validation_fraction", type=float, default=0.15, help="used if the dataset has no validation split"
    )
    parser.add_argument("--test_fraction", type=float, default=0.15, help="used if the dataset has no test split")
    parser.add_argument("--split_seed", type=int, default=0, help="random seed of the split")
    parser.add_argument(
        "--group_column_name", help="column of the group, such as the plant, that must not be divided between splits"
    )
    parser.add_argument("--group_pattern", help="regular expression that finds the group in the file name")
    parser.add_argument(
        "--on_broken", choices=("stop", "skip"), default="stop", help="what to do with photos that cannot be decoded"
    )


def run(arguments: argparse.Namespace) -> int:
    """Publish and verify the dataset; returns 0."""
    from pathlib import Path

    from agritransfer.data.dataset import counts_table, load_splits
    from agritransfer.errors import PublishError
    from agritransfer.hub.client import preflight
    from agritransfer.hub.dataset import publish_dataset

    private, replace = arguments.hub_private_repo, arguments.replace
    repo_id = preflight(arguments.repo_id, private, Path.cwd(), kind="dataset", replace=replace)
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
        published = publish_dataset(splits, repo_id, arguments.license, private, replace)
    except PublishError as error:
        raise PublishError(f"not published: {error}; rerun the same command to retry") from error
    print("published and verified: {url} ({tag}, {commit}); fingerprint {fingerprint}".format(**published))
    return 0
