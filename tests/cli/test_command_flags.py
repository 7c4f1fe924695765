"""The flags of the commands: what cannot work ends before the work, in one line."""

import argparse

import pytest

from agritransfer.__main__ import build_parser, main
from agritransfer.cli.flag_checks import NUMBERS

RANK = ["rank", "photos", "--models", "a", "b"]
AUDIT = ["audit", "photos"]
HUB = ["publish-dataset", "photos", "--repo_id", "u/d"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            [*AUDIT, "--image_size", "0"],
            "--image_size 0 is out of range; give a number of at least 1",
        ),
        ([*RANK, "--image_size", "-16"], "--image_size -16 is out of range"),
        ([*RANK, "--batch_size", "0"], "--batch_size 0 is out of range; give a number of at least 1"),
        ([*RANK, "--split_seed", "-1"], "--split_seed -1 is out of range"),
        ([*RANK, "--max_train_samples", "0"], "--max_train_samples 0 is out of range"),
        ([*RANK, "--max_photos_per_class", "0"], "--max_photos_per_class 0 is out of range"),
        ([*HUB, "--validation_fraction", "nan"], "--validation_fraction nan is out of range"),
        ([*HUB, "--validation_fraction", "0.5", "--test_fraction", "0.5"], "leave no photo to train on"),
        (
            ["compare", "photos", "--seeds", "5000"],
            "--seeds 5000 is out of range; give a number of at least",
        ),
        (["compare", "photos", "--budget_epochs", "-1"], "--budget_epochs -1 is out of range"),
        (["audit", ""], "a word is empty; give a value or remove it"),
        ([*AUDIT, "--group_pattern", ""], "--group_pattern is empty"),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_the_work(words, complaint, capsys):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert complaint in err and err.count("\n") == 1


def test_every_number_of_a_command_has_a_range():
    (commands,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    numbers = {
        action.dest
        for command in commands.choices.values()
        for action in command._actions
        if action.type in (int, float)
    }
    # `predict` and `export` check these themselves.
    assert numbers - set(NUMBERS) == {"top_k", "photos"}
    assert len(numbers) >= 10
