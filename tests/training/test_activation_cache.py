"""Tests that what is not computed again is what would be computed, and that nothing else changes."""

import os
import re
from pathlib import Path

import pytest
import torch
from networks import LORA, build
from photo_trainer import Calls, trainer_of
from small_trainer import StopAt
from torch import nn
from transformers import TrainerCallback

from agritransfer.data.dataset import Splits, load_splits
from agritransfer.errors import Preempted
from agritransfer.models.freezing import train_layers
from agritransfer.models.lora import add_lora
from agritransfer.models.structure import find_blocks
from agritransfer.training.activation_cache import CachedPhotos, frozen_prefix
from agritransfer.training.partial_forward import activation_at, activations, batches_of
from agritransfer.training.trainer import ImageTrainer

# peft 0.21 asks transformers 5.23 by an old name; pytest undoes the filter that strategies.py sets when imported.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


ROOM = 10**9


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The activations of each test lie in a folder of its own."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def splits(photos) -> Splits:
    return load_splits(str(photos))


def pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, given: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(pixel_values=given).logits


def moving(model: nn.Module, kind: str) -> nn.Module:
    """The network with its last block to train; with adapters in it where the kind says so."""
    if kind.endswith(" lora"):
        return add_lora(model, **LORA, layers="1")
    train_layers(model, "1")
    return model


KINDS = ["vit", "deit", "dinov2", "beit", "convnext", "convnextv2", "resnet", "swin", "timm vit", "timm mobilenet"]


