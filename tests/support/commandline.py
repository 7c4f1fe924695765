"""What a test of the flags needs."""

from pathlib import Path

import pytest
import yaml

from agritransfer.arguments import DataArguments, FinetuneArguments, LoraArguments, ModelArguments, ScratchArguments
from agritransfer.runtime.command_line import parse_args

FINETUNE = (DataArguments, ModelArguments, FinetuneArguments)


LORA = (DataArguments, ModelArguments, LoraArguments)


SCRATCH = (DataArguments, ScratchArguments)


NAMED = ["--dataset_name", "sample/leaves", "--model_name_or_path", "sample/vit", "--use_cpu"]


def refusal(capsys, classes, flags) -> str:
    """The one line with which these flags are refused."""
    with pytest.raises(SystemExit) as end:
        parse_args(classes, "story", flags)
    assert end.value.code == 2
    usage, line = capsys.readouterr().err.strip().splitlines()
    assert usage.startswith("usage: ") and "--help" in usage
    return line


def write_recipe(folder: Path, **flags) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(flags))
    return str(path)
