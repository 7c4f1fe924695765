"""What was tested is what is on the Hub, a failure is never silent, and nothing secret leaves."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from conftest import ROOT
from hubserver import Fault, HubServer, serve
from PIL import ExifTags, Image
from publishing import TRAIN

from agritransfer.data.dataset import load_splits
from agritransfer.hub.client import last_part
from agritransfer.hub.model import check_answers, published_results

RUN_FILES = {
    "README.md",
    "config.json",
    "figures/confusion_matrix.png",
    "figures/errors.png",
    "figures/reliability.png",
    "figures/training_curves.png",
    "known_features.safetensors",
    "model.safetensors",
    "preprocessor_config.json",
    "published.json",
    "results.json",
    "splits.csv",
}


ADAPTER_FILES = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/config.json"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tiny_vit) -> HubServer:
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(tiny_vit, root / "models/base/tiny-vit")
    (root / "models/base/tiny-vit/README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    server, _ = serve(root, lfs_threshold=5_000)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def trained(hub, client, photos, tmp_path_factory) -> tuple[Path, dict]:
    """A LoRA run that was trained on a base of the Hub and published at its end, and what it said."""
    run = tmp_path_factory.mktemp("runs") / "leaves"
    flags = ("--dataset_name", photos, "--model_name_or_path", "base/tiny-vit", "--output_dir", run, *TRAIN)
    said = client.run(ROOT / "train_lora.py", *flags, "--push_to_hub", "--hub_model_id", "user/leaves")
    return run, said


@pytest.fixture
def run(trained, tmp_path, hub) -> Path:
    """A copy of the run, so that each test publishes it anew; no fault is left over from another test."""
    hub.faults.clear()
    hub.requests.clear()
    shutil.copytree(trained[0], tmp_path / "leaves", ignore=shutil.ignore_patterns("checkpoints", "published.json"))
    yield tmp_path / "leaves"
    hub.faults.clear()


def served(hub: HubServer, name: str, branch: str = "main") -> dict[str, bytes]:
    """The files of a branch."""
    files = hub.repositories["models", name].at(branch).files
    return {path: blob.content for path, blob in files.items() if path != ".gitattributes"}


def commits(hub: HubServer, name: str) -> int:
    """How many commits of this repository came in and were kept."""
    return sum(r.method == "POST" and f"/{name}/commit/" in r.path and r.status == 200 for r in hub.requests)


def test_a_trained_run_is_published_privately_and_says_so_only_after_it_was_checked(trained, hub):
    run, said = trained
    assert said["code"] == 0, said["err"]
    files = served(hub, "user/leaves")
    assert set(files) == RUN_FILES | ADAPTER_FILES
    facts = json.loads((run / "published.json").read_text())
    assert facts["sha256"] == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert facts["tag"] == "v1" and facts["commit"] in said["out"]
    assert said["out"].index("use it:") < said["out"].index("published and verified in")
    assert "will be published as user/leaves (private)" in said["out"]
    assert hub.repositories["models", "user/leaves"].private
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", "splits.csv"):
        assert files[name] == (run / name).read_bytes()
    # Before it said so, the files were asked for by their commit.
    resolved = [r for r in hub.requests if f"/resolve/{facts['commit']}/model.safetensors" in r.path]
    assert resolved


def test_neither_a_token_nor_a_path_of_this_machine_nor_a_checkpoint_leaves(trained, hub, photos):
    run, said = trained
    for secret in ("hf_test_write", str(run), str(run.parent), str(photos), str(ROOT), "training_args", "optimizer"):
        assert not hub.has_received(secret.encode()), secret
    everything = said["out"] + said["err"]
    assert "hf_test_write" not in everything
    for path in run.rglob("*"):
        assert not path.is_file() or b"hf_test_write" not in path.read_bytes(), path
    # The storage of large files is another host; it never sees a token.
    assert all(not r.has_token for r in hub.requests if r.path.startswith("/_lfs"))
    results = json.loads(served(hub, "user/leaves")["results.json"])
    assert results["dataset"]["name"] == "photos" and results["base_model"]["name"] == "base/tiny-vit"
    assert "--dataset_name photos" in results["command"] and "--output_dir leaves" in results["command"]
    assert "base/tiny-vit" in results["command"] and "user/leaves" in results["command"]
    adapter = json.loads(served(hub, "user/leaves")["adapter/adapter_config.json"])
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (
        "base/tiny-vit",
        results["base_model"]["revision"],
    )


def test_the_card_tells_the_numbers_of_the_run_and_its_metadata_are_valid(trained, hub):
    run, _ = trained
    results = json.loads((run / "results.json").read_text())
    card = served(hub, "user/leaves")["README.md"].decode()
    head = yaml.safe_load(card.split("---")[1])
    assert head["pipeline_tag"] == "image-classification" and head["base_model"] == "base/tiny-vit"
    assert head["base_model_relation"] == "adapter" and "datasets" not in head and "license" not in head
    (entry,) = head["model-index"][0]["results"]
    assert (entry["dataset"]["split"], entry["dataset"]["type"]) == ("test", "photos")
    values = {metric["name"]: metric["value"] for metric in entry["metrics"]}
    assert values == {
        "Accuracy": pytest.approx(results["test"]["accuracy"], abs=1e-4),
        "Macro F1": pytest.approx(results["test"]["macro_f1"], abs=1e-4),
    }
    for row in results["test"]["per_class"]:
        assert f"| {row['label']} | {row['n']} | {row['precision']:.3f} |" in card
    for words in (
        "Base model `base/tiny-vit`: mit.",
        "No license was chosen",
        "Not tested on field photos",
        results["dataset"]["fingerprint"],
        'pipeline("image-classification", model="user/leaves")',
        'PeftModel.from_pretrained(base, "user/leaves", subfolder="adapter")',
    ):
        assert words in card, words
    assert any(r.path == "/api/validate-yaml" and r.status == 200 for r in hub.requests)


def test_an_adapter_for_another_photo_size_is_not_said_to_fit_its_base(client, hub, photos, tmp_path):
    hub.faults.clear()
    flags = (
        "--dataset_name",
        photos,
        "--model_name_or_path",
        "base/tiny-vit",
        "--output_dir",
        tmp_path / "run",
        *TRAIN,
    )
    push = ("--image_size", "48", "--push_to_hub", "--hub_model_id", "user/larger")
    said = client.run(ROOT / "train_lora.py", *flags, *push)
    assert said["code"] == 0, said["err"]
    card = served(hub, "user/larger")["README.md"].decode()
    assert "does not fit the original model" in card and "PeftModel" not in card


def test_a_second_publish_uploads_nothing_and_keeps_the_tag(run, client, hub):
    assert client.run("publish", run, "--repo_id", "user/twice")["code"] == 0
    first = json.loads((run / "published.json").read_text())
    hub.requests.clear()
    said = client.run("publish", run, "--repo_id", "user/twice")
    assert said["code"] == 0 and json.loads((run / "published.json").read_text()) == first
    assert not [r for r in hub.requests if r.method == "PUT"] and commits(hub, "user/twice") == 0
    # Another card is another commit with the next tag; the weights stay where they are.
    hub.requests.clear()
    assert client.run("publish", run, "--repo_id", "user/twice", "--license", "cc-by-4.0")["code"] == 0
    assert json.loads((run / "published.json").read_text())["tag"] == "v2"
    assert not [r for r in hub.requests if r.method == "PUT"] and commits(hub, "user/twice") == 1
    assert yaml.safe_load(served(hub, "user/twice")["README.md"].decode().split("---")[1])["license"] == "cc-by-4.0"


def test_after_an_export_the_onnx_files_are_published_too_and_asked_for_their_answers(run, client, hub):
    assert client.run("export", run)["code"] == 0
    said = client.run("publish", run, "--repo_id", "user/onnx")
    assert said["code"] == 0, said["err"]
    files = served(hub, "user/onnx")
    assert {"onnx/model.onnx", "onnx/export.json"} <= set(files) - RUN_FILES - ADAPTER_FILES
    assert "`onnx/model.onnx`" in files["README.md"].decode()
    # torch notes where its own code lies in what it exports.
    for path in (str(run), str(ROOT), "site-packages"):
        assert not hub.has_received(path.encode()), path
    assert not any(b"site-packages" in content for content in files.values())
    # A file that answers otherwise: here that of another head.
    model = onnx.load(run / "onnx/model.onnx")
    heads = [weight for weight in model.graph.initializer if sorted(weight.dims) == [3, 16]]
    for weight in heads:
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name))
    onnx.save(model, run / "onnx/model.onnx")
    said = client.run("publish", run, "--repo_id", "user/onnx")
    assert (
        heads and said["code"] == 4 and "ONNX Runtime: the logits differ from those of the tested model" in said["err"]
    )


def test_what_is_shared_is_the_users_choice(run, client, hub):
    flags = ("--hub_private_repo", "false", "--share_splits", "false")
    said = client.run("publish", run, "--repo_id", "user/open", *flags)
    assert said["code"] == 0, said["err"]
    assert not hub.repositories["models", "user/open"].private
    assert set(served(hub, "user/open")) == (RUN_FILES | ADAPTER_FILES) - {"splits.csv"}


@pytest.mark.parametrize(
    ("token", "name", "complaint"),
    [
        ("hf_wrong", "user/x", "the Hub token is not valid"),
        ("hf_test_read", "user/x", "the Hub token is read-only"),
        ("hf_test_write", "others/x", "the Hub token has no write access to 'others'; it has access to user"),
        ("hf_test_write", "user/a b", "is not a valid Hub ID"),
    ],
)
def test_a_push_that_the_hub_would_refuse_ends_before_the_first_step(
    token, name, complaint, client, hub, photos, tiny_vit, tmp_path
):
    hub.faults.clear()
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--output_dir", tmp_path / "run", *TRAIN)
    push = ("--push_to_hub", "--hub_model_id", name)
    said = client.run(ROOT / "train_finetune.py", *flags, *push, HF_TOKEN=token)
    assert said["code"] == 2 and said["seconds"] < 10
    assert complaint in said["err"] and said["err"].count("\n") == 1 and token not in said["err"] + said["out"]
    assert "epoch 1" not in said["out"] and not (tmp_path / "run/checkpoints").exists()


def test_a_hub_that_cannot_be_reached_and_one_that_wants_money_say_so(client, hub, run):
    hub.faults.append(Fault("GET", "whoami", drop=True))
    said = client.run("publish", run, "--repo_id", "user/away")
    assert said["code"] == 2 and "cannot be reached" in said["err"] and said["err"].count("\n") == 1
    hub.faults[:] = [Fault("POST", "repos/create", status=402)]
    said = client.run("publish", run, "--repo_id", "user/paid")
    assert said["code"] == 2 and "requires a paid account" in said["err"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "^/_lfs", first=2, status=503),
        Fault("PUT", "^/_lfs", drop=True),
        Fault("PUT", "^/_lfs", status=403),
        Fault("POST", "/commit/", status=503),
        Fault("POST", "/commit/", apply_then_fail=True),
        Fault("POST", "/commit/", status=429, headers={"Retry-After": "1"}),
        Fault("POST", "/preupload/", status=429, headers={"RateLimit": '"api";r=0;t=1'}),
        Fault("GET", "^/_lfs", corrupt=True),
        Fault("GET", "/resolve/.*config.json", status=503),
    ],
    ids=lambda fault: f"{fault.method} {fault.path} {fault.status or ''}{'lost ' if fault.apply_then_fail else ''}",
)
def test_a_hiccup_of_the_hub_is_waited_for_and_makes_no_second_commit(fault, run, client, hub, request):
    name = f"user/hiccup-{hashlib.sha1(request.node.name.encode()).hexdigest()[:8]}"
    hub.faults.append(fault)
    said = client.run("publish", run, "--repo_id", name)
    assert said["code"] == 0, said["err"]
    assert fault.hits >= 1
    assert len(hub.repositories["models", name].commits) == 2, "the first one makes the repository"
    assert set(served(hub, name)) == RUN_FILES | ADAPTER_FILES


def test_a_token_that_is_taken_back_costs_nothing_but_the_command_that_is_printed(run, client, hub):
    hub.faults.append(Fault("POST", "/commit/", times=9, status=401))
    said = client.run("publish", run, "--repo_id", "user/revoked", "--license", "mit")
    assert said["code"] == 4 and said["err"].count("\n") == 1
    again = f"agritransfer publish {run} --repo_id user/revoked --license mit"
    assert again in said["err"] and "the Hub token was revoked or has no write access" in said["err"]
    assert not (run / "published.json").exists()
    hub.faults.clear()
    hub.requests.clear()
    assert client.run(*again.split()[1:])["code"] == 0
    # What had been uploaded before the commit was refused is not uploaded again.
    assert not [r for r in hub.requests if r.method == "PUT"] and commits(hub, "user/revoked") == 1


@pytest.mark.slow
def test_a_hub_that_hangs_is_not_waited_for_for_ever(run, client, hub):
    hub.faults.append(Fault("PUT", "^/_lfs", times=math.inf, delay=2, drop=True))
    hurry = "import agritransfer.hub.client as u; u.TIMEOUT, u.PATIENCE = 0.5, 0"
    usual = "import agritransfer.hub.client as u; u.TIMEOUT, u.PATIENCE = 60.0, 300"
    said = client.run("publish", run, "--repo_id", "user/hangs", before=hurry)
    assert said["code"] == 4 and "to retry: agritransfer" in said["err"]
    hub.faults.clear()
    assert client.run("publish", run, "--repo_id", "user/hangs", before=usual)["code"] == 0


def test_a_file_that_is_served_otherwise_is_never_called_published(run, client, hub):
    hub.faults.append(Fault("GET", "model.safetensors|_lfs", times=99, corrupt=True))
    said = client.run("publish", run, "--repo_id", "user/corrupt")
    assert said["code"] == 4 and "serves files that differ from the upload" in said["err"]
    assert "published and verified" not in said["out"] and not (run / "published.json").exists()


def test_answers_other_than_those_of_the_test_are_never_called_published(run, client, hub):
    text = (run / "predictions.csv").read_text().splitlines()
    place = next(i for i, line in enumerate(text) if line.startswith("test,"))
    cells = text[place].split(",")
    cells[-1] = str(float(cells[-1]) + 0.1)
    (run / "predictions.csv").write_text("\n".join([*text[:place], ",".join(cells), *text[place + 1 :]]) + "\n")
    said = client.run("publish", run, "--repo_id", "user/other")
    assert said["code"] == 4 and "the pipeline: the logits differ from those of the tested model" in said["err"]


def test_what_the_hub_serves_is_compared_in_float32(monkeypatch, tmp_path):
    found = []

    def pipeline(*_, **__):
        found.extend([torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision])
        raise StopIteration

    monkeypatch.setattr("agritransfer.hub.model.pipeline", pipeline)
    results = {"dataset": {"labels": ["a"]}, "base_model": None}
    try:
        torch.backends.fp32_precision = "tf32"
        with pytest.raises(StopIteration):
            check_answers(results, "user/leaves", "0", tmp_path, tmp_path, ([], np.zeros((0, 1))))
    finally:
        torch.backends.fp32_precision = "none"
    assert found == ["ieee", "ieee"]


def test_a_card_that_the_hub_does_not_take_is_found_before_anything_is_uploaded(run, client, hub):
    hub.faults.append(Fault("POST", "validate-yaml", status=400, body=b'{"errors": [{"message": "bad licence"}]}'))
    said = client.run("publish", run, "--repo_id", "user/card", "--license", "no-such-licence")
    assert said["code"] == 4 and "the Hub rejects the model card" in said["err"] and "bad licence" in said["err"]
    assert commits(hub, "user/card") == 0


def test_publish_says_in_one_line_what_it_cannot_do(run, client, photos, tmp_path):
    said = client.run("publish", tmp_path / "nowhere", "--repo_id", "user/x")
    assert said["code"] == 2 and "is not a finished run" in said["err"]
    results = json.loads((run / "results.json").read_text())
    results["dataset"]["name"] = str(tmp_path / "moved")
    (run / "results.json").write_text(json.dumps(results))
    said = client.run("publish", run, "--repo_id", "user/moved")
    assert said["code"] == 3 and "publish where the run was trained" in said["err"] and said["err"].count("\n") == 1


def test_checkpoints_are_uploaded_while_training_and_a_failure_is_said_and_made_up_for(
    client, hub, photos, tiny_vit, tmp_path
):
    # A LoRA checkpoint names the folder of its base model, and every one that of the best checkpoint.
    hub.faults[:] = [Fault("POST", "/commit/last-checkpoint", status=500), Fault("POST", "/commit/main", status=500)]
    run = tmp_path / "run"
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--output_dir", run, *TRAIN)
    push = ("--push_to_hub", "--hub_model_id", "user/saved", "--hub_strategy", "checkpoint")
    said = client.run(ROOT / "train_lora.py", *flags, *push)
    assert said["code"] == 0, said["err"]
    assert said["out"].count("upload to main failed") == said["out"].count("upload to last-checkpoint failed") == 1
    assert said["out"].index("training continues") < said["out"].index("epoch 2/2")
    branch = served(hub, "user/saved", "last-checkpoint")
    kept = {path.relative_to(run / "checkpoints").as_posix() for path in run.glob("checkpoints/checkpoint-*/*")}
    assert set(branch) == {name for name in kept if not name.endswith("README.md")} | {"published.json"}
    assert {"checkpoint-2/optimizer.pt", "checkpoint-2/trainer_state.json"} <= set(branch)
    assert set(served(hub, "user/saved")) == RUN_FILES | ADAPTER_FILES
    for path in (tmp_path, tiny_vit.parent):
        assert not hub.has_received(str(path).encode())
    card = served(hub, "user/saved")["README.md"].decode()
    assert "needs its base model `tiny-vit`, which is not on the Hub" in card and "base_model" not in card


TERM_ONCE = """
import os, signal
from transformers.trainer_callback import CallbackHandler

