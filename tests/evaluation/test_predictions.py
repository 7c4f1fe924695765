"""Tests that the scores are scikit-learn's, their intervals the published ones, and the files complete."""

import csv

import numpy as np
import pytest
from answers import LABELS

from agritransfer.data.readers.source import Photo
from agritransfer.evaluation.predictions import write_predictions


def test_every_scored_photo_is_a_row_with_all_that_is_needed_to_score_it_again(tmp_path):
    validation = [Photo(0, "a/1.jpg", "rust", "validation", "field 7"), Photo(1, "a,2.jpg", "healthy", "validation")]
    test = [Photo(2, "b/ñ.jpg", "mosaic", "test")]
    logits = {
        "validation": np.array([[0.5, -1.25, 2], [1e-7, 0, -1]], dtype=np.float32),
        "test": np.array([[3.14159265, 0, 0]], dtype=np.float32),
    }
    scored = {"validation": (validation, logits["validation"]), "test": (test, logits["test"])}
    write_predictions(tmp_path / "predictions.csv", scored, LABELS)
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert ",".join(header) == "split,file,group,label,predicted,logit_healthy,logit_mosaic,logit_rust"
    assert rows == [
        ["validation", "a/1.jpg", "field 7", "rust", "rust", "0.5", "-1.25", "2"],
        ["validation", "a,2.jpg", "", "healthy", "healthy", "1e-07", "0", "-1"],
        ["test", "b/ñ.jpg", "", "mosaic", "healthy", "3.14159", "0", "0"],
    ]


def test_a_split_whose_photos_and_logits_differ_in_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        write_predictions(
            tmp_path / "predictions.csv", {"test": ([Photo(0, "a.jpg", "rust", "test")] * 2, np.zeros((1, 3)))}, LABELS
        )
