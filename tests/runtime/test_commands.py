"""Two commands are compared flag by flag."""

import sys

from agritransfer.runtime.commands import command_line, differences


def test_the_differences_name_each_flag_with_both_values():
    then = "python train_lora.py --dataset_name a --classes 'x y' z --seed=1 --use_dora --output_dir here"
    assert differences(then, then) == ""
    # The order of the flags does not matter, that of their values does.
    assert (
        differences(
            then, "python train_lora.py --use_dora --seed 1 --output_dir here --dataset_name a --classes 'x y' z"
        )
        == ""
    )
    now = "python train_lora.py --dataset_name b --classes z 'x y' --seed 1 --output_dir there --lora_r 4"
    assert differences(then, now, ("--output_dir",)) == (
        "--classes was x y z, is z x y; --dataset_name was a, is b; --lora_r was not given, is 4; "
        "--use_dora was set, is not given"
    )
    assert differences("python train_lora.py", "python train_finetune.py") == (
        "script was python train_lora.py, is python train_finetune.py"
    )


def test_the_command_is_written_as_it_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/train_lora.py", "--classes", "a b", "c\udcff"])
    assert command_line() == "python train_lora.py --classes 'a b' 'c\\udcff'"
    monkeypatch.setattr(sys, "argv", ["agritransfer lora", "--seed", "1"])
    assert command_line() == "agritransfer lora --seed 1"