stock = CallbackHandler.on_step_end

def once(handler, args, state, control):
    if state.global_step == 6:
        CallbackHandler.on_step_end = stock
        os.kill(os.getpid(), signal.SIGTERM)
    return stock(handler, args, state, control)

CallbackHandler.on_step_end = once
"""


@pytest.mark.parametrize("script", ["train_finetune.py", "train_lora.py"])
def test_a_run_that_lost_its_disk_goes_on_from_the_hub_and_ends_bit_identical(
    script, client, hub, photos, tiny_vit, tmp_path
):
    hub.faults.clear()
    run, repo_id = tmp_path / "run", f"user/lost-{Path(script).stem}"
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, *TRAIN, "--per_device_train_batch_size", "2")
    push = ("--push_to_hub", "--hub_model_id", repo_id, "--hub_strategy", "checkpoint")
    command = (ROOT / script, *flags, "--output_dir", run, *push)
    said = client.run(*command, before=TERM_ONCE)
    assert said["code"] == 75 and "the checkpoint of step 6 is complete" in said["err"], said["err"]
    # The last checkpoint, and that of the best weights so far.
    folders = {name.split("/")[0] for name in served(hub, repo_id, "last-checkpoint")}
    assert folders == {"checkpoint-5", "checkpoint-6", "published.json"}
    assert "README.md" not in served(hub, repo_id)
    shutil.rmtree(run)

    hub.faults[:] = [Fault("GET", "/resolve/.*/checkpoint-", times=99, status=503)]
    said = client.run(*command)
    assert said["code"] == 2 and "could not be downloaded" in said["err"] and "--restart" in said["err"]
    hub.faults.clear()

    said = client.run(*command)
    assert said["code"] == 0, said["err"]
    assert f"downloaded the last checkpoint of {repo_id}" in said["out"] and "checkpoint-6" in said["out"]
    assert client.run(ROOT / script, *flags, "--output_dir", tmp_path / "whole")["code"] == 0
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    for path in (tmp_path, tiny_vit.parent):
        assert not hub.has_received(str(path).encode())


STOCK_TRAINER = """
import torch
from transformers import Trainer, TrainingArguments, ViTForImageClassification

