"""The fitted head is optimal, photos held out choose its penalty, and features are computed once."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from finished_runs import EVERY_RUN, SHORT, check_run, files_of
from networks import build
from photo_trainer import Calls, trainer_of
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from small_trainer import StopAt

from agritransfer.data.dataset import Splits, load_splits
from agritransfer.errors import UsageError
from agritransfer.evaluation.logistic_regression import PENALTIES
from agritransfer.models.freezing import train_layers
from agritransfer.training import linear_probe
from agritransfer.training.checkpoints import newest_checkpoint, put_aside
from agritransfer.training.linear_probe import begin_with_solved_head, solve, solve_head
from agritransfer.training.trainer import ImageTrainer


def clouds(count: int, classes: int, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of 6 numbers of very different size around a centre for each class, and the labels."""
    centres = np.random.default_rng(0).normal(size=(classes, 6))
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    features = centres[labels] + random.normal(scale=noise, size=(count, 6))
    return (features * [1, 10, 100, 0.1, 1, 1] + [5, 0, -300, 0, 1, 0]).astype(np.float32), labels


def penalised_gradient(solved, features, labels, of_class, classes) -> np.ndarray:
    """Of the loss summed over the photos plus the penalty, by the standardised weights and the bias; per photo."""
    scaler = StandardScaler().fit(features.astype(np.float64))
    scaled, penalty = scaler.transform(features.astype(np.float64)), solved.sweep[solved.best]["penalty"]
    logits = features.astype(np.float64) @ solved.weight.T + solved.bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = shares / shares.sum(axis=1, keepdims=True)
    wrong = of_class[labels][:, None] * (shares - np.eye(classes)[labels])
    by_weight = wrong.T @ scaled + solved.weight * scaler.scale_ / penalty
    return np.column_stack([by_weight, wrong.sum(axis=0)]) / len(labels)


@pytest.mark.parametrize("of_class", [[1.0, 1.0, 1.0], [0.2, 1.0, 3.0]])
def test_a_solved_head_is_the_optimum_of_the_penalised_loss(of_class):
    of_class = np.array(of_class)
    features, labels = clouds(90, 3, seed=1)
    solved = solve(features, labels, of_class, *clouds(60, 3, seed=2), [""] * 90)
    assert np.abs(penalised_gradient(solved, features, labels, of_class, 3)).max() < 1e-5
    # Far from it without the penalty's part, so the test can fail.
    moved = replace(solved, weight=solved.weight * 1.05)
    assert np.abs(penalised_gradient(moved, features, labels, of_class, 3)).max() > 1e-3


def test_of_two_classes_the_head_gives_the_odds_of_logistic_regression():
    features, labels = clouds(60, 2, seed=1, noise=2.0)
    solved = solve(features, labels, np.ones(2), *clouds(40, 2, seed=2, noise=2.0), [""] * 60)
    scaler = StandardScaler().fit(features)
    # One logit instead of two weights that are penalized each.
    peer = LogisticRegression(C=2 * solved.sweep[solved.best]["penalty"], tol=1e-8, max_iter=10_000)
    odds = peer.fit(scaler.transform(features), labels).decision_function(scaler.transform(features))
    logits = features @ solved.weight.T + solved.bias
    assert logits[:, 1] - logits[:, 0] == pytest.approx(odds, abs=1e-3)


def test_views_of_a_photo_share_its_weight():
    features, labels = clouds(90, 3, seed=1)
    once = solve(features, labels, np.ones(3), *clouds(60, 3, seed=2), [""] * 90)
    thrice = solve(
        np.tile(features, (3, 1)), np.tile(labels, 3), np.ones(3), *clouds(60, 3, seed=2), [""] * 90, views=3
    )
    assert thrice.weight == pytest.approx(once.weight, abs=1e-4)
    assert thrice.sweep[thrice.best] == pytest.approx(once.sweep[once.best], abs=1e-4)


