"""Real photos and real weights of ../shared: what only they can show."""

import csv
import warnings

import pytest
from conftest import ROOT
from transformers import pipeline

SHARED = ROOT.parent / "shared"
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not SHARED.is_dir(), reason="real photos and weights are not beside this checkout"),
]
FEW = ("--max_train_samples", "240", "--max_eval_samples", "60", "--num_train_epochs", "3", "--image_size", "112")
LAB, FIELD = SHARED / "data/cardamom_lab", SHARED / "data/cardamom_field"


@pytest.mark.parametrize(
    ("script", "model", "flags", "at_least"),
    [
        ("train_finetune.py", "dinov2-small-saliency", ("--train_layers", "head"), 0.85),
        ("train_lora.py", "efficientnet-lite0", ("--lora_r", "8"), 0.7),
    ],
)
def test_a_few_real_photos_are_learnt_and_served_alike(script, model, flags, at_least, tmp_path, run_script):
    run = tmp_path / "run"
    names = ("--dataset_name", LAB, "--shift_dataset_name", FIELD, "--model_name_or_path", SHARED / "models" / model)
    code, _, err = run_script(script, *names, *flags, *FEW, "--output_dir", run, "--use_cpu")
    assert code == 0, err
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    test = [row for row in rows if row["split"] == "test"]
    assert sum(row["label"] == row["predicted"] for row in test) / len(test) >= at_least
    with warnings.catch_warnings():
        # transformers warns of its own argument when a pipeline is built.
        warnings.simplefilter("ignore")
        classifier = pipeline("image-classification", model=str(run))
    folders = {"test": LAB, "shift": FIELD}
    served = [classifier(str(folders[r["split"]] / r["file"]), top_k=1)[0] for r in rows if r["split"] in folders]
    assert [answer["label"] for answer in served] == [r["predicted"] for r in rows if r["split"] in folders]


def test_jpeg_and_png_photos_of_the_field_are_all_found():
    from agritransfer.data import load_splits

    splits = load_splits(str(SHARED / "data/rice_field"))
    assert len(splits.photos) == len(splits.found) == 552
    assert splits.labels == ["bacterial_leaf_blight", "blast", "brown_spot"]
