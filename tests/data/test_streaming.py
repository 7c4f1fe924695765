"""Photos that no disk holds: each comes once in an epoch, as bytes, over all processes, and again in the same order."""

import json
import signal
import subprocess
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import COLOURS, ROOT
from finished_runs import EVERY_RUN, clean_environment, files_of
from hubserver import serve
from launching import LAUNCH, TOGETHER
from shards import LABELS, put_parquet, put_tars
from small_trainer import StopAt, arguments, differing, trainer_of, vit, weights
from survival import Session, SignalAtStep, digest
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, ViTImageProcessor

from agritransfer.arguments import DataArguments, FinetuneArguments, ModelArguments, ScratchArguments
from agritransfer.data.dataset import counts_table, load_splits
from agritransfer.data.streaming import StreamedPhotos, collate_stream
from agritransfer.errors import DataError, UsageError
from agritransfer.hub.model_card import model_card
from agritransfer.images.decoding import decode_photo
from agritransfer.images.preprocessing import describe_processor
from agritransfer.runtime.command_line import parse_args
from agritransfer.training.losses import class_weights

PROCESSOR = describe_processor(ViTImageProcessor(size={"height": 32, "width": 32}))


STREAM = ("--streaming", "--use_cpu", "--per_device_train_batch_size", "8", "--num_train_epochs", "2")


@pytest.fixture(autouse=True, scope="module")
def quiet_and_quick():
    """`datasets` draws its bars where no one watches, too, and rests five seconds after each pass."""
    datasets.disable_progress_bars()
    rest, datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN, 0
    yield
    datasets.enable_progress_bars()
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = rest


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> Path:
    """Four shards of six train photos, and twelve photos each for validation and test."""
    return put_parquet(tmp_path_factory.mktemp("shards") / "parquet", [6, 6, 6, 6])


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> Path:
    return put_tars(tmp_path_factory.mktemp("shards") / "tars", [6, 6, 6])


def share(folder: Path, process: int = 0, processes: int = 1, **settings) -> tuple[StreamedPhotos, str]:
    """One process's stream, and what is told of it."""
    of_splits = {name: settings.pop(name) for name in ("on_broken", "shuffle_buffer") if name in settings}
    photos = load_splits(str(folder), streaming=True, **of_splits).dataset("train", PROCESSOR)
    args = {"seed": 3, "max_steps": -1, "gradient_accumulation_steps": 1, "train_batch_size": 4}
    args |= {"dataloader_num_workers": 0, "process_index": process, "world_size": processes} | settings
    return photos, photos.share_out(SimpleNamespace(**args))


def names(photos: StreamedPhotos, epoch: int = 0) -> list[str]:
    photos.set_epoch(epoch)
    return [item["files"] for item in photos]


def every(sizes: list[int]) -> set[str]:
    return {f"train-{shard}-{row}" for shard, size in enumerate(sizes) for row in range(size)}


@pytest.mark.parametrize(
    ("sizes", "processes", "told", "left_out"),
    [
        ([6, 6, 6, 6], 2, "each of 2 processes reads 2 shards", 0),
        ([6, 6, 6], 2, "not divisible by 2 processes, so each process reads all shards", 0),
        ([5, 5, 5], 2, "one photo in 2; 1 photo left out of each epoch, not always the same ones", 1),
        ([9, 9, 9, 2], 2, "too unequal in size, so each process reads all shards", 1),
        ([7, 4], 4, "not divisible by 4 processes, so", 3),
    ],
)
def test_over_all_processes_every_photo_comes_once_in_an_epoch(sizes, processes, told, left_out, tmp_path):
    folder = put_parquet(tmp_path / "shards", sizes)
    shares = [share(folder, process, processes, shuffle_buffer=5) for process in range(processes)]
    assert all(told in line for _, line in shares) and len({line for _, line in shares}) == 1
    orders = []
    for epoch in (0, 1, 2):
        given = [names(photos, epoch) for photos, _ in shares]
        # The same number everywhere: none waits for another at the end of an epoch.
        assert {len(mine) for mine in given} == {len(photos) for photos, _ in shares}
        together = [name for mine in given for name in mine]
        assert len(together) == len(set(together)) == sum(sizes) - left_out
        assert set(together) <= every(sizes)
        orders.append(together)
    assert len({tuple(order) for order in orders}) == 3
    if left_out:
        assert set(orders[0]) | set(orders[1]) | set(orders[2]) > set(orders[0])