def test_the_log_loss_on_validation_and_held_out_photos_chooses_the_penalty(monkeypatch):
    train, validation = clouds(60, 3, seed=1, noise=3.0), clouds(40, 3, seed=2, noise=3.0)
    solved = solve(*train, np.ones(3), *validation, [""] * 60)
    losses = [row["held_out_loss"] for row in solved.sweep]
    assert solved.best == int(np.argmin(losses)) and solved.held_out == 60
    assert [row["penalty"] for row in solved.sweep] == list(PENALTIES[: len(losses)])
    # Where validation is large enough, it alone decides.
    monkeypatch.setattr(linear_probe, "ENOUGH_PHOTOS", 40)
    alone = solve(*train, np.ones(3), *validation, [""] * 60)
    assert alone.held_out == 0
    losses = [row["eval_loss"] for row in alone.sweep]
    assert [row["held_out_loss"] for row in alone.sweep] == pytest.approx(losses, abs=1e-3)


def test_copies_in_one_group_lead_to_another_penalty_than_copies_that_folds_divide():
    random = np.random.default_rng(0)
    noise, labels = np.repeat(random.normal(size=(60, 300)).astype(np.float32), 2, axis=0), np.arange(120) // 2 % 2
    validation = random.normal(size=(20, 300)).astype(np.float32), np.arange(20) % 2
    penalties = []
    for groups in ([""] * 120, [f"pair {place // 2}" for place in range(120)]):
        solved = solve(noise, labels, np.ones(2), *validation, groups)
        penalties.append(solved.sweep[solved.best]["penalty"])
    assert penalties[1] < penalties[0] / 10


@pytest.fixture(scope="module")
def splits(photos) -> Splits:
    return load_splits(str(photos))


@pytest.mark.parametrize(("kind", "views"), [("vit", None), ("dinov2", None), ("timm efficientnet", 3)])
def test_features_are_computed_once_and_only_the_head_moves(kind, views, splits, tmp_path):
    model = build(kind)
    train_layers(model, "head")
    trainer = trainer_of(model, splits, tmp_path, augmentation="light" if views else "none")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = Calls(model)
    solve_head(trainer, views)
    passes = views or 1
    assert seen.photos == passes * len(trainer.train_dataset) + len(trainer.eval_dataset)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len(moved) == 2 and {name.rsplit(".", 1)[1] for name in moved} == {"weight", "bias"}
    assert trainer.state.epoch == passes
    # What the sweep says of validation is what the model with this head gives.
    best = next(row for row in trainer.state.log_history if row.get("step") == trainer.state.best_global_step)
    measured = trainer.evaluate()
    assert measured["eval_loss"] == pytest.approx(best["eval_loss"], abs=1e-4)


@pytest.mark.script
def test_another_seed_draws_other_views_and_the_same_seed_the_same(splits, tmp_path):
    def head(seed: int) -> torch.Tensor:
        model = build("vit")
        train_layers(model, "head")
        torch.rand(seed)
        solve_head(trainer_of(model, splits, tmp_path, seed=seed), 2)
        return model.classifier.weight.detach()

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_what_a_solved_head_cannot_follow_is_refused(splits, tmp_path):
    trainer = trainer_of(build("vit"), splits, tmp_path, "none", label_smoothing_factor=0.1)
    with pytest.raises(UsageError, match="does not support --label_smoothing_factor; remove it"):
        solve_head(trainer, None)


@pytest.mark.script
@pytest.mark.parametrize("kind", ["vit", "resnet", "timm efficientnet"])
def test_a_head_solved_first_is_the_one_that_fine_tuning_begins_with(kind, splits, tmp_path):
    alone = build(kind)
    train_layers(alone, "head")
    solve_head(trainer_of(alone, splits, tmp_path, "none"), None)
    model = build(kind)
    trainer = trainer_of(model, splits, tmp_path, learning_rate=0.0, num_train_epochs=1)
    begin_with_solved_head(trainer, splits.dataset("train", trainer.processor))
    trainer.train()
    assert trainer.state.global_step == 3
    # At a rate of 0 nothing moves, the statistics of BatchNorm no more than the weights: the head was solved for them.
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, alone.state_dict()[name]), name


