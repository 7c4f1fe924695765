"""Every private name of a library that the project rests on, in one table; an update that renames one fails here.

Private is what begins with an underscore, what the library calls internal and what its documentation leaves out.
"""

import ast
import importlib.util
import inspect
import re
from typing import Any, NamedTuple

from conftest import ROOT
from transformers import Trainer

# The code that runs, and the helpers of the tests; each test file answers for itself.
FILES = sorted(
    path
    for pattern in ("agritransfer/**/*.py", "space/*.py", "train_*.py", "tests/*.py", "tests/support/*.py")
    for path in ROOT.glob(pattern)
    if not path.name.startswith("test_")
)
# Methods of named tuples, public in spite of the underscore.
OF_NAMED_TUPLES = {"_replace", "_asdict", "_fields", "_make"}


class PrivateName(NamedTuple):
    """A name, the file that uses it and why; the parameters that we pass or override, None for what is not called."""

    name: str
    used_in: str
    why: str
    parameters: tuple[str, ...] | None = None


TRAINER, CALLBACKS = "agritransfer/training/trainer.py", "agritransfer/training/callbacks.py"
PREPROCESSING, SHARDS = "agritransfer/images/preprocessing.py", "agritransfer/data/shards.py"
TABLE = [
    # Overridden: the first four are all that ImageTrainer overrides of the Trainer's private methods.
    PrivateName("transformers.Trainer._get_output_dir", TRAINER, "checkpoints have a folder of their own", ("trial",)),
    PrivateName("transformers.Trainer._save_checkpoint", TRAINER, "complete or absent", ("model", "trial")),
    PrivateName(
        "transformers.Trainer._load_from_checkpoint",
        TRAINER,
        "the stock Trainer skips renamed weights",
        ("resume_from_checkpoint", "model"),
    ),
    PrivateName("transformers.Trainer._load_best_model", TRAINER, "the stock Trainer skips renamed weights", ()),
    PrivateName("evaluate.Metric._info", "agritransfer/evaluation/trainer_metric.py", "how a metric is defined", ()),
    PrivateName(
        "evaluate.Metric._compute",
        "agritransfer/evaluation/trainer_metric.py",
        "how a metric is defined",
        ("predictions", "references"),
    ),
    PrivateName(
        "argparse.HelpFormatter._get_help_string",
        "agritransfer/runtime/help_format.py",
        "defaults in --help",
        ("action",),
    ),
    PrivateName(
        "argparse.HelpFormatter._get_default_metavar_for_optional",
        "agritransfer/runtime/help_format.py",
        "placeholders in --help",
        ("action",),
    ),
    PrivateName(
        "argparse.HelpFormatter._fill_text",
        "agritransfer/runtime/help_format.py",
        "commands keep their lines",
        ("text", "width", "indent"),
    ),
    # Used, with an underscore.
    PrivateName("transformers.Trainer._train_batch_size", TRAINER, "--auto_find_batch_size makes it smaller"),
    PrivateName(
        "argparse.ArgumentParser._option_string_actions",
        "agritransfer/runtime/command_line.py",
        "the flags that a parser knows, to suggest the nearest one",
    ),
    PrivateName(
        "huggingface_hub.utils._http.default_client_factory",
        "agritransfer/hub/client.py",
        "its own client waits for ever for a silent Hub",
        (),
    ),
    PrivateName(
        "torch.nn.modules.batchnorm._BatchNorm", "agritransfer/models/freezing.py", "the base of all BatchNorm layers"
    ),
    # Used, without an underscore, but internal or not documented.
    PrivateName(
        "transformers.trainer_utils.rotate_checkpoints",
        TRAINER,
        "old checkpoints go after the new one is complete",
        ("output_dir", "save_total_limit", "best_model_checkpoint"),
    ),
    PrivateName("transformers.ProgressCallback.training_bar", CALLBACKS, "our bar in place of its own"),
    PrivateName("transformers.ProgressCallback.current_step", CALLBACKS, "it moves the bar by this"),
    PrivateName(
        "transformers.trainer_callback.CallbackHandler.on_step_end",
        "tests/support/survival.py",
        "faults are planted where a step ends",
        ("args", "state", "control"),
    ),
    PrivateName("transformers.TimmWrapperImageProcessor.data_config", PREPROCESSING, "timm's own settings"),
    PrivateName("transformers.TimmWrapperImageProcessor.val_transforms", PREPROCESSING, "timm's own geometry"),
    PrivateName(
        "transformers.TimmWrapperForImageClassification.timm_model",
        "agritransfer/models/structure.py",
        "timm's network gives its last map",
    ),
    PrivateName("accelerate.data_loader.DataLoaderAdapter.base_dataloader", TRAINER, "its workers ignore signals"),
    PrivateName(
        "huggingface_hub.utils.httpx",
        "agritransfer/data/readers/reading_errors.py",
        "the HTTP library of the Hub's client",
    ),
    PrivateName(
        "huggingface_hub.utils.parse_ratelimit_headers", "agritransfer/hub/client.py", "how long to wait", ("headers",)
    ),
    PrivateName("huggingface_hub.constants.HF_HUB_OFFLINE", SHARDS, "refused before the Hub is asked"),
    PrivateName(
        "huggingface_hub.constants.ENDPOINT", "agritransfer/hub/client.py", "the address in links and messages"
    ),
    PrivateName("datasets.packaged_modules.parquet.parquet.Parquet", SHARDS, "which files can be streamed"),
    PrivateName("datasets.packaged_modules.webdataset.webdataset.WebDataset", SHARDS, "which files can be streamed"),
    PrivateName(
        "datasets.BuilderConfig.data_files", "agritransfer/data/readers/data_files.py", "the shards of each split"
    ),
    PrivateName(
        "datasets.config.HF_DATASETS_CACHE", "agritransfer/runtime/disk_cache.py", "our caches lie beside its own"
    ),
    PrivateName("gradio.helpers.Examples.dataset", "space/app.py", "the label of the examples is translated"),
]


