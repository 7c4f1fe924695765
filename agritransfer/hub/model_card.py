"""What does a stranger read? The model card, written from `results.json` and the list of published files alone."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from agritransfer.evaluation.report import markdown_table
from agritransfer.evaluation.results import class_drops, interval_text
from agritransfer.strategies import STRATEGIES

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
    """The card of a run with these published results and files (paths in the repository).

    `adapter_fits_base` tells whether the adapter can be put on its base as that is, for photos of the same size.
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
        # One flag a line, since a card is read on phones too.
        command=results["command"].replace(" --", " \\\n    --"),
        limits=_limits(results),
        licence=_licence(results, licence, base_licence),
    )


def card_data(results: dict[str, Any], licence: str | None) -> ModelCardData:
    """The card's metadata: task, base model, data set and the scores as `model-index`."""
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
        # Only a Hub id may stand here; a folder's name would point at a stranger's model.
        facts |= {
            "base_model": base["name"],
            "base_model_relation": STRATEGIES[results["strategy"]].base_model_relation,
        }
    if licence is not None:
        facts["license"] = licence
    return ModelCardData(**facts)


def eval_results(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of `.eval_results/*.yaml`, which the Hub shows beside its own data sets; empty for local photos."""
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
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _summary(results: dict[str, Any]) -> str:
    base, training = results["base_model"], results["training"]
    began = f"on top of `{base['name']}`" if base else "from random weights"
    count = len(results["dataset"]["labels"])
    return (
        f"Tells {count} classes of photos apart. Trained by {STRATEGIES[results['strategy']].title} {began}: "
        f"{training['trainable_parameters']:,} of {training['total_parameters']:,} weights were trained."
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
    return markdown_table(["", "photos", "accuracy (95 %)", "macro F1 (95 %)", "balanced accuracy"], rows)


def _field_note(results: dict[str, Any]) -> str:
    if not results["shift"]:
        return (
            "**Never tested on photos of another place.** The test photos come from the same collection as the "
            "training photos; expect a lower score in the field."
        )
    worst = class_drops(results)[0]
    return (
        f"Field: `{results['shift']['name']}`, never trained on. The class that suffers most is {worst['label']}, "
        f"F1 {worst['test']:.3f} on the test and {worst['shift']:.3f} in the field."
    )


def _strangers(results: dict[str, Any]) -> str:
    if results["calibration"]["unknown"]:
        return 'such photos are meant to be called "unknown", which is never sure.'
    return "it cannot tell such photos from its own and will name one of its classes."


def _other_ways(results: dict[str, Any], repo_id: str, files: Collection[str], adapter_fits_base: bool) -> str:
    parts = []
    if "adapter/adapter_config.json" in files:
        parts.append(_adapter_way(results, repo_id, adapter_fits_base))
    if "onnx/model.onnx" in files:
        kinds = "`onnx/model.onnx`"
        if "onnx/model_quantized.onnx" in files:
            kinds += " and, in 8 bits, `onnx/model_quantized.onnx`"
        parts.append(
            f"Without torch, by ONNX Runtime or transformers.js: {kinds}; input `pixel_values`, outputs `logits`, "
            "`features`, `evidence`. Preprocessing and calibration are in the metadata of the file."
        )
    return "".join(f"\n{part}\n" for part in parts)


def _adapter_way(results: dict[str, Any], repo_id: str, adapter_fits_base: bool) -> str:
    base = results["base_model"]
    if base["revision"] is None:
        return (
            f"`adapter/` holds the LoRA adapter alone. It needs its base model, `{base['name']}`, which is not on the "
            "Hub; the weights of this repository have it merged in."
        )
    if not adapter_fits_base:
        # The position embeddings would silently be drawn anew.
        return (
            f"`adapter/` holds the LoRA adapter alone. It was trained on `{base['name']}` brought to another photo "
            "size (`image_size` in `adapter/config.json`), so that it does not fit that model as it is; the weights of "
            "this repository have it merged in."
        )
    return (
        "The LoRA adapter alone, on its base model:\n\n"
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
    unit = "groups of photos (copies, or one plant, field or day)" if grouped else "photos"
    return (
        f"Brackets are 95 % intervals: Wilson's for accuracy, a bootstrap over {unit} for macro F1. The test was "
        "scored once, after training, from the saved files."
    )


def _per_class(results: dict[str, Any]) -> str:
    shift = results["shift"]
    field = [f"{row['f1']:.3f} ({row['n']})" if row["n"] else "" for row in shift["per_class"]] if shift else []
    rows = [
        [
            row["label"],
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
        f"Probabilities are divided by a temperature of {calibration['temperature']:.2f}, fitted on the validation "
        f"photos; the expected calibration error on the test is {test['ece']:.3f} before and "
        f"{test['ece_calibrated']:.3f} after. "
    )
    if calibration["threshold"] is None:
        return text + (
            f"No threshold keeps the error under {calibration['target_error']:.0%} on the validation photos, so that "
            'every answer is "not sure".'
        )
    text += f'Below a probability of {calibration["threshold"]:.2f} the answer is "not sure"'
    text += ", and a photo unlike the validation photos is called unknown. " if calibration["unknown"] else ". "
    for split, title in SPLIT_TITLES.items():
        if results[split]:
            answered = results[split]["answered"]
            error = "" if answered["error"] is None else f", {answered['error']:.1%} of the answers wrong"
            text += f"On the {title} photos it answers {answered['coverage']:.1%}{error}. "
    return text + f"The target was at most {calibration['target_error']:.0%} wrong."


def _data(results: dict[str, Any]) -> str:
    dataset, splits = results["dataset"], results["splits"]
    where = f"revision `{dataset['revision']}`" if dataset["revision"] else "local photos"
    leakage, broken = splits["leakage"], splits["broken"]
    cut = {
        "official": "The splits are the data's own",
        "stratified": f"The splits were cut by class, seed {splits['seed']}",
        "group": f"The splits were cut by class and never divide copies or given groups, seed {splits['seed']}",
    }[splits["method"]]
    if leakage["found"] is None:
        looked = (
            "The training photos were streamed: copies of them among the photos to be scored were not looked for, and "
            "would make the scores too high"
        )
    else:
        looked = (
            "Copies of a photo (mirrored, turned, resized, encoded again) were looked for: "
            f"{leakage['found']} training photos were found again among photos to be scored, {leakage['dropped']} of "
            "them were left out"
        )
    return (
        f"`{dataset['name']}` ({where}). {cut}. {looked}. Broken photos: {broken['found']} found, "
        f"{broken['skipped']} left out. Fingerprint of photos and labels: `{dataset['fingerprint']}`."
    )


def _counts(results: dict[str, Any]) -> str:
    dataset = results["dataset"]
    # Shards of WebDataset do not tell what they hold.
    counted = dataset["counts"]["train"]
    train = {label: f"{counted.get(label, 0):,}" if counted else "streamed" for label in dataset["labels"]}
    rows = [
        [label, train[label], *(f"{dataset['counts'][split].get(label, 0):,}" for split in ("validation", "test"))]
        for label in dataset["labels"]
    ]
    return markdown_table(["photos", "train", "validation", "test"], rows)


def _training(results: dict[str, Any]) -> str:
    training, environment = results["training"], results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment.items() if name != "git_commit")
    if training.get("penalty") is None:
        what = f"{training['epochs']:g} epochs, {training['steps']} steps"
        kept = f"the weights are those of step {training['best_step']}, the best on validation"
    else:
        what = "The head solved as a logistic regression on the features of the frozen network"
        kept = f"of {training['steps']} penalties C={training['penalty']:g} was the best on validation"
    where = f"{training['num_processes']} x {training['device']}"
    return f"{what} in {training['seconds']:.0f} s on {where}; {kept}. {versions}."


def _limits(results: dict[str, Any]) -> str:
    limits = []
    rare = [row for row in results["test"]["per_class"] if row["n"] < FEW_PHOTOS]
    if rare:
        named = _list_of([f"{row['label']} ({row['n']})" for row in rare], 8)
        limits.append(f"- Fewer than {FEW_PHOTOS} test photos, so that their scores say little: {named}.")
    weakest = min((row for row in results["test"]["per_class"] if row["n"]), key=lambda row: row["f1"])
    limits.append(f"- Weakest class on the test: {weakest['label']}, F1 {weakest['f1']:.3f}.")
    if not results["shift"]:
        limits.append("- One collection only: background, light and camera may have been learnt with the disease.")
    limits.append("- One run with one seed: another seed gives somewhat other scores.")
    return "\n".join(limits)


def _licence(results: dict[str, Any], licence: str | None, base_licence: str | None) -> str:
    said = f"These weights: {licence}." if licence else "No licence was chosen: ask the publisher before you use it."
    base = results["base_model"]
    if base is None:
        return said
    return f"{said} Base model `{base['name']}`: {base_licence or 'licence not known here'}."
