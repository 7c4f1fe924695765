"""Recipes: what is a flag, and what is refused with its place."""

import pytest
from commandline import FINETUNE, NAMED, refusal, write_recipe

from agritransfer.errors import UsageError
from agritransfer.runtime.command_line import parse_args
from agritransfer.runtime.recipes import recipe_flags

REFUSED = {
    b"seed: [1, 2\nsplit_seed: 3}": "line 2: expected ',' or ']'",
    b"- seed\n- 3\n": "holds no flags; write one 'flag: value' per line",
    b"a word": "holds no flags",
    b"": "holds no flags",
    b"seed: 1\n---\nseed: 2\n": "line 2: but found another document",
    b"seed: 1\nlr_scheduler_kwargs:\n  num_cycles: 1\n": "line 2: lr_scheduler_kwargs must be one value or a list",
    b"report_to: [[none]]\n": "line 1: report_to must be one value or a list of values",
    b"report_to: []\n": "line 1: report_to has no value; write one or remove the line",
    b"seed:\n": "line 1: seed has no value",
    b"license: ~\n": "line 1: license has no value",
    b"license: null\n": "line 1: license has no value",
    b"license: ''\n": "line 1: license has no value",
    b"seed: 1\nseed: 2\n": "line 2: seed is given twice; keep one of them",
    b"split_seed: 1\nsplit-seed: 2\n": "line 2: split_seed is given twice",
    b"recipe: other.yaml\n": "line 1: a recipe cannot name another recipe; copy its lines",
    b"--seed: 3\n": "line 1: a line must begin with the name of a flag",
    b"seed=3: 1\n": "line 1: a line must begin with the name of a flag",
    b"# caf\xe9\nseed: 1\n": "is no text in UTF-8",
    b"seed: 1\0\n": "is no text in UTF-8",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_recipe_is_refused_with_its_place_in_one_line(text, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(text)
    with pytest.raises(UsageError) as error:
        recipe_flags(str(recipe))
    assert REFUSED[text] in str(error.value) and str(recipe) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_values_are_the_words_that_would_stand_on_a_command_line(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(b"\xef\xbb\xbflearning_rate: 1e-3\npixel_store: off\nsplit-seed: 012\nreport_to: [none]\n")
    assert recipe_flags(str(recipe)) == [
        *("--learning_rate=1e-3", "--pixel_store=off", "--split_seed=012", "--report_to", "none")
    ]
    recipe.write_text(
        "pixel_store: off\nhead_first: on\nshare_splits: no\nlr_scheduler_kwargs: '{\"num_cycles\": 1}'\n"
    )
    # The short form of the flag is read as well.
    data, _, strategy, training = parse_args(FINETUNE, "", [*NAMED, f"--recipe={recipe}"])
    assert (data.pixel_store, data.share_splits, strategy.head_first) == ("off", False, True)
    assert training.lr_scheduler_kwargs == {"num_cycles": 1}


@pytest.mark.parametrize("recipe", [["none.yaml"], ["."], []])
def test_a_recipe_that_is_no_file_is_refused(recipe, capsys):
    assert "no recipe at" in refusal(capsys, FINETUNE, [*NAMED, "--recipe", *recipe])


def test_an_unknown_flag_in_a_recipe_is_refused(tmp_path, capsys):
    recipe = write_recipe(tmp_path, learning_rte=1)
    assert "did you mean --learning_rate?" in refusal(capsys, FINETUNE, [*NAMED, "--recipe", recipe])
