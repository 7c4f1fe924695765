"""What does the model card say? It is written from `results.json` and the list of published files."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from agritransfer.evaluation.report import markdown_table
from agritransfer.evaluation.results import class_drops, epochs_text, interval_text
from agritransfer.evaluation.selective import never_sure, promise
from agritransfer.strategies import STRATEGIES
from agritransfer.wording import as_code, counted, in_markdown, listed

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
SPLIT_TITLES = {"test": "test", "shift": "field"}
FEW_PHOTOS = 30


def model_card(
    results: dict[str, Any],
    repo_id: str,
    files: Collection[str],
    *,
    licence: str | None,
    base_licence: str | None,
    adapter_fits_base: bool,
) -> ModelCard:
    """The model card of a run with these published results and files (paths in the repository).

    `adapter_fits_base`: whether base model and adapter have the same input size.
    """
    return ModelCard.from_template(
        card_data=card_data(results, licence),
        template_path=str(TEMPLATE),
        title=f"{repo_id.split('/')[-1]}: {_list_of(results['dataset']['labels'], 4)}",
        repo_id=repo_id,
        labels=_list_of(results["dataset"]["labels"]),
        summary=_summary(results),
        scores=_scores(results),
        field_note=_field_note(results),
        strangers=_strangers(results),
        other_ways=_other_ways(results, repo_id, files, adapter_fits_base),
        intervals=_intervals(results),
        per_class=_per_class(results),
        calibration=_calibration(results),
        data=_data(results),
        counts=_counts(results),
        training=_training(results),
        # One flag per line, since cards are also read on phones.
        command=results["command"].replace(" --", " \\\n    --"),
        limits=_limits(results),
        licence=_licence(results, licence, base_licence),
    )


def card_data(results: dict[str, Any], licence: str | None) -> ModelCardData:
    """The metadata of the card: task, base model, dataset and the scores as `model-index`."""
    dataset, base = results["dataset"], results["base_model"]
    on_hub = dataset["revision"] is not None
    facts: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "agriculture", "plant-disease", "agritransfer", results["strategy"]],
        "metrics": ["accuracy", "f1"],
        "model_name": f"{STRATEGIES[results['strategy']].title} on {dataset['name']}",
        "eval_results": [
            EvalResult(
                task_type="image-classification",
                task_name="Image classification",
                dataset_type=dataset["name"] if split == "test" else results["shift"]["name"],
                dataset_name=f"{dataset['name'] if split == 'test' else results['shift']['name']} ({title})",
                dataset_split=title,
                # Runs from before --dataset_config_name lack its entry.
                dataset_config=dataset.get("config") if split == "test" else None,
                dataset_revision=dataset["revision"] if split == "test" else None,
                metric_type=metric,
                metric_name=name,
                metric_value=round(results[split][key], 4),
            )
            for split, title in SPLIT_TITLES.items()
            if results[split]
            for metric, name, key in (("accuracy", "Accuracy", "accuracy"), ("f1", "Macro F1", "macro_f1"))
        ],
    }
    if on_hub:
        facts["datasets"] = [dataset["name"]]
    if base is not None and base["revision"] is not None:
        # Only a Hub ID belongs here; the name of a folder would refer to someone else's model.
        facts |= {
            "base_model": base["name"],
            "base_model_relation": STRATEGIES[results["strategy"]].base_model_relation,
        }
    if licence is not None:
        facts["license"] = licence
    return ModelCardData(**facts)


def eval_results(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of `.eval_results/*.yaml`, which the Hub shows on its datasets; empty for local photos."""
    dataset = results["dataset"]
    if dataset["revision"] is None:
        return []
    return eval_result_entries_to_yaml(
        [
            EvalResultEntry(
                dataset_id=dataset["name"],
                task_id="image-classification",
                value=round(results["test"]["macro_f1"], 4),
                dataset_revision=dataset["revision"],
                notes=f"macro F1 on {results['test']['n']} test photos",
            )
        ]
    )