def test_the_order_depends_on_seed_and_epoch_alone_and_threads_decode_the_same(parquet):
    def batches(workers: int, seed: int = 3) -> list[dict]:
        photos, _ = share(parquet, dataloader_num_workers=workers, seed=seed)
        photos.set_epoch(1)
        return list(DataLoader(photos, batch_size=5, collate_fn=collate_stream, num_workers=min(1, workers)))

    alone, in_threads, other = batches(0), batches(3), batches(0, seed=4)
    assert [batch["files"] for batch in alone] == [batch["files"] for batch in in_threads]
    assert [batch["files"] for batch in alone] != [batch["files"] for batch in other]
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(alone, in_threads, strict=True))
    assert [len(batch["files"]) for batch in alone] == [5, 5, 5, 5, 4]
    # Each label still belongs to its photo: the colours tell.
    for batch in alone:
        for pixels, label in zip(batch["pixel_values"].float(), batch["labels"].tolist(), strict=True):
            near = min(LABELS, key=lambda name: (pixels.mean((1, 2)) - torch.tensor(COLOURS[name])).abs().sum())
            assert LABELS[label] == near


def test_photos_come_as_bytes_and_are_decoded_once_by_us_and_not_at_all_where_passed_over(parquet, monkeypatch):
    decoded = []
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("datasets decoded a photo"))
    monkeypatch.setattr(
        "agritransfer.images.photo_dataset.decode_photo", lambda *args: decoded.append(args) or decode_photo(*args)
    )
    photos, _ = share(parquet)
    whole = names(photos, 1)
    assert len(whole) == len(decoded) == 24 and all(isinstance(content, bytes) for content, *_ in decoded)
    photos.pass_over(1, 8)
    assert names(photos, 1) == whole and len(decoded) == 24 + 16
    assert [content for content, *_ in decoded[24:]] == [content for content, *_ in decoded[8:24]]
    # Only that epoch was begun before.
    assert len(names(photos, 2)) == 24 and len(decoded) == 24 + 16 + 24


