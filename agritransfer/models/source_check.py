"""Why can a folder or a repository not be loaded as a backbone, and what can be done about it?"""

import json
import re
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig, PreTrainedConfig

from agritransfer.errors import UsageError, in_one_line

ANOTHER = "use another model, such as facebook/dinov2-small or timm/efficientnet_b0.ra_in1k"
# What the libraries raise for files that are missing, broken or of another kind.
LOADING_ERRORS = (
    *(AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, httpx2.HTTPError),
)
# Files that tell what a folder without config.json holds.
OTHER_KINDS = (
    (r"status\.json", "it is a run that is not finished; run its command again, or use the model that it started from"),
    (r"model_index\.json", f"it is a pipeline of diffusers, which makes pictures; {ANOTHER}"),
    (r"modules\.json|config_sentence_transformers\.json", f"it is a sentence-transformers model; {ANOTHER}"),
    (r".*\.gguf", f"it holds GGUF files, a format of llama.cpp; {ANOTHER}"),
    (r"open_clip_.*", f"it is an OpenCLIP model; {ANOTHER}"),
    (
        r".*\.(bin|pth?|pth\.tar|ckpt|safetensors)",
        "it has weights but no config.json; save the model with save_pretrained, or copy its config.json",
    ),
)
# Weights that are no safetensors: reading a pickle can run code.
PICKLES = re.compile(r".*\.(bin|pth?|ckpt|pkl)")
OTHER_FRAMEWORKS = re.compile(r"tf_model\.h5|.*\.msgpack|.*\.keras")
# DINOv3 in timm: ViTs by width and gated MLP, ConvNeXts by the width of the first and depth of the third stage.
DINOV3_VITS = {
    (384, False): "small",
    (384, True): "small_plus",
    (768, False): "base",
    (1024, False): "large",
    (1280, True): "huge_plus",
    (4096, True): "7b",
}
DINOV3_CONVNEXTS = {(96, 9): "tiny", (96, 27): "small", (128, 27): "base", (192, 27): "large"}


def refuse_adapter(name: str) -> None:
    """Raise `UsageError` for a local folder with an adapter, which the library would load with a base of its choice."""
    if (Path(name) / "adapter_config.json").is_file():
        raise UsageError(f"the model of '{name}' could not be loaded: {_adapter(Path(name))}")


def cannot_load(what: str, name: str, revision: str | None, error: Exception) -> UsageError:
    """The error for a model or image processor that a library could not load: what was found and what to do."""
    return UsageError(f"the {what} of '{name}' could not be loaded: {_reason(what, name, revision, error)}")


def _reason(what: str, name: str, revision: str | None, error: Exception) -> str:
    path, told = Path(name), f"{type(error).__name__} {error}".strip().splitlines()[0].split(". ")[0]
    if path.is_file():
        return "it is a file; use the folder with the config.json of the model"
    if not path.is_dir() and not re.fullmatch(r"[\w][\w.-]*(/[\w.-]+)?", name):
        return "there is no such folder; use the folder of a model or a Hub ID, such as facebook/dinov2-small"
    files = _files_of(name, revision)
    if path.is_dir() and (problem := _without_config(path, files)):
        return problem
    if "adapter_config.json" in files and "config.json" not in files:
        return "it is an adapter without its base model; use the base model, or merge the adapter into it"
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except LOADING_ERRORS as unreadable:
        # Advice on other versions of the library follows the first sentence.
        found = in_one_line(unreadable).split(". ")[0]
        if "gated" in found:
            return f"it is gated; accept its terms on https://huggingface.co/{name} and set HF_TOKEN"
        if not files:
            return (
                f"there is no such folder, and the Hub gives no such model ({found}); correct the name, or check the "
                "network and HF_TOKEN"
            )
        return f"its config.json cannot be used ({found}); {ANOTHER}"
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return _of_another_task(config, name)
    if what == "architecture":
        return f"{told}; {ANOTHER}"
    if what == "image processor":
        return _without_processor(config, files, told)
    return _without_weights(path, files, told)


def _files_of(name: str, revision: str | None) -> list[str]:
    """The files of a folder or a repository; of a repository that cannot be asked, none."""
    if Path(name).is_dir():
        return sorted(file.name for file in Path(name).iterdir())
    try:
        # Asked once; `list_repo_files` would try again for half a minute without a network.
        found = huggingface_hub.HfApi().model_info(name, revision=revision).siblings
        return sorted(file.rfilename for file in found)
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError):
        # The reason that the library gave is told instead.
        return []