def resolve(name: str) -> tuple[Any, Any]:
    """The object of a dotted name, None for an attribute that an instance gets later, and what holds it."""
    parts = name.split(".")
    holder, found = None, importlib.import_module(parts[0])
    for end, part in enumerate(parts[1:], start=2):
        path, holder = ".".join(parts[:end]), found
        is_module = inspect.ismodule(holder) and "__path__" in vars(holder) and importlib.util.find_spec(path)
        found = importlib.import_module(path) if is_module else getattr(holder, part, None)
    return found, holder


def is_set_by(owner: type, attribute: str) -> bool:
    """Whether the module of a class, or of one of its bases, assigns this attribute to `self`."""
    sources = {inspect.getsource(inspect.getmodule(base)) for base in owner.__mro__[:-1]}
    return any(re.search(rf"self\.{attribute}(: [^=\n]+)? = ", source) for source in sources)


def overrides() -> dict[str, tuple[type, type]]:
    """The private methods of library classes that ours override: our class and the library's, by the method's name."""
    found = {}
    for path in FILES:
        module = ".".join(
            path.relative_to(ROOT / "space" if path.parent.name == "space" else ROOT).with_suffix("").parts
        )
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef) or not node.bases:
                continue
            ours = getattr(importlib.import_module(module.removeprefix("tests.").removeprefix("support.")), node.name)
            for name in vars(ours):
                of_library = [base for base in ours.__mro__[1:-1] if name in vars(base)]
                if name.startswith("_") and not name.startswith("__") and of_library and callable(getattr(ours, name)):
                    found[name] = (ours, of_library[0])
    return found


def names_with_underscore() -> dict[str, str]:
    """The private names in our code that we do not define ourselves, and the last place of each."""
    used, ours = {}, set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                ours.add(node.name)
            elif isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            for name in names:
                if name.startswith("_") and not name.startswith("__"):
                    used[name] = f"{path.relative_to(ROOT)}:{node.lineno}"
    ours -= overrides().keys()
    return {name: place for name, place in used.items() if name not in ours | OF_NAMED_TUPLES}


def test_every_private_name_exists_with_the_parameters_that_we_use():
    checked = 0
    for row in TABLE:
        found, holder = resolve(row.name)
        last = row.name.rpartition(".")[2]
        assert found is not None or (inspect.isclass(holder) and is_set_by(holder, last)), f"{row.name} is gone"
        if row.parameters is not None:
            parameters = [p for name, p in inspect.signature(found).parameters.items() if name != "self"]
            named, rest = parameters[: len(row.parameters)], parameters[len(row.parameters) :]
            assert tuple(p.name for p in named) == row.parameters, f"{row.name} takes {[p.name for p in parameters]}"
            optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            assert all(p.default is not p.empty or p.kind in optional for p in rest), f"{row.name} needs more"
        checked += 1
    assert checked == len(TABLE) >= 25


def test_what_we_override_is_in_the_table_has_the_same_parameters_and_is_still_called():
    found, table = overrides(), {row.name.rpartition(".")[2]: row for row in TABLE}
    for name, (ours, library) in found.items():
        assert name in table, f"{ours.__name__}.{name} overrides {library.__name__}'s; add it to the table"
        parameters = tuple(inspect.signature(getattr(ours, name)).parameters)
        assert parameters == ("self", *table[name].parameters), f"{ours.__name__}.{name} takes {parameters}"
        assert f"self.{name}(" in inspect.getsource(inspect.getmodule(library)), f"{library.__name__} calls no {name}"
    assert set(found) == {
        *("_get_output_dir", "_save_checkpoint", "_load_from_checkpoint", "_load_best_model"),
        *("_info", "_compute"),
        *("_get_help_string", "_get_default_metavar_for_optional", "_fill_text"),
    }
    # Four of the Trainer's: a fifth asks for a better way.
    assert [name for name, (_, library) in found.items() if library is Trainer] == [
        *("_get_output_dir", "_save_checkpoint", "_load_from_checkpoint", "_load_best_model")
    ]


def test_the_table_has_every_name_with_an_underscore_that_is_not_ours_and_no_stale_row():
    listed = {part for row in TABLE for part in row.name.split(".") if part.startswith("_")}
    used = names_with_underscore()
    assert not {name: place for name, place in used.items() if name not in listed}, "not in the table"
    assert not listed - set(used) - overrides().keys(), "in the table, but not used"
    assert len(used) >= 7 and len(FILES) >= 70
    for row in TABLE:
        assert row.name.rpartition(".")[2] in (ROOT / row.used_in).read_text(encoding="utf-8"), row