def test_a_resumed_run_decodes_no_photo_twice_and_ends_as_an_uninterrupted_one(parquet, tmp_path, monkeypatch):
    def train(name: str, callbacks: list[TrainerCallback], resume: str | None = None) -> nn.Module:
        decoded.clear()
        batches = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
        photos = load_splits(str(parquet), streaming=True).dataset("train", PROCESSOR)
        args = arguments(tmp_path / name, **batches)
        trainer = trainer_of(vit(), args, train_dataset=photos, processor=PROCESSOR, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model

    decoded = []
    monkeypatch.setattr(
        "agritransfer.images.photo_dataset.decode_photo", lambda *args: decoded.append(args) or decode_photo(*args)
    )
    whole = train("whole", [])
    assert len(decoded) == 48
    # Twelve steps an epoch, each of two batches of one photo; five of the second epoch are done.
    train("run", [StopAt(17)])
    resumed = train("run", [], str(tmp_path / "run/checkpoints/checkpoint-17"))
    assert len(decoded) == 24 - 10
    assert differing(weights(resumed), weights(whole)) == set()


def test_a_small_buffer_mixes_neighbours_only(parquet):
    photos, line = share(parquet, shuffle_buffer=2)
    assert "shuffled in a buffer of 2 photos" in line
    # With a buffer of two photos only neighbours, of four shards read in turns, change places.
    assert names(photos) != names(share(parquet, shuffle_buffer=24)[0])


def test_labels_counts_and_photos_without_a_label_are_known_before_training(tmp_path):
    def change(row):
        return row | {"label": -1} if row["file"].endswith("-5") else row

    splits = load_splits(str(put_parquet(tmp_path / "shards", [6, 6, 6], change)), streaming=True)
    assert splits.label_counts("train") == {"blight": 6, "healthy": 6, "rust": 3}
    assert splits.label_counts("validation") == splits.label_counts("test") == dict.fromkeys(LABELS, 4)
    table = counts_table(splits)
    assert (
        "3 photos without a label in the split 'train'" in table
        and "they are not checked for copies in validation or test" in table
    )
    assert [line.split()[1] for line in table.splitlines() if line.split()[0] in LABELS] == ["6", "6", "3"]
    assert class_weights("balanced", splits.label_counts("train")).tolist() == pytest.approx([15 / 18, 15 / 18, 15 / 9])
    photos, _ = share(tmp_path / "shards", 0, 1)
    assert sorted(names(photos)) == sorted(name for name in every([6, 6, 6]) if not name.endswith("-5"))


def test_labels_may_be_words_and_other_shards_have_another_fingerprint(tmp_path):
    folders = [put_parquet(tmp_path / f"{number}", [6, 6 + number], names=None) for number in (0, 1)]
    first, other = (load_splits(str(folder), streaming=True) for folder in folders)
    assert first.labels == LABELS and first.fingerprint != other.fingerprint
    (folders[0] / "moved").mkdir()
    (folders[0] / "data").rename(folders[0] / "moved/data")
    again = load_splits(str(folders[0] / "moved"), streaming=True)
    assert again.fingerprint == first.fingerprint


@pytest.mark.parametrize(("label_file", "labels"), [("json", LABELS), ("cls", ["0", "1", "2"])])
def test_shards_of_webdataset_are_read_in_passes_until_max_steps(label_file, labels, tmp_path):
    folder = put_tars(tmp_path / "tars", [6, 6, 6], label_file)
    splits = load_splits(str(folder), streaming=True)
    assert splits.labels == labels and splits.label_counts("train") is None
    with pytest.raises(UsageError, match="add --max_steps N"):
        share(folder)
    with pytest.raises(UsageError, match="remove --class_weights, or stream parquet"):
        class_weights("balanced", splits.label_counts("train"))
    shares = [share(folder, process, 2, max_steps=9)[0] for process in range(2)]
    given = [names(photos) for photos in shares]
    assert [len(mine) for mine in given] == [36, 36]
    # 18 photos: each process passes four times over its nine.
    assert Counter(given[0] + given[1]) == dict.fromkeys(every([6, 6, 6]), 4)
    assert Counter(given[0][:9] + given[1][:9]) == dict.fromkeys(every([6, 6, 6]), 1)


def broken(row):
    return row | {"photo": row["photo"][:200]} if row["file"] == "train-1-2" else row


def test_a_broken_photo_is_told_in_its_place_or_left_out_and_made_up_for(tmp_path):
    folder = put_parquet(tmp_path / "shards", [6, 6], broken)
    stopped = {item["files"]: item["faults"] for item in share(folder)[0]}
    assert len(stopped) == 12 and len(stopped["train-1-2"]) == 1 and "train-1-2 (" in stopped["train-1-2"][0]
    items = list(share(folder, on_broken="skip")[0])
    given = [item["files"] for item in items]
    assert len(given) == 12 and set(given) == every([6, 6]) - {"train-1-2"}
    assert {fault.split()[0] for item in items for fault in item["faults"]} == {"train-1-2"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--max_train_samples", "5"],
            "--max_train_samples cannot be used with --streaming: a stream is read to its end",
        ),
        (["--splits_file", "splits.csv"], "a stream must come with its own validation"),
        (["--group_pattern", "x"], "a stream must come with its own validation"),
        (["--validation_fraction", "0.2"], "a stream must come with its own validation"),
        (["--on_leakage", "stop"], "leaked copies cannot be found"),
        (["--download_only"], "there is nothing to download beforehand"),
    ],
)
def test_what_cannot_hold_for_a_stream_is_refused_in_one_line(flags, words, capsys):
    with pytest.raises(SystemExit) as end:
        parse_args((DataArguments, ScratchArguments), "", ["--dataset_name", "x/y", "--streaming", *flags])
    assert end.value.code == 2 and words in capsys.readouterr().err
    parse_args(
        (DataArguments, ModelArguments, FinetuneArguments),
        "",
        ["--dataset_name", "x/y", "--model_name_or_path", "m", *flags],
    )


def test_what_cannot_be_streamed_is_refused_with_the_remedy(photos, parquet, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    no_test = put_parquet(tmp_path / "no_test", [6])
    next((no_test / "data").glob("test-*")).unlink()
    for name, kind, words in [
        (no_test, DataError, "has no test split .* leave --streaming out"),
        (photos, UsageError, "neither parquet nor WebDataset files"),
        ("nowhere", UsageError, "neither a folder nor a Hub id"),
        ("user/leaves", UsageError, "cannot be streamed with HF_HUB_OFFLINE=1"),
    ]:
        with pytest.raises(kind, match=words) as refused:
            load_splits(str(name), streaming=True)
        assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match="--shuffle_buffer must be at least 1; found 0"):
        load_splits(str(parquet), streaming=True, shuffle_buffer=0)