@pytest.mark.script
@pytest.mark.parametrize("kind", ["vit", "timm efficientnet"])
def test_a_resumed_run_takes_its_head_from_the_checkpoint_and_ends_as_an_uninterrupted_one(
    kind, splits, tmp_path, capsys
):
    def begun(folder: str) -> tuple[ImageTrainer, int]:
        trainer = trainer_of(build(kind), splits, tmp_path / folder, num_train_epochs=2)
        seen = Calls(trainer.model)
        begin_with_solved_head(trainer, splits.dataset("train", trainer.processor))
        return trainer, seen.photos

    whole, photos = begun("whole")
    assert photos == 24 + 6
    whole.train()
    stopped, _ = begun("run")
    stopped.add_callback(StopAt(3))
    stopped.train()
    resumed, photos = begun("run")
    assert photos == 0
    assert capsys.readouterr().out.count("head: taken from the checkpoint, not fitted again") == 1
    checkpoint, _ = newest_checkpoint(tmp_path / "run/checkpoints")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == whole.state.global_step == 6
    # The statistics of BatchNorm too, which stay those of the pretrained network.
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
        assert not name.endswith("running_mean") or torch.equal(tensor, build(kind).state_dict()[name]), name
    # Without a complete checkpoint the run begins again, and so does the head.
    put_aside(checkpoint)
    assert begun("run")[1] == 24 + 6


HEAD = ("--train_layers", "head")


@pytest.mark.parametrize("views", [(), ("--cached_views", "2")])
def test_feature_extraction_leaves_a_whole_run_folder_without_epochs(views, photos, tiny_vit, tmp_path, run_script):
    run = tmp_path / "run"
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, *HEAD, *views, *SHORT, "--output_dir", run)
    code, out, err = run_script("train_finetune.py", *flags, "--class_weights", "balanced")
    assert code == 0, err
    assert files_of(run) == EVERY_RUN and not (run / "checkpoints").exists()
    training = check_run(run, photos, "head")["training"]
    assert training["epochs"] == (2 if views else 1)
    assert training["trainable_parameters"] == 16 * 3 + 3
    assert 1 <= training["best_step"] <= training["steps"] <= len(PENALTIES)
    # The seconds are told to a tenth, the speed to a hundredth.
    speed = 24 * training["epochs"] / training["seconds"]
    assert training["images_per_second"] == pytest.approx(speed, rel=0.06 / training["seconds"], abs=0.006)
    assert "learning_rate, weight_decay and num_train_epochs have no effect" in out
    assert (
        out.count("has the lowest log loss on 6 validation photos and 24 held-out train photos; validation: acc") == 1
        and "forecast" not in out
    )
    assert ("augmentation=none" in out) == (not views)
    assert training["chosen_by"] == "log_loss"
    assert training["penalty"] == PENALTIES[training["best_step"] - 1]
    assert f"; kept the best of {training['steps']} penalties, C={training['penalty']:g}\n" in out
    before = (run / "model.safetensors").stat().st_mtime_ns
    assert run_script("train_finetune.py", *flags, "--class_weights", "balanced")[0] == 0
    assert (run / "model.safetensors").stat().st_mtime_ns == before


def test_the_scripts_train_last_blocks_and_adapters_on_cached_views(photos, tiny_vit, tmp_path, run_script):
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, *SHORT, "--cached_views", "1")
    chosen = {"train_finetune.py": ("--train_layers", "1", "--head_first"), "train_lora.py": ("--lora_layers", "1")}
    base = load_file(tiny_vit / "model.safetensors")
    for script, more in chosen.items():
        run = tmp_path / script
        code, out, err = run_script(script, *flags, *more, "--output_dir", run)
        assert code == 0, err
        assert "cached views: 1 of each train photo, as input of" in out and out.count("epoch ") == 2
        check_run(run, photos, "lora" if "lora" in script else "finetune")
        saved = load_file(run / "model.safetensors")
        assert saved.keys() == base.keys()
        moved = {name for name in base if not torch.equal(base[name], saved[name])}
        assert any(".1." in name for name in moved)
        assert not any(".0." in name or "embeddings" in name for name in moved)


@pytest.mark.slow
def test_on_the_drawn_leaves_a_solved_head_is_no_worse_than_a_trained_one(tmp_path, run_script):
    scores = []
    for more in ((), ("--augmentation", "light", "--num_train_epochs", "3")):
        run = tmp_path / str(len(more))
        flags = ("--dataset_name", "sample/leaves", "--model_name_or_path", "sample/vit", *HEAD, "--use_cpu")
        assert run_script("train_finetune.py", *flags, *more, "--output_dir", run)[0] == 0
        scores.append(json.loads((run / "results.json").read_text())["test"]["accuracy"])
    assert scores[0] >= scores[1] and scores[0] > 0.5