class Photos(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {{"pixel_values": torch.rand(3, 32, 32), "labels": index % 2}}

args = TrainingArguments(
    {output!r}, num_train_epochs=1, save_strategy="epoch", use_cpu=True, disable_tqdm=True, report_to="none",
    push_to_hub=True, hub_model_id="user/stock", hub_strategy="every_save",
)
Trainer(ViTForImageClassification.from_pretrained({model!r}), args, train_dataset=Photos()).train()
"""


def test_the_stock_trainer_loses_an_upload_without_a_word_which_is_why_ours_does_it(
    client, hub, photos, tiny_vit, tmp_path
):
    refused = Fault("POST", "/user/stock/commit/", times=math.inf, status=403)
    hub.faults[:] = [refused]
    stock = STOCK_TRAINER.format(output=str(tmp_path / "stock"), model=str(tiny_vit))
    photo = photos / "rust/00.jpg"
    said = client.run("predict", tiny_vit, photo, "--output", tmp_path / "table.csv", before=stock)
    assert said["code"] == 0 and refused.hits >= 1
    assert "403" not in said["out"] + said["err"] and "model.safetensors" not in served(hub, "user/stock")


def test_a_last_checkpoint_that_never_arrives_ends_with_4(client, hub, photos, tiny_vit, tmp_path):
    hub.faults[:] = [Fault("POST", "/commit/last-checkpoint", times=99, status=403)]
    run = tmp_path / "run"
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--output_dir", run, *TRAIN)
    push = ("--push_to_hub", "--hub_model_id", "user/lost", "--hub_strategy", "checkpoint")
    command = (ROOT / "train_finetune.py", *flags, *push)
    said = client.run(*command)
    assert said["code"] == 4 and "to retry: agritransfer publish" in said["err"]
    assert json.loads((run / "status.json").read_text()) == {"state": "not published", "exit_code": 4}
    again = client.run(*command)
    assert again["code"] == 4 and "the run is not published yet" in again["err"] and "epoch 1" not in again["out"]


def test_a_published_set_of_photos_gives_the_run_of_the_folder(client, hub, photos, tmp_path):
    hub.faults.clear()
    said = client.run("publish-dataset", photos, "--repo_id", "user/photos", "--license", "cc-by-4.0")
    assert said["code"] == 0, said["err"]
    here = load_splits(str(photos))
    assert here.fingerprint in said["out"]
    repository = hub.repositories["datasets", "user/photos"]
    assert repository.private and repository.tags
    files = repository.files
    assert set(files) - {".gitattributes"} == {
        "README.md",
        "published.json",
        *(f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")),
    }
    card = files["README.md"].content.decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    assert "| blight | 8 | 2 | 2 |" in card and here.fingerprint in card and "broken photos, skipped: 0" in card
    assert not hub.has_received(str(photos.parent).encode())
    # A run from the Hub: the same photos in the same splits.
    push = ("--dataset_name", "user/photos", "--model_type", "vit", "--model_size", "nano", "--image_size", "32")
    trained = client.run(ROOT / "train_scratch.py", *push, *TRAIN, "--output_dir", tmp_path / "run")
    assert trained["code"] == 0, trained["err"]
    dataset = json.loads((tmp_path / "run/results.json").read_text())["dataset"]
    assert (dataset["fingerprint"], dataset["labels"]) == (here.fingerprint, here.labels)
    assert dataset["counts"]["test"] == {"blight": 2, "healthy": 2, "rust": 2}
    assert dataset["revision"] == repository.branches["main"]


def test_photos_that_tell_their_place_are_not_opened_to_all(client, hub, tmp_path):
    for label, colour in (("healthy", "green"), ("rust", "orange")):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(10):
            photo = Image.effect_noise((40, 30), 60 + number).convert("RGB")
            exif = Image.Exif()
            exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
            Image.blend(photo, Image.new("RGB", photo.size, colour), 0.3).save(
                tmp_path / f"data/{label}/{number}.jpg", exif=exif
            )
    command = ("publish-dataset", tmp_path / "data", "--repo_id", "user/placed")
    said = client.run(*command, "--hub_private_repo", "false")
    assert (
        said["code"] == 3
        and "a GPS position in the EXIF data" in said["err"]
        and "or publish to a private repository" in said["err"]
    )
    # The repository is public by now, and so would the photos be.
    said = client.run(*command)
    assert said["code"] == 2 and "'user/placed' is public; make it private in its settings" in said["err"]
    assert client.run(*command[:2], "--repo_id", "user/placed-privately")["code"] == 0


def test_folders_are_named_by_their_last_part_on_either_kind_of_machine():
    assert last_part("/data/field photos/") == "field photos" and last_part(r"C:\photos\rust") == "rust"
    results = {
        "dataset": {"name": "user/leaves", "revision": "abc"},
        "base_model": {"name": "/models/vit", "revision": None},
        "shift": {"name": "../field"},
        "command": "python train_lora.py --dataset_name user/leaves --model_name_or_path=/models/vit "
        "--shift_dataset_name ../field --output_dir '/home/me/my runs/a'",
    }
    found = published_results(results)
    assert (found["dataset"]["name"], found["base_model"]["name"], found["shift"]["name"]) == (
        *("user/leaves", "vit"),
        "field",
    )
    assert found["command"] == (
        "python train_lora.py --dataset_name user/leaves --model_name_or_path=vit --shift_dataset_name field "
        "--output_dir a"
    )