def test_a_streamed_run_leaves_what_every_run_leaves(parquet, tiny_vit, tmp_path, run_script):
    run = tmp_path / "run"
    flags = ("--dataset_name", parquet, "--model_name_or_path", tiny_vit, "--output_dir", run, *STREAM)
    code, out, err = run_script("train_finetune.py", *flags, "--class_weights", "balanced")
    assert code == 0, err
    assert "streaming 24 photos from 4 shards, shuffled in a buffer of 1,000 photos\n" in out
    assert out.count("epoch ") == 2 and files_of(run) == EVERY_RUN
    results = json.loads((run / "results.json").read_text())
    assert results["dataset"]["counts"] == dict.fromkeys(("train", "validation", "test"), {}) | {
        "train": dict.fromkeys(LABELS, 8),
        "validation": dict.fromkeys(LABELS, 4),
        "test": dict.fromkeys(LABELS, 4),
    }
    assert results["dataset"]["streamed"] and results["splits"] == {
        "method": "official",
        "seed": None,
        "leakage": {"found": None, "dropped": 0},
        "broken": {"found": 0, "skipped": 0},
    }
    assert (results["training"]["steps"], results["training"]["epochs"]) == (6, 2)
    assert len((run / "splits.csv").read_text().splitlines()) == 1 + 24
    card = str(model_card(results, "u/m", [], licence=None, base_licence=None, adapter_fits_base=True))
    assert "not checked for copies of validation or test photos" in card and "| blight | 8 | 4 | 4 |" in card
    assert "not checked for copies in validation or test (leakage) or in --shift_dataset_name" in out
    # The same command on a finished run prints its results; on an unfinished one with other shards it is refused.
    assert "is finished" in run_script("train_finetune.py", *flags, "--class_weights", "balanced")[1]
    (run / "results.json").unlink()
    other = put_parquet(tmp_path / "other", [6, 6, 6, 5])
    code, _, err = run_script("train_finetune.py", "--dataset_name", other, *flags[2:], "--class_weights", "balanced")
    assert code == 2 and "photos was" in err and len(err.strip().splitlines()) == 1


def test_a_broken_streamed_photo_ends_the_run_in_one_line_or_is_counted(tiny_vit, tmp_path, run_script):
    folder, run = put_parquet(tmp_path / "shards", [12, 12], broken), tmp_path / "run"
    flags = ("--dataset_name", folder, "--model_name_or_path", tiny_vit, "--output_dir", run, *STREAM)
    # In a loader worker, whose errors would come as a page of its own.
    code, _, err = run_script("train_finetune.py", *flags, "--dataloader_num_workers", "2")
    assert code == 3 and len(err.strip().splitlines()) == 1, err
    assert "1 photo of the train shards cannot be used: train-1-2 (" in err and "--on_broken skip" in err
    code, out, err = run_script("train_finetune.py", *flags, "--on_broken", "skip")
    assert code == 0, err
    assert (out + err).count("skipped, broken: train-1-2 (") == 1
    assert json.loads((run / "results.json").read_text())["splits"]["broken"] == {"found": 1, "skipped": 1}


def test_a_label_of_the_shards_that_nothing_is_scored_on_ends_the_run(tiny_vit, tmp_path, run_script):
    folder = put_tars(
        tmp_path / "tars", [6], "cls", lambda row: row | {"label": "mould"} if "0-4" in row["file"] else row
    )
    flags = ("--dataset_name", folder, "--model_name_or_path", tiny_vit, "--output_dir", tmp_path / "run", *STREAM)
    code, _, err = run_script("train_finetune.py", *flags, "--max_steps", "3")
    assert code == 3 and "train-0-4 (its label, 7, is not in validation or test)" in err