def _list_of(names: list[str], most: int = 40) -> str:
    shown = ", ".join(map(in_markdown, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _summary(results: dict[str, Any]) -> str:
    base, training = results["base_model"], results["training"]
    start = f", starting from {as_code(base['name'])}" if base else ""
    # Runs of earlier versions do not have it.
    if architecture := results.get("architecture"):
        start = f", with random weights in the architecture of {as_code(architecture['name'])}"
    taken = ""
    if square := results.get("input"):
        taken = f" Photos become squares of {square['image_size']} pixels (`--resize_mode {square['resize_mode']}`)."
    count = len(results["dataset"]["labels"])
    return (
        f"Classifies photos into {count} classes. Strategy: {STRATEGIES[results['strategy']].title}{start}. "
        f"{training['trainable_parameters']:,} of {training['total_parameters']:,} weights were trained.{taken}"
    )


def _scores(results: dict[str, Any]) -> str:
    rows = [
        [
            f"**{title}**",
            str(scores["n"]),
            interval_text(scores, "accuracy"),
            interval_text(scores, "macro_f1"),
            f"{scores['balanced_accuracy']:.3f}",
        ]
        for split, title in SPLIT_TITLES.items()
        if (scores := results[split])
    ]
    return markdown_table(["", "photos", "accuracy (95% CI)", "macro F1 (95% CI)", "balanced accuracy"], rows)


def _field_note(results: dict[str, Any]) -> str:
    if not results["shift"]:
        return (
            "**Not tested on field photos.** The test photos come from the same collection as the training photos; "
            "expect lower scores in the field."
        )
    worst = class_drops(results)[0]
    return (
        f"Field photos: {as_code(results['shift']['name'])}, never trained on. The largest drop is that of "
        f"{in_markdown(worst['label'])}: "
        f"F1 {worst['test']:.3f} on the test photos, {worst['shift']:.3f} on the field photos."
    )


def _strangers(results: dict[str, Any]) -> str:
    if results["calibration"]["unknown"]:
        return 'the model should answer "unknown", but does not always recognize such photos.'
    return "the model does not recognize such photos and names one of its classes."


def _other_ways(results: dict[str, Any], repo_id: str, files: Collection[str], adapter_fits_base: bool) -> str:
    parts = []
    if "adapter/adapter_config.json" in files:
        parts.append(_adapter_way(results, repo_id, adapter_fits_base))
    if "onnx/model.onnx" in files:
        kinds = "`onnx/model.onnx`"
        if "onnx/model_quantized.onnx" in files:
            kinds += " and `onnx/model_quantized.onnx` (8 bits)"
        parts.append(
            f"Without torch, with ONNX Runtime or transformers.js: {kinds}; input `pixel_values`, outputs `logits`, "
            "`features` and `evidence`. The metadata of the file hold preprocessing and calibration."
        )
    return "".join(f"\n{part}\n" for part in parts)


def _adapter_way(results: dict[str, Any], repo_id: str, adapter_fits_base: bool) -> str:
    base = results["base_model"]
    base_name = as_code(base["name"])
    if base["revision"] is None:
        return (
            f"`adapter/` holds only the LoRA adapter. It needs its base model {base_name}, which is not on the "
            "Hub; in the weights of this repository the adapter is already merged."
        )
    if not adapter_fits_base:
        # Otherwise the position embeddings would silently be reinitialized.
        return (
            f"`adapter/` holds only the LoRA adapter. It was trained on {base_name} with another input size "
            "(`image_size` in `adapter/config.json`) and does not fit the original model; in the weights of this "
            "repository the adapter is already merged."
        )
    return (
        "The LoRA adapter on its base model:\n\n"
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoConfig, AutoModelForImageClassification\n\n"
        f'config = AutoConfig.from_pretrained("{repo_id}", subfolder="adapter")\n'
        "base = AutoModelForImageClassification.from_pretrained(\n"
        f'    "{base["name"]}", revision="{base["revision"]}", config=config, ignore_mismatched_sizes=True\n'
        ")\n"
        f'model = PeftModel.from_pretrained(base, "{repo_id}", subfolder="adapter")\n'
        "```"
    )


def _intervals(results: dict[str, Any]) -> str:
    grouped = results["splits"]["method"] == "group"
    unit = "; photos of one group (copies, or the same plant, field or day) count less" if grouped else ""
    return (
        "Brackets hold 95% confidence intervals: Wilson's for accuracy, Clopper and Pearson's for macro F1 with the "
        f"number of photos that an average over the classes is worth{unit}. The test photos were scored once, after "
        "training, with the saved files."
    )


def _per_class(results: dict[str, Any]) -> str:
    shift = results["shift"]
    field = [f"{row['f1']:.3f} ({row['n']})" if row["n"] else "" for row in shift["per_class"]] if shift else []
    rows = [
        [
            in_markdown(row["label"]),
            str(row["n"]),
            *(f"{row[name]:.3f}" for name in ("precision", "recall", "f1")),
            *field[i : i + 1],
        ]
        for i, row in enumerate(results["test"]["per_class"])
    ]
    headings = ["class", "test photos", "precision", "recall", "F1", *(["field F1 (photos)"] if shift else [])]
    return markdown_table(headings, rows)


def _calibration(results: dict[str, Any]) -> str:
    calibration, test = results["calibration"], results["test"]
    text = (
        f"The logits are divided by a temperature of {calibration['temperature']:.2f}, fitted on the validation "
        f"photos. This changes the expected calibration error on the test photos from {test['ece']:.3f} to "
        f"{test['ece_calibrated']:.3f}. "
    )
    if reason := never_sure(calibration):
        return f'**Every answer of this model is "not sure"**: {reason}.\n\n{text}'.rstrip()
    text += f'Below a probability of {calibration["threshold"]:.2f} the answer is "not sure"'
    text += '; for a photo unlike the known photos it is "unknown". ' if calibration["unknown"] else ". "
    for split, title in SPLIT_TITLES.items():
        if results[split]:
            answered = results[split]["answered"]
            error = "" if answered["error"] is None else f", and {answered['error']:.1%} of the answers are wrong"
            text += f"The model answers {answered['coverage']:.1%} of the {title} photos{error}. "
    said = promise(calibration)
    return text + f"The promise: {said}. It does not hold for other photos, such as those of another camera or season."


def _data(results: dict[str, Any]) -> str:
    dataset, splits = results["dataset"], results["splits"]
    where = f"revision `{dataset['revision']}`" if dataset["revision"] else "local photos"
    if dataset.get("config"):
        where = f"configuration `{dataset['config']}`, {where}"
    leakage, broken = splits["leakage"], splits["broken"]
    cut = {
        "official": "The splits are the official ones",
        "stratified": f"The photos were split by class with seed {splits['seed']}",
        "group": f"The photos were split by class with seed {splits['seed']}; copies and groups are never divided",
    }[splits["method"]]
    if leakage["found"] is None:
        looked = (
            "The training photos were streamed and not checked for copies of validation or test photos, which would "
            "make the scores too high"
        )
    else:
        looked = (
            "Leakage check (mirrored, rotated, resized and re-encoded copies included): "
            f"{counted(leakage['found'], 'training photo')} found in the validation or test split, "
            f"{leakage['dropped']} dropped"
        )
        # Only runs with a field set have it.
        if field := leakage.get("shift"):
            looked += f"; {field['found']} found among the field photos, {field['dropped']} dropped"
    # Runs of earlier versions have none.
    read = "".join(f"{in_markdown(note[0].upper() + note[1:])}. " for note in dataset.get("notes", ()))
    return (
        f"{as_code(dataset['name'])} ({where}). {read}{_selection(results)}{cut}. {looked}. "
        f"Broken photos: {broken['found']} found, {broken['skipped']} skipped. "
        f"Fingerprint of photos and labels: `{dataset['fingerprint']}`."
    )


def _selection(results: dict[str, Any]) -> str:
    """What was chosen of the dataset, as sentences; nothing if all of it was used."""
    # Runs of earlier versions have none.
    selection = results.get("selection") or {}
    text = ""
    if patterns := selection.get("classes"):
        photos, classes = sum(selection["classes_left_out"].values()), len(selection["classes_left_out"])
        text += (
            f"Only classes that match {listed(list(map(as_code, patterns)))} were used; "
            f"{counted(photos, 'photo')} of {counted(classes, 'other class', 'other classes')} left out. "
        )
    if limit := selection.get("max_photos_per_class"):
        text += f"At most {counted(limit, 'training photo')} of each class. "
    if over := selection.get("photos_over_limits"):
        text += f"{counted(over, 'photo')} left out by limits on the number of photos. "
    return text


def _counts(results: dict[str, Any]) -> str:
    dataset = results["dataset"]
    # WebDataset shards do not list their labels.
    in_train = dataset["counts"]["train"]
    train = {label: f"{in_train.get(label, 0):,}" if in_train else "streamed" for label in dataset["labels"]}
    rows = [
        [
            in_markdown(label),
            train[label],
            *(f"{dataset['counts'][split].get(label, 0):,}" for split in ("validation", "test")),
        ]
        for label in dataset["labels"]
    ]
    return markdown_table(["photos", "train", "validation", "test"], rows)


def _training(results: dict[str, Any]) -> str:
    training, environment = results["training"], results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment.items() if name != "git_commit")
    if training.get("penalty") is None:
        what = f"{epochs_text(training)}, {counted(training['steps'], 'step')}"
        # Runs of earlier versions lack the entry.
        chosen_by = training.get("chosen_by", "macro_f1")
        reason = f"the best on the validation photos by `{chosen_by}`" if chosen_by else "the last one"
        kept = f"the weights are those of step {training['best_step']}, {reason}"
        if training["best_step"] == 0:
            kept = (
                "the weights are those that training started from, since no epoch was better on the validation photos"
            )
    else:
        what = "The head was fitted as a logistic regression on the features of the frozen backbone"
        kept = f"C={training['penalty']:g} had the lowest log loss of {training['steps']} penalties on photos held out"
    where = f"{training['num_processes']} x {training['device']}"
    return f"{what} in {training['seconds']:.0f} s on {where}; {kept}. {_chosen_from(results)}{versions}."


def _chosen_from(results: dict[str, Any]) -> str:
    """Which candidates the validation photos chose from, as a sentence; nothing if there was one."""
    # Only runs of `agritransfer train` have it.
    trained = [row for row in results.get("chosen_from", ()) if row["state"] == "trained"]
    if len(trained) < 2:
        return ""
    scores = [f"{STRATEGIES[row['strategy']].title} ({row['macro_f1']:.3f})" for row in trained]
    return (
        f"The validation photos chose it among {counted(len(trained), 'candidate')}, by their macro F1: "
        f"{listed(scores)}. "
    )


def _limits(results: dict[str, Any]) -> str:
    limits = []
    rare = [row for row in results["test"]["per_class"] if row["n"] < FEW_PHOTOS]
    if rare:
        named = _list_of([f"{row['label']} ({row['n']})" for row in rare], 8)
        limits.append(f"- Fewer than {FEW_PHOTOS} test photos, so scores are uncertain: {named}.")
    weakest = min((row for row in results["test"]["per_class"] if row["n"]), key=lambda row: row["f1"])
    limits.append(f"- Weakest class on the test photos: {in_markdown(weakest['label'])}, F1 {weakest['f1']:.3f}.")
    if not results["shift"]:
        limits.append(
            "- Single collection: the model may have learned background, light or camera instead of the disease."
        )
    limits.append("- Single run: another seed gives somewhat different scores.")
    return "\n".join(limits)


def _licence(results: dict[str, Any], licence: str | None, base_licence: str | None) -> str:
    said = (
        f"These weights: {licence}."
        if licence
        else "No license was chosen; ask the publisher before you use these weights."
    )
    base = results["base_model"]
    if base is None:
        return said
    return f"{said} Base model {as_code(base['name'])}: {base_licence or 'license unknown'}."
