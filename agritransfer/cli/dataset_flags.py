"""Which flags say what a dataset is and how it is split? They are those of the training scripts."""

import argparse
from dataclasses import fields
from typing import Any

from agritransfer.arguments import DataArguments

# How argparse reads the flags that are not plain text.
KINDS = {
    "classes": {"nargs": "+", "metavar": "PATTERN"},
    "validation_fraction": {"type": float},
    "test_fraction": {"type": float},
    "split_seed": {"type": int},
    "on_broken": {"choices": ("stop", "skip")},
    "max_photos_per_class": {"type": int},
    "max_train_samples": {"type": int},
}
SOURCE_FLAGS = (
    "dataset_revision",
    "image_column_name",
    "label_column_name",
    "group_column_name",
    "group_pattern",
    "classes",
)
SPLIT_FLAGS = ("validation_fraction", "test_fraction", "split_seed", "splits_file", "on_broken", "max_photos_per_class")


def add_dataset_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """The dataset itself, and these flags of `DataArguments` with the defaults and the help that the scripts have."""
    parser.add_argument("dataset", help="Hub dataset ID or folder, as for --dataset_name of the training scripts")
    for field in fields(DataArguments):
        if field.name in names:
            text = field.metadata["help"]
            parser.add_argument(f"--{field.name}", default=field.default, help=text, **KINDS.get(field.name, {}))


def load_options(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The values of these flags as keyword arguments of `load_splits`."""
    return {name.removeprefix("dataset_"): getattr(arguments, name) for name in names}