def test_labels_of_a_stream_are_aligned_by_name_or_refused(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=LABELS[::-1])}

    def reorder(path: Path) -> None:
        table = datasets.Dataset.from_parquet(str(path)).remove_columns("file")
        labels = [LABELS[::-1].index(LABELS[label]) for label in table["label"]]
        columns = {"image": [dict(row) for row in table.cast_column("image", datasets.Image(decode=False))["image"]]}
        table = datasets.Dataset.from_dict(columns | {"label": labels}, features=datasets.Features(features))
        table.to_parquet(path)

    folder = put_parquet(tmp_path / "shards", [6, 6])
    names_of_test = [photo.label for photo in load_splits(str(folder), streaming=True).of("test")]
    reorder(folder / "data/test-00000-of-00001.parquet")
    splits = load_splits(str(folder), streaming=True)
    assert splits.labels == LABELS
    assert [photo.label for photo in splits.of("test")] == names_of_test
    reorder(folder / "data/train-00001-of-00002.parquet")
    with pytest.raises(DataError, match="train shards of .* name their classes differently .* leave --streaming out"):
        load_splits(str(folder), streaming=True)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"label": 3},
            r"row 2 \(counted from 0\) of data/train-00001-of-00002.parquet has the label 3, but there are 3",
        ),
        ({"label": -2}, r"row 2 \(counted from 0\) of data/train-00001-of-00002.parquet has the label -2"),
    ],
)
def test_a_label_of_the_shards_that_names_no_class_is_refused_before_training(row, words, tmp_path):
    # Written as plain numbers that the README names, since `datasets` checks those that it names itself.
    folder = put_parquet(
        tmp_path / "shards",
        [6, 6],
        lambda old: (
            {"photo": old["photo"], "file": old["file"], "label": LABELS.index(old["label"])}
            | (row if old["file"] == "train-1-2" else {})
        ),
        names=None,
    )
    for path in (folder / "data").glob("*.parquet"):
        table = pq.read_table(path)
        numbers = [
            int(label) if label.lstrip("-").isdigit() else LABELS.index(label) for label in table["label"].to_pylist()
        ]
        table = table.set_column(table.column_names.index("label"), "label", pa.array(numbers))
        pq.write_table(table.replace_schema_metadata(None), path)
    names = "".join(f"          '{number}': {name}\n" for number, name in enumerate(LABELS))
    label = f"  - name: label\n    dtype:\n      class_label:\n        names:\n{names}"
    head = "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n"
    (folder / "README.md").write_text(f"{head}{label}  - name: file\n    dtype: string\n---\n")
    with pytest.raises(DataError, match=words):
        load_splits(str(folder), streaming=True)


def test_tars_with_odd_labels_or_without_photos_are_refused(tmp_path):
    folder = put_tars(tmp_path / "tars", [6], "json", lambda row: row | {"label": ["a", "b"]})
    photos, _ = share(folder, max_steps=1)
    assert "the label ['a', 'b']; use text or whole numbers" in next(iter(photos))["faults"][0]
    (folder / "train/00000.tar").write_bytes(b"junk" * 300)
    with pytest.raises(DataError, match="train/00000.tar of .* is no tar file with photos"):
        load_splits(str(folder), streaming=True)
    refused = datasets.Dataset.from_dict({"image": [b"x"], "label": ["a"]})
    refused.save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match="was written by save_to_disk and cannot be streamed; leave --streaming out"):
        load_splits(str(tmp_path / "saved"), streaming=True)


