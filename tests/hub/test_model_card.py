"""The card says what the results say, for data of the Hub and for a run that may promise nothing."""

import json

import pytest

from agritransfer.hub.model_card import card_data, eval_results, model_card

PER_CLASS = [
    {"label": "healthy", "n": 40, "precision": 0.9, "recall": 0.8, "f1": 0.847},
    {"label": "rust", "n": 20, "precision": 0.7, "recall": 0.6, "f1": 0.646},
]


SCORES = {
    **{"n": 60, "accuracy": 0.75, "accuracy_ci95": [0.63, 0.84], "macro_f1": 0.7465, "macro_f1_ci95": [0.62, 0.85]},
    **{"balanced_accuracy": 0.7, "ece": 0.1, "ece_calibrated": 0.05, "per_class": PER_CLASS},
    "answered": {"coverage": 0.5, "error": 0.04, "not_sure": 20, "unknown": 10},
}


def results(**changes) -> dict:
    facts = {
        "strategy": "scratch",
        "base_model": None,
        "dataset": {
            **{"name": "user/leaves", "revision": "abc", "fingerprint": "f1", "labels": ["healthy", "rust"]},
            "counts": {split: {"healthy": 40, "rust": 20} for split in ("train", "validation", "test")},
        },
        "splits": {
            **{"method": "official", "seed": None},
            **{"leakage": {"found": 3, "dropped": 2}, "broken": {"found": 1, "skipped": 1}},
        },
        "test": SCORES,
        "shift": {"name": "field", **SCORES, "per_class": [PER_CLASS[0], PER_CLASS[1] | {"f1": 0.3}]},
        "calibration": {
            **{"temperature": 1.5, "threshold": 0.8, "target_error": 0.05, "coverage": 0.6},
            "unknown": {"method": "m", "threshold": 4.0},
        },
        "training": {
            **{"epochs": 3, "steps": 30, "best_step": 20, "seconds": 60.0, "device": "cpu", "num_processes": 1},
            **{"trainable_parameters": 1000, "total_parameters": 1000},
        },
        "environment": {"python": "3.11", "torch": "2", "git_commit": "c"},
        "command": "python train_scratch.py --dataset_name user/leaves --seed 1",
    }
    return json.loads(json.dumps(facts)) | changes


def card_of(facts: dict) -> str:
    return str(model_card(facts, "user/m", (), licence="mit", base_licence=None, adapter_fits_base=True))


def test_scores_on_a_data_set_of_the_hub_are_told_to_the_hub():
    facts = results()
    head = card_data(facts, "mit").to_dict()
    assert head["datasets"] == ["user/leaves"] and head["license"] == "mit" and "base_model" not in head
    test, field = head["model-index"][0]["results"]
    assert test["dataset"] == {
        **{"name": "user/leaves (test)", "type": "user/leaves", "split": "test", "revision": "abc"}
    }
    assert field["dataset"]["type"] == "field" and "revision" not in field["dataset"]
    assert {metric["name"]: metric["value"] for metric in test["metrics"]} == {"Accuracy": 0.75, "Macro F1": 0.7465}
    (entry,) = eval_results(facts)
    assert entry["dataset"] == {"id": "user/leaves", "task_id": "image-classification", "revision": "abc"}
    assert entry["value"] == 0.7465
    chosen = results(dataset=facts["dataset"] | {"config": "lab"})
    assert card_data(chosen, None).to_dict()["model-index"][0]["results"][0]["dataset"]["config"] == "lab"
    assert "`user/leaves` (configuration `lab`, revision `abc`)" in card_of(chosen)
    local = results(dataset=facts["dataset"] | {"name": "leaves", "revision": None})
    assert eval_results(local) == [] and "datasets" not in card_data(local, None).to_dict()


def test_lab_and_field_limits_and_counts_stand_in_the_card():
    card = card_of(results())
    for words in (
        "| **test** | 60 | 0.750 [0.630, 0.840] |",
        "| **field** | 60 |",
        "The largest drop is that of rust: F1 0.646 on the test photos, 0.300 on the field photos.",
        "| rust | 20 | 0.700 | 0.600 | 0.646 | 0.300 (20) |",
        "Fewer than 30 test photos, so scores are uncertain: rust (20).",
        "3 training photos found in the validation or test split, 2 dropped",
        "The model answers 50.0% of the test photos, and 4.0% of the answers are wrong.",
        "revision `abc`",
        "python train_scratch.py \\\n    --dataset_name user/leaves \\\n    --seed 1",
    ):
        assert words in card, words
    assert "Strategy: training from scratch. 1,000 of 1,000 weights were trained." in card
    assert "The logits are divided by a temperature" in card
    assert "PeftModel" not in card and "onnx" not in card


def test_a_solved_head_is_told_by_its_penalty_and_a_trained_run_by_its_step():
    facts = results()
    assert "3 epochs, 30 steps in 60 s on 1 x cpu; the weights are those of step 20" in card_of(facts)
    solved = card_of(facts | {"training": facts["training"] | {"penalty": 0.1}})
    assert (
        "frozen backbone in 60 s on 1 x cpu; C=0.1 had the lowest log loss of 30 penalties on photos held out" in solved
    )


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ({"threshold": None}, '**Every answer of this model is "not sure"**: no threshold'),
        ({"unknown": None}, "the model does not recognize such photos and names one of its classes"),
    ],
)
def test_what_a_run_cannot_promise_is_said(calibration, words):
    facts = results()
    assert words in card_of(facts | {"calibration": facts["calibration"] | calibration})


def test_a_run_that_never_saw_the_field_says_so():
    card = card_of(results(shift=None))
    assert "**Not tested on field photos.**" in card and "| **field** |" not in card
    assert "the model may have learned background, light or camera instead of the disease" in card


def test_how_the_photos_were_read_and_chosen_is_said():
    facts = results()
    facts["dataset"]["notes"] = ["read inside 'leaves_2024', which holds everything"]
    facts["selection"] = {
        **{"classes": ["Tomato*"], "classes_left_out": {"Corn/rust": 7, "Corn/smut": 1}},
        **{"max_photos_per_class": 40, "photos_over_limits": 12},
    }
    facts["input"] = {"image_size": 112, "resize_mode": "letterbox"}
    card = card_of(facts)
    assert "Photos become squares of 112 pixels (`--resize_mode letterbox`)." in card
    assert "Read inside 'leaves_2024', which holds everything. " in card
    assert "Only classes that match `Tomato*` were used; 8 photos of 2 other classes left out. " in card
    assert "At most 40 training photos of each class. 12 photos left out by limits on the number of photos. " in card
    assert "Only classes" not in card_of(results()) and "At most 40" not in card_of(results())
