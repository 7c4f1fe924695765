"""Frozen features rank networks, find labels that do not fit, and show what a backbone forgot."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from clusters import clusters
from scipy.stats import multivariate_normal
from transformers import ViTForImageClassification

from agritransfer.__main__ import main
from agritransfer.data.dataset import load_splits
from agritransfer.errors import UsageError
from agritransfer.evaluation.backbone_ranking import log_me, order_agreement


def test_logme_is_the_evidence_of_a_bayesian_linear_model():
    features, labels = clusters(60)
    target = (labels == 0).astype(float)
    # By hand: the marginal of the target is normal with covariance I / beta + F F^T / alpha; its best value on a grid.
    grid = np.exp(np.linspace(-4, 6, 60))
    gram = features @ features.T
    best = max(
        multivariate_normal(np.zeros(60), np.eye(60) / beta + gram / alpha).logpdf(target)
        for alpha in grid
        for beta in grid
    )
    found = [log_me(features, np.where(labels == 0, 0, -1)) * 60, best]
    # Two labels, 0 and the rest: the evidence of both is the mean, and the rest's target is one minus the first.
    rest = max(
        multivariate_normal(np.zeros(60), np.eye(60) / beta + gram / alpha).logpdf(1 - target)
        for alpha in grid
        for beta in grid
    )
    assert found[0] == pytest.approx((best + rest) / 2, abs=0.3)


def test_logme_prefers_features_that_tell_the_labels_apart_whether_few_or_many():
    for count in (30, 300):
        scores = [log_me(*clusters(count, apart=apart, width=40)) for apart in (0.0, 2.0, 6.0)]
        assert scores == sorted(scores) and scores[2] > scores[0] + 0.2


def test_the_agreement_of_two_orders_is_kendalls_tau_with_an_interval():
    before = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert order_agreement(before, before)[0] == pytest.approx(1.0)
    assert order_agreement(before, before[::-1])[0] == pytest.approx(-1.0)
    # Two neighbours swapped: 27 of 28 pairs agree.
    tau, (low, high) = order_agreement(before, [0.2, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert tau == pytest.approx((27 - 1) / 28)
    assert low < tau <= high <= 1
    with pytest.raises(UsageError, match="give no ranking to compare"):
        order_agreement([0.5, 0.5, 0.5], before[:3])


def put_networks(tiny_vit: Path, folder: Path) -> list[Path]:
    """Three networks of the same form: one sees the photo, one a little of it, one nothing."""
    networks = []
    for name, sight in (("sees", 1.0), ("dim", 1e-3), ("blind", 0.0)):
        model = ViTForImageClassification.from_pretrained(tiny_vit)
        model.vit.embeddings.patch_embeddings.projection.weight.data.mul_(sight)
        model.save_pretrained(folder / name)
        shutil.copy(tiny_vit / "preprocessor_config.json", folder / name)
        networks.append(folder / name)
    return networks


@pytest.mark.script
def test_networks_are_ranked_by_what_they_see_and_the_order_is_compared(photos, tiny_vit, tmp_path, capsys):
    networks = put_networks(tiny_vit, tmp_path)
    fingerprint = load_splits(str(photos)).fingerprint
    runs = []
    for network, score in zip(networks, (0.9, 0.6, 0.3), strict=True):
        run = tmp_path / "runs" / network.name
        run.mkdir(parents=True)
        facts = {"base_model": {"name": str(network)}, "dataset": {"fingerprint": fingerprint}}
        (run / "results.json").write_text(json.dumps({**facts, "test": {"macro_f1": score}}))
        runs.append(str(run))
    command = ["rank", str(photos), "--models", *map(str, reversed(networks)), "--output", str(tmp_path / "rank.json")]
    assert main([*command, "--runs", *runs]) == 0
    out = capsys.readouterr().out
    rows = {row["model"].rsplit("/", 1)[-1]: row for row in json.loads((tmp_path / "rank.json").read_text())}
    assert list(rows)[0] == "sees" and rows["sees"]["probe_macro_f1"] > rows["blind"]["probe_macro_f1"]
    # Blind, all validation photos get one answer: F1 of 0.5 for one class of three.
    assert rows["blind"]["probe_macro_f1"] == pytest.approx(0.5 / 3)
    assert rows["blind"]["logme"] == min(row["logme"] for row in rows.values())
    assert rows["sees"]["test_macro_f1"] == 0.9 and rows["sees"]["memory_bytes"] > 4 * 1000
    assert "agreement with the ranking after training, 3 backbones" in out and "6 validation photos" in out
    # Two runs hold no order, and runs on other photos say nothing of these.
    assert main([*command, "--runs", *runs[:2]]) == 2
    assert "a comparison of rankings needs at least 3" in capsys.readouterr().err
    facts = json.loads((tmp_path / "runs/sees/results.json").read_text()) | {"dataset": {"fingerprint": "other"}}
    (tmp_path / "runs/sees/results.json").write_text(json.dumps(facts))
    assert main([*command, "--runs", *runs]) == 3
    assert "was not trained on the photos of" in capsys.readouterr().err


@pytest.mark.script
def test_sizes_and_resize_modes_are_ranked_and_the_best_is_named_as_flags(photos, tiny_vit, tmp_path, capsys):
    command = ["rank", str(photos), "--models", str(tiny_vit), "--image_size", "32", "64", "--resize_mode", "squash"]
    assert main([*command, "letterbox", "squash", "--output", str(tmp_path / "rank.json")]) == 0
    out = capsys.readouterr().out
    rows = json.loads((tmp_path / "rank.json").read_text())
    tried = {(row["image_size"], row["resize_mode"]) for row in rows}
    assert tried == {(32, "squash"), (32, "letterbox"), (64, "squash"), (64, "letterbox")} and len(rows) == 4
    best = f"--image_size {rows[0]['image_size']} --resize_mode {rows[0]['resize_mode']}"
    assert out.strip().splitlines()[-1] == f"best: --model_name_or_path {tiny_vit} {best}"
    assert "64 px, letterbox" in out and "photos/s" in out


def test_rank_says_in_one_line_what_it_cannot_do(photos, tiny_vit, tmp_path, capsys):
    for words, complaint in (
        (["--models", tiny_vit, tiny_vit], "give two or more different --models, or several of --image_size or"),
        (
            ["--models", tiny_vit, "--image_size", "32", "64", "--runs", "x"],
            "give one --image_size and one --resize_mode",
        ),
        (["--models", tiny_vit, "--image_size", "32", "0"], "--image_size 0 is out of range"),
        (["--models", tiny_vit, "x", "--output", tmp_path / "no/rank.json"], "there is no folder"),
        (["--models", tiny_vit, "x", "--runs", tmp_path], "is not a finished run"),
        (["--models", tiny_vit, "x", "--output", photos / "rust/00.jpg"], "is no report of this command"),
    ):
        assert main(["rank", str(photos), *map(str, words)]) == 2
        err = capsys.readouterr().err
        assert complaint in err and err.count("\n") == 1, err