WATCHED = """
import os, runpy, sys
from agritransfer.training import ImageTrainer

stock = ImageTrainer.training_step

def training_step(trainer, model, inputs, *args):
    with open(f"{os.environ['SEEN']}.{trainer.args.process_index}", "a") as file:
        print(trainer.state.global_step, *inputs["files"], file=file)
    return stock(trainer, model, inputs, *args)

ImageTrainer.training_step = training_step
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_two_launched_processes_train_on_every_photo_once(tiny_vit, tmp_path):
    sizes = [7, 6, 6]
    folder, seen = put_parquet(tmp_path / "shards", sizes), tmp_path / "seen"
    (tmp_path / "watched.py").write_text(WATCHED)
    flags = ["--dataset_name", folder, "--model_name_or_path", tiny_vit, "--output_dir", tmp_path / "run", *STREAM]
    words = [*LAUNCH, "--multi_gpu", "--num_processes", "2", tmp_path / "watched.py", ROOT / "train_finetune.py"]
    words += [*flags, "--per_device_train_batch_size", "4", "--dataloader_num_workers", "1"]
    environment = clean_environment(**TOGETHER, SEEN=str(seen), PYTHONPATH=str(ROOT))
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    steps = json.loads((tmp_path / "run/results.json").read_text())["training"]["steps"] // 2
    rows = [Path(f"{seen}.{rank}").read_text().split("\n")[:-1] for rank in (0, 1)]
    for epoch in (0, 1):
        mine = [
            [name for row in islice(rows[rank], epoch * steps, (epoch + 1) * steps) for name in row.split()[1:]]
            for rank in (0, 1)
        ]
        together = mine[0] + mine[1]
        assert len(mine[0]) == len(mine[1]) == sum(sizes) // 2
        assert len(set(together)) == len(together) and set(together) <= every(sizes)
    assert done.stdout.count("streaming ") == 1


class WithoutRest:
    """Plants a fault in a process of its own, where `datasets` then rests after no pass."""

    def __init__(self, fault=None):
        self.fault = fault

    def __call__(self) -> None:
        datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
        if self.fault is not None:
            self.fault()


@pytest.mark.slow
@pytest.mark.parametrize("on_broken", ["stop", "skip"])
def test_a_stream_that_is_cut_off_in_the_middle_of_epochs_ends_bit_identical(on_broken, tiny_vit, tmp_path):
    folder = put_parquet(tmp_path / "shards", [9, 8, 7], broken if on_broken == "skip" else lambda row: row)
    flags = [ROOT / "train_finetune.py", "--dataset_name", folder, "--model_name_or_path", tiny_vit, *STREAM]
    flags += ["--num_train_epochs", 3, "--per_device_train_batch_size", 4, "--shuffle_buffer", 5]
    flags += ["--on_broken", on_broken]

    def start(run: Path, workers: int, fault=None) -> Session:
        words = [*flags, "--output_dir", run, "--dataloader_num_workers", workers]
        session = Session(words, run.with_suffix(".log"), WithoutRest(fault))
        assert session.left() == []
        return session

    run, whole = tmp_path / "run", tmp_path / "whole"
    assert start(whole, 0).code == 0
    # Six steps an epoch; the reader may be this process or another one. What was left out is read again to its count.
    chain = [(0, signal.SIGTERM, 2), (2, signal.SIGKILL, 9), (0, signal.SIGTERM, 17)]
    for workers, number, step in chain if on_broken == "stop" else chain[2:]:
        session = start(run, workers, SignalAtStep(number, step))
        assert session.code == (75 if number == signal.SIGTERM else -number), session.said
    session = start(run, 2)
    assert session.code == 0 and "resuming from" in session.said, session.said
    assert digest(run) == digest(whole)
    for name in (run, whole):
        found = json.loads((name / "results.json").read_text())["splits"]["broken"]["found"]
        assert found == (1 if on_broken == "skip" else 0)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A loopback Hub with a data set of parquet and one of WebDataset."""
    root = tmp_path_factory.mktemp("hub")
    put_parquet(root / "datasets/user/leaves", [6, 6, 6])
    put_tars(root / "datasets/user/tars", [6, 6])
    server, _ = serve(root)
    yield server
    server.stop()


@pytest.mark.slow
def test_photos_of_the_hub_are_trained_on_without_a_copy_of_them_and_the_run_is_published(hub, client, tmp_path):
    before = "import datasets; datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0"
    for name, more in (("user/leaves", ("--dataloader_num_workers", "2")), ("user/tars", ("--max_steps", "3"))):
        run = tmp_path / name.split("/")[1]
        flags = ("--dataset_name", name, "--model_type", "vit", "--model_size", "nano", "--image_size", "32", *STREAM)
        done = client.run(ROOT / "train_scratch.py", *flags, *more, "--output_dir", run, before=before)
        assert done["code"] == 0, done["err"]
        results = json.loads((run / "results.json").read_text())
        assert len(results["dataset"]["revision"]) == 40 and results["test"]["n"] == 12
    read = [path for _, path, *_ in hub.requests if "/resolve/" in path and "train" in path]
    assert len({path.split("?")[0] for path in read}) == 5
    kept = [path for path in Path(client.home).rglob("*") if path.is_file() and b"train-0-0" in path.read_bytes()]
    assert not kept
    published = client.run("publish", tmp_path / "leaves", "--repo_id", "user/model")
    assert published["code"] == 0 and "published and verified" in published["out"], published["err"]
    exported = client.run("export", tmp_path / "tars")
    assert exported["code"] == 0, exported["err"]