def _without_config(path: Path, files: list[str]) -> str | None:
    if not files:
        return f"the folder is empty; {ANOTHER}"
    if "adapter_config.json" in files:
        return _adapter(path)
    if "config.json" not in files:
        for pattern, problem in OTHER_KINDS:
            if any(re.fullmatch(pattern, file) for file in files):
                return problem
        found = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
        return f"the folder has no config.json, only {found}; use a folder written by save_pretrained"
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        return f"its config.json is not valid JSON ({in_one_line(error)}); copy the model again"
    if not isinstance(config, dict):
        return f"its config.json holds a {type(config).__name__}, not settings; copy the model again"
    if not {"model_type", "architecture"} & config.keys():
        return f"its config.json names no model_type; copy the config.json of the model, or {ANOTHER}"
    return None


def _adapter(path: Path) -> str:
    if (path.parent / "results.json").is_file():
        return f"it is the adapter of a run; use the run folder '{path.parent}', which holds the merged model"
    try:
        base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = "its base model"
    return f"it is an adapter, not a whole model; use {base}, or merge the adapter and save the model"


def _of_another_task(config: PreTrainedConfig, name: str) -> str:
    kind = config.model_type
    if kind.startswith("dinov3"):
        twin = _dinov3_of_timm(config, name)
        return f"transformers has no classification head for DINOv3 ({kind}); use the same weights from timm: {twin}"
    if kind in ("vit_mae", "vit_hybrid"):
        return f"transformers has no classification head for {kind}; {ANOTHER}"
    made_for = f", made as {config.architectures[0]}" if config.architectures else ""
    return f"it is a {kind} model{made_for}, and transformers classifies no photos with it; {ANOTHER}"


def _dinov3_of_timm(config: PreTrainedConfig, name: str) -> str:
    settings = config.to_dict()
    if config.model_type == "dinov3_vit":
        size = DINOV3_VITS.get((settings["hidden_size"], settings["use_gated_mlp"]), "small")
        photos = "sat493m" if "sat493m" in name and size in ("large", "7b") else "lvd1689m"
        return f"timm/vit_{size}_patch16_dinov3.{photos}"
    size = DINOV3_CONVNEXTS.get((settings["hidden_sizes"][0], settings["depths"][2]), "tiny")
    return f"timm/convnext_{size}.dinov3_lvd1689m"


def _without_processor(config: PreTrainedConfig, files: list[str], told: str) -> str:
    if config.model_type == "timm_wrapper":
        return f"timm cannot build the image processor that config.json describes ({told}); {ANOTHER}"
    if files and not {"preprocessor_config.json", "processor_config.json"} & {*files}:
        return (
            "it has no preprocessor_config.json, so the size and the colors that it needs are not known; copy this "
            f"file from the model that it was trained from, or {ANOTHER}"
        )
    return f"{told}; copy preprocessor_config.json again, or {ANOTHER}"


def _without_weights(path: Path, files: list[str], told: str) -> str:
    weights = [file for file in files if file.endswith(".safetensors")]
    if "model.safetensors.index.json" in files and path.is_dir():
        try:
            named = json.loads((path / "model.safetensors.index.json").read_bytes())["weight_map"].values()
        except (ValueError, LookupError, TypeError, AttributeError):
            return "its model.safetensors.index.json cannot be read; copy the model again"
        if missing := sorted({*named} - {*files}):
            return f"model.safetensors.index.json names {', '.join(missing)}, which is missing; copy the model again"
    if files and not weights:
        pickles = [file for file in files if PICKLES.fullmatch(file)]
        if pickles:
            return (
                f"its weights are a pickle ({pickles[0]}), which can run code when it is read; if you trust its "
                "author, save it once as model.safetensors with save_pretrained, or use another model, such as "
                "facebook/dinov2-small"
            )
        if others := [file for file in files if OTHER_FRAMEWORKS.fullmatch(file)]:
            return f"its weights are for another framework ({others[0]}), not model.safetensors; {ANOTHER}"
        return (
            "it has no model.safetensors; copy the weights too, or train its architecture from random weights with "
            "train_scratch.py --model_name_or_path"
        )
    return f"{told}; if model.safetensors is incomplete, download it again, or {ANOTHER}"
