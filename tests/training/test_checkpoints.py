"""A checkpoint counts when every file is as it was written; anything else is named, passed over and kept."""

import json
from pathlib import Path

import pytest

from agritransfer.training.checkpoints import (
    MANIFEST,
    fault_of,
    newest_checkpoint,
    point_to_best,
    put_aside,
    write_manifest,
)


def checkpoint(folder: Path, step: int, best: int | None = None) -> Path:
    """A complete one, with the best weights in the checkpoint of another step where one is given."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (path / name).write_bytes(f"{name} of step {step}".encode() * 100)
    best_path = None if best is None else f"elsewhere/checkpoint-{best}"
    (path / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best_path}))
    write_manifest(path)
    return path


def delete(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "file", "fault"),
    [
        (delete, "optimizer.pt", "lacks optimizer.pt"),
        (delete, "scheduler.pt", "lacks scheduler.pt"),
        (delete, "rng_state.pth", "lacks rng_state.pth"),
        (delete, "trainer_state.json", "lacks trainer_state.json"),
        (cut, "model.safetensors", "has 2,793 of the 2,800 bytes of model.safetensors"),
        (empty, "optimizer.pt", "has 0 of the 2,300 bytes of optimizer.pt"),
        (flip_one_bit, "model.safetensors", "has a model.safetensors with a wrong checksum"),
        (delete, MANIFEST, "was not written completely"),
        (cut, MANIFEST, "was not written completely"),
        (empty, MANIFEST, "was not written completely"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_by_name(damage, file, fault, tmp_path):
    good, newest = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert newest_checkpoint(tmp_path) == (newest, {})
    damage(newest / file)
    assert fault_of(newest) == fault
    assert newest_checkpoint(tmp_path) == (good, {newest: fault})


def test_stray_folders_and_files_are_not_taken_for_checkpoints(tmp_path):
    good, stray = checkpoint(tmp_path, 8), tmp_path / "checkpoint-99"
    stray.mkdir()
    (tmp_path / "checkpoint-last").mkdir()
    # The mark that the stock Trainer leaves and never reads.
    (good / "checkpoint-is-incomplete.txt").write_text("")
    assert newest_checkpoint(tmp_path) == (good, {stray: "was not written completely"})
    assert newest_checkpoint(tmp_path / "nowhere") == (None, {})


def test_a_checkpoint_whose_best_weights_are_lost_is_not_used(tmp_path):
    best, newest = checkpoint(tmp_path, 2, best=2), checkpoint(tmp_path, 6, best=2)
    assert newest_checkpoint(tmp_path)[0] == newest
    flip_one_bit(best / "model.safetensors")
    found, faults = newest_checkpoint(tmp_path)
    assert found is None and set(faults) == {best, newest}
    assert faults[newest].startswith(
        "needs the best weights so far, those of checkpoint-2, which has a model.safetensors"
    )


def test_what_is_put_aside_keeps_its_files_and_an_earlier_one_its_name(tmp_path):
    first = put_aside(checkpoint(tmp_path, 4))
    second = put_aside(checkpoint(tmp_path, 4))
    assert (first.name, second.name) == ("damaged-checkpoint-4", "damaged-checkpoint-4.1")
    assert fault_of(first) is None and fault_of(second) is None
    assert newest_checkpoint(tmp_path) == (None, {})


def test_the_best_checkpoint_is_found_where_the_run_was_moved_to(tmp_path):
    best, newest = checkpoint(tmp_path, 2), checkpoint(tmp_path, 6, best=2)
    point_to_best(newest)
    assert json.loads((newest / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)
    assert fault_of(newest) is None
    before = (newest / MANIFEST).stat().st_mtime_ns
    point_to_best(newest)
    assert (newest / MANIFEST).stat().st_mtime_ns == before