KINDS += ["timm efficientnet", "vit lora", "dinov2 lora", "convnextv2 lora", "timm efficientnet lora"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_network_answers_as_the_whole_one_and_computes_only_what_moves(kind, splits, tmp_path, capsys):
    model = moving(build(kind.removesuffix(" lora")), kind)
    names = set(model.state_dict())
    first = Calls(model.get_submodule(find_blocks(model)[0]))
    trainer = trainer_of(model, splits, tmp_path)
    given = pixels(7)
    whole = logits(model, given)
    with frozen_prefix(trainer, splits, 2, "light", ROOM):
        boundary = capsys.readouterr().out.split("as input of ")[1].split(",")[0]
        assert isinstance(trainer.train_dataset, CachedPhotos)
        assert set(model.state_dict()) == names
    stored = activation_at(trainer, model.get_submodule(boundary), given)
    with frozen_prefix(trainer, splits, 2, "light", ROOM):
        before = first.photos
        behind = logits(model, stored)
        assert first.photos == before or boundary == find_blocks(model)[0]
    assert torch.allclose(whole, behind, atol=1e-4 * whole.abs().max().item())
    # Undone: pixels again.
    assert torch.equal(logits(model, given), whole)
    assert set(model.state_dict()) == names


def test_validation_is_cached_as_it_is_and_train_photos_in_the_views_that_the_trainer_would_draw(splits, tmp_path):
    model = moving(build("vit"), "vit")
    trainer = trainer_of(model, splits, tmp_path)
    block = model.vit.layers[1]
    exact = torch.cat(list(activations(trainer, block, trainer.eval_dataset, batches_of(trainer.eval_dataset, None))))
    drawn = [
        torch.cat(list(activations(trainer, block, trainer.train_dataset, batches_of(trainer.train_dataset, view))))
        for view in (0, 1)
    ]
    with frozen_prefix(trainer, splits, 2, "light", ROOM):
        kept = torch.stack([trainer.eval_dataset[i]["pixel_values"] for i in range(len(trainer.eval_dataset))])
        assert torch.equal(kept, exact.half())
        assert [item["labels"] for item in trainer.train_dataset] == splits.label_indices("train")
        for view in (0, 1):
            trainer.train_dataset.view.fill_(view)
            kept = torch.stack([trainer.train_dataset[i]["pixel_values"] for i in range(len(trainer.train_dataset))])
            assert torch.equal(kept, drawn[view].half())
    assert not torch.allclose(drawn[0], drawn[1], atol=0.1)


class SeenViews(TrainerCallback):
    """Notes the view of each step."""

    def __init__(self, trainer: ImageTrainer):
        self.trainer, self.views = trainer, []

    def on_step_end(self, args, state, control, **kwargs):
        self.views.append(int(self.trainer.train_dataset.view))


def test_views_take_turns_and_only_the_last_block_moves_and_the_frozen_ones_are_not_computed(splits, tmp_path):
    model = moving(build("vit"), "vit")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = trainer_of(model, splits, tmp_path, num_train_epochs=5, eval_strategy="epoch")
    seen, frozen, last = SeenViews(trainer), Calls(model.vit.layers[0]), Calls(model.vit.layers[1])
    trainer.add_callback(seen)
    train, validation = len(trainer.train_dataset), len(trainer.eval_dataset)
    with frozen_prefix(trainer, splits, 2, "light", ROOM):
        filled, prepared = frozen.photos, last.photos
        frozen_forward = model.vit.layers[0].forward
        trainer.train()
        assert model.vit.layers[0].forward is frozen_forward
    # Finding the boundary, cutting and checking take 5, 4, 4, 4 and 5 photos; then two views and validation.
    assert filled < 2 * train + validation + 40
    assert last.photos - prepared == 5 * (train + validation)
    steps = -(-train // 8)
    assert seen.views == [epoch % 2 for epoch in range(5) for _ in range(steps)]
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {n for n in before if n.startswith(("vit.layers.1.", "vit.layernorm.", "classifier."))}


def file_of(folder: Path) -> Path:
    (path,) = (folder / "cache/agritransfer-prefix").iterdir()
    return path


def test_the_cache_is_the_same_when_it_is_filled_again_and_found_by_the_next_run(splits, tmp_path, capsys):
    def fill(seed: int = 3) -> None:
        trainer = trainer_of(moving(build("vit"), "vit"), splits, tmp_path, seed=seed)
        # What was drawn before must not matter.
        torch.rand(int(torch.randint(1, 9, ())))
        with frozen_prefix(trainer, splits, 2, "light", ROOM):
            drawn.append(torch.rand(1).item())

    drawn: list[float] = []
    fill()
    path = file_of(tmp_path)
    content = path.read_bytes()
    assert "filled in" in capsys.readouterr().out
    fill()
    assert "MB, found" in capsys.readouterr().out
    for damaged in (content[:-2], content[:100] + b"?" + content[101:]):
        path.write_bytes(damaged)
        fill()
        assert "filled in" in capsys.readouterr().out and file_of(tmp_path).read_bytes() == content
    # Training draws the same, whether views were drawn before it or not.
    assert len(set(drawn)) == 1
    fill(seed=4)
    assert len(list(path.parent.iterdir())) == 2


def test_a_fill_that_is_cut_off_leaves_nothing(splits, tmp_path, monkeypatch):
    trainer = trainer_of(moving(build("vit"), "vit"), splits, tmp_path)
    monkeypatch.setattr("os.fsync", lambda _file: (_ for _ in ()).throw(Preempted("received SIGTERM")))
    with pytest.raises(Preempted), frozen_prefix(trainer, splits, 2, "light", ROOM):
        pass
    assert list((tmp_path / "cache/agritransfer-prefix").iterdir()) == []


def test_what_no_run_used_for_a_day_makes_room_and_nothing_else(splits, tmp_path, capsys):
    folder = tmp_path / "cache/agritransfer-prefix"
    for seed, filled in ((1, 1), (2, 2), (3, 2)):
        trainer = trainer_of(moving(build("vit"), "vit"), splits, tmp_path, seed=seed)
        size = (2 * len(trainer.train_dataset) + len(trainer.eval_dataset)) * 17 * 16 * 2
        with frozen_prefix(trainer, splits, 2, "light", int(2.5 * size)):
            assert [path.stat().st_size for path in folder.iterdir()] == [size + 4] * filled
    assert "views that other runs used today fill --pixel_store_gb" in capsys.readouterr().out
    oldest = min(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    os.utime(oldest, (0, 0))
    with frozen_prefix(trainer, splits, 2, "light", int(2.5 * size)):
        assert isinstance(trainer.train_dataset, CachedPhotos)
        assert not oldest.exists() and len(list(folder.iterdir())) == 2


def test_without_augmentation_one_view_is_all(splits, tmp_path, capsys):
    trainer = trainer_of(moving(build("vit"), "vit"), splits, tmp_path, augmentation="none")
    with frozen_prefix(trainer, splits, 3, "none", ROOM):
        assert trainer.eval_dataset.first == len(splits.of("train"))
    assert "cached views: 1 of each" in capsys.readouterr().out


class TwoStreams(nn.Module):
    """A way around the boundary: the second part sees what the first one saw."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.config = model, model.config
        self.around = nn.Linear(3 * 32 * 32, 3)
        self.around.requires_grad_(False)

    def forward(self, pixel_values: torch.Tensor):
        extra = self.around(pixel_values.flatten(1)) if pixel_values.ndim == 4 else 0
        output = self.model(pixel_values)
        output.logits = output.logits + extra
        return output


@pytest.mark.parametrize(
    ("kind", "views", "room", "why"),
    [
        ("vit", 4, ROOM, "--cached_views 4 saves no time in 4 epochs;"),
        ("vit", 2, 1000, r"they take \d\.\d GB, --pixel_store_gb allows 1e-06; use fewer views"),
        ("all", 2, ROOM, "no block is frozen; --train_layers N or --lora_layers N"),
        ("lora", 2, ROOM, "no block is frozen; --train_layers N or --lora_layers N"),
        ("around", 2, ROOM, "the network gives different logits"),
    ],
)
def test_where_it_does_not_pay_one_line_says_so_and_training_is_as_without(
    kind, views, room, why, splits, tmp_path, capsys
):
    model = build("vit")
    if kind in ("vit", "around"):
        train_layers(model, "1")
    model = add_lora(model, **LORA) if kind == "lora" else model
    model = TwoStreams(model) if kind == "around" else model
    trainer = trainer_of(model, splits, tmp_path)
    photos = trainer.train_dataset
    with frozen_prefix(trainer, splits, views, "light", room):
        assert trainer.train_dataset is photos
        assert trainer.settings == {"views_cached": False}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("cached views: off, ")
    assert re.search(why, line), line


def test_without_the_flag_nothing_happens(splits, tmp_path, capsys):
    trainer = trainer_of(build("vit"), splits, tmp_path)
    photos = trainer.train_dataset
    with frozen_prefix(trainer, splits, None, "light", ROOM):
        assert trainer.train_dataset is photos and trainer.settings == {}
    assert capsys.readouterr().out == ""


@pytest.mark.script
@pytest.mark.parametrize("stop", [4, 6])
@pytest.mark.parametrize("kind", ["vit", "vit lora"])
def test_a_run_on_cached_views_that_was_cut_off_ends_as_one_that_was_not(kind, stop, splits, tmp_path):
    def run(name: str, stop: int | None = None, resume: str | None = None) -> dict[str, torch.Tensor]:
        trainer = trainer_of(moving(build("vit"), kind), splits, tmp_path / name, seed=3, save_strategy="epoch")
        if stop is not None:
            trainer.add_callback(StopAt(stop))
        with frozen_prefix(trainer, splits, 2, "light", ROOM):
            trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    whole = run("whole")
    # Three steps an epoch: in the middle of the second, and at its end.
    run("begun", stop=stop)
    (tmp_path / "cache/agritransfer-prefix").rename(tmp_path / "lost")
    resumed = run("begun", resume=str(tmp_path / f"begun/checkpoints/checkpoint-{stop}"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
