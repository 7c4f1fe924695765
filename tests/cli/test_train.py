"""`agritransfer train`: what fits into the minutes is tried, validation chooses, and the test is scored once."""

import json
import os
import runpy
import signal
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from conftest import ROOT
from finished_runs import EVERY_RUN, check_run, files_of

from agritransfer.__main__ import main
from agritransfer.cli import candidates as candidates_room
from agritransfer.cli import scripts
from agritransfer.cli.time_plan import FORWARD_PASSES, Costs
from agritransfer.evaluation.choice import choice_page, choose
from agritransfer.hub.model import PUBLISHED
from agritransfer.hub.model_card import model_card


@pytest.fixture
def in_this_process(monkeypatch):
    """The scripts run in this process, with two epochs; gives their commands and the weights that each one left."""

    class Scripts:
        def __init__(self):
            self.commands, self.interrupted, self.weights = [], "", []

        def run(self, command, log):
            if command[0] == self.interrupted:
                return 130
            self.commands.append(command)
            monkeypatch.setattr(sys, "argv", [str(ROOT / command[0]), *command[1:]])
            with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
                try:
                    runpy.run_path(str(ROOT / command[0]), run_name="__main__")
                except SystemExit as end:
                    return end.code
            folder = Path(command[command.index("--output_dir") + 1])
            self.weights.append((folder / "model.safetensors").read_bytes())
            return 0

    ran = Scripts()
    monkeypatch.setattr(candidates_room, "run_script", ran.run)
    monkeypatch.setattr(Costs, "epochs", lambda *_, most: 2)
    return ran


@pytest.mark.script
def test_the_best_on_validation_becomes_one_finished_run(
    photos, field_photos, tiny_vit, tmp_path, in_this_process, capsys
):
    output = tmp_path / "run"
    command = ["train", str(photos), "--model_name_or_path", str(tiny_vit), "--minutes", "30", "--use_cpu"]
    command += ["--shift_dataset_name", str(field_photos), "--per_device_train_batch_size", "24", "--lora_r", "2"]
    command += ["--augmentation", "light", "--output_dir", str(output)]
    in_this_process.interrupted = "train_lora.py"
    assert main(command) == 130
    in_this_process.interrupted = ""
    assert "interrupted; run the same command again to resume" in capsys.readouterr().err
    assert not (output / "results.json").exists()

    assert main(command) == 0
    out = capsys.readouterr().out
    # The fitted head was kept; only the last command, that of the chosen one, scores the test.
    *tried, last = in_this_process.commands
    assert [words[0] for words in tried] == ["train_finetune.py", "train_lora.py", "train_finetune.py"]
    assert all("--skip_test" in words for words in tried) and "--skip_test" not in last
    assert "--augmentation" not in tried[0] and "--augmentation" in tried[1]
    assert ["--lora_r" in words for words in tried] == [False, True, False]
    assert "1/3 feature extraction: validation macro F1" in out and "2/3 LoRA (2 epochs, about " in out

    choice = json.loads((output / "choice.json").read_text())
    results = check_run(output, photos, choice["chosen"])
    assert [row["strategy"] for row in results["chosen_from"]] == ["head", "lora", "finetune"]
    assert (
        results["shift"]["n"] == 36
        and choice["reason"] in out
        and choice["reason"] in (output / "choice.md").read_text()
    )
    # The chosen one was not trained again, and of the others no weights are left.
    names = ["head", "lora", "finetune"]
    assert in_this_process.weights[names.index(choice["chosen"])] == in_this_process.weights[-1]
    left = {"choice.json", "choice.md", "train.log", "validation.json", *(f"candidates/{name}.log" for name in names)}
    others = [name for name in names if name != choice["chosen"]]
    left |= {f"candidates/{name}/{file}" for name in others for file in ("validation.json", "status.json")}
    found = {name for name in files_of(output) if not name.startswith("adapter/")}
    assert found - {"known_features.safetensors"} == EVERY_RUN | left
    assert not any(Path(name).match(pattern) for name in left for pattern in PUBLISHED)
    card = str(model_card(results, "user/m", (), licence="mit", base_licence=None, adapter_fits_base=True))
    assert "The validation photos chose it among 3 candidates, by their macro F1: feature extraction (" in card

    assert main(command) == 0
    assert len(in_this_process.commands) == 4 and choice["reason"] in capsys.readouterr().out
    assert main([*command, "--lora_r", "4"]) == 2
    assert "holds a run with other flags: --lora_r was 2, is 2 4; choose a new" in capsys.readouterr().err


def scored(folder: Path, macro_f1: float, log_loss: float, seconds: float) -> None:
    """What a script with `--skip_test` leaves, as far as `train` reads it."""
    scores = {"macro_f1": macro_f1, "macro_f1_ci95": [macro_f1 - 0.0196, 1.0], "log_loss_calibrated": log_loss}
    found = {"validation": scores, "training": {"seconds": seconds, "epochs": 2.0, "trainable_parameters": 9}}
    found["dataset"] = {"counts": {"train": {"a": 100}, "validation": {"a": 20}, "test": {"a": 30}}}
    found["scoring"] = {"photos": 20, "seconds": 0.2, "unscored": 30}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "validation.json").write_text(json.dumps(found))


@pytest.fixture
def pretended(monkeypatch):
    """Scripts that leave a validation score or end with an exit code and a last line, as the test says by strategy."""
    ends: dict[str, tuple] = {}
    ran: list[str] = []

    def run(command, log):
        folder = Path(command[command.index("--output_dir") + 1])
        strategy = "head" if "head" in command else "lora" if command[0] == "train_lora.py" else "finetune"
        ran.append(strategy if "--skip_test" in command else f"{strategy}, test")
        end = ends.get(strategy, (0.95 if strategy == "head" else 0.9, 0.5))
        if isinstance(end[0], int):
            log.write_text(f"Traceback\n{command[0]}: error: {end[1]}\n")
            return end[0]
        if "--skip_test" in command:
            scored(folder, *end, seconds=0 if strategy == "head" else 10)
            (folder / "status.json").write_text("{}")
            (folder / "model.safetensors").write_text(strategy)
        else:
            (folder / "results.json").write_text("{}")
        return 0

    monkeypatch.setattr(candidates_room, "run_script", run)
    monkeypatch.setattr("agritransfer.evaluation.results.results_table", lambda results: "the table")
    return ends, ran


def train(tmp_path: Path, *flags: str) -> int:
    return main(["train", "photos", "--model_name_or_path", "m", "--output_dir", str(tmp_path / "run"), *flags])


def test_without_time_for_two_epochs_the_head_is_the_run(tmp_path, pretended, capsys):
    ends, ran = pretended
    assert train(tmp_path, "--minutes", "0.05") == 0
    out = capsys.readouterr().out
    assert ran == ["head", "head, test"]
    assert "2/3 LoRA: not tried: 2 epochs would take about 8 s; to try it: --restart --minutes 1\n" in out
    assert "Feature extraction is the only candidate that was trained." in out and "the table" in out
    assert (tmp_path / "run/model.safetensors").read_text() == "head"


def test_a_candidate_that_diverges_is_left_out_and_named(tmp_path, pretended, capsys):
    ends, ran = pretended
    ends |= {"lora": (5, "the loss is NaN at step 3"), "finetune": (0.8, 0.1)}
    assert train(tmp_path) == 0
    assert ran == ["head", "lora", "finetune", "head, test"]
    assert "about" in (out := capsys.readouterr().out) and "failed: the loss is NaN at step 3\n" in out
    of_choice = json.loads((tmp_path / "run/choice.json").read_text())["candidates"][1]
    of_results = json.loads((tmp_path / "run/results.json").read_text())["chosen_from"][1]
    # A note may name files of this disk, and the results are published.
    assert of_choice["note"] == "the loss is NaN at step 3" and "note" not in of_results
    assert (of_results["strategy"], of_results["state"]) == ("lora", "failed")


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        ({"head": (3, "1 photo is broken")}, 3, "agritransfer train: error: 1 photo is broken (full log: "),
        ({"head": (2, "no/such-model could not be loaded")}, 2, "could not be loaded (full log: "),
        ({"finetune": (75, "preempted: received SIGTERM; run it again")}, 75, "train: preempted: received SIGTERM"),
        ({"lora": (143, "no output")}, 143, "interrupted; run the same command again to resume"),
    ],
)
def test_the_exit_code_of_a_script_is_passed_on_and_the_same_command_goes_on(
    ends, code, said, tmp_path, pretended, capsys
):
    scripted, ran = pretended
    scripted |= ends
    if code == 75:
        scripted["finetune"] = (75, ends["finetune"][1])
    assert train(tmp_path) == code
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    before = len(ran)
    scripted.clear()
    assert train(tmp_path) == 0
    # Nothing that was trained is trained again, and the one that failed is.
    assert ran[before - 1 :][:2] == [next(iter(ends))] * 2
    assert [name for name in ran if name.endswith("test")] == ["head, test"]


def test_a_flag_can_be_corrected_as_long_as_nothing_is_trained(tmp_path, pretended, capsys):
    ends, ran = pretended
    ends |= {"head": (2, "--image_size 30 does not fit")}
    assert train(tmp_path, "--image_size", "30") == 2
    ends.clear()
    assert train(tmp_path, "--image_size", "32") == 0
    assert train(tmp_path, "--image_size", "64") == 2
    assert "holds a run with other flags: --image_size was 32, is 64;" in capsys.readouterr().err


def test_a_network_without_adapters_is_trained_without_lora_unless_lora_was_asked_for(tmp_path, pretended, capsys):
    ends, ran = pretended
    ends |= {"lora": (2, "its adapters could not be merged")}
    assert train(tmp_path) == 0 and "failed: its adapters could not be merged" in capsys.readouterr().out
    assert main(["train", "p", "--model_name_or_path", "m", "--output_dir", str(tmp_path / "b"), "--lora_r", "8"]) == 2


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--num_train_epochs", "3"], "train takes no --num_train_epochs: use --minutes"),
        (["--train-layers=2"], "train takes no --train_layers: use agritransfer finetune"),
        (["--skip_test"], "scored once"),
        (["--push_to_hub"], "agritransfer publish RUN"),
        (["--streaming"], "use a training script"),
        (["--minutes", "0"], "--minutes 0 is out of range; give a number above 0"),
        (["--minutes", "nan"], "--minutes nan is out of range"),
    ],
)
def test_a_flag_that_leaves_nothing_to_choose_is_refused(flags, complaint, tmp_path, pretended, capsys):
    assert train(tmp_path, *flags) == 2
    err = capsys.readouterr().err
    assert complaint in err and err.count("\n") == 1 and not pretended[1]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        (
            "status.json",
            "{}",
            "holds status.json, but no run of agritransfer train; choose another --output_dir or add",
        ),
        ("results.json", "{}", "holds results.json, which no run has written"),
        ("choice.json", "[]", "choice.json is of no run of agritransfer train"),
        ("choice.md", "mine", "holds choice.md, but no run of agritransfer train; choose another --output_dir\n"),
    ],
)
def test_a_folder_of_something_else_is_not_touched(name, text, complaint, tmp_path, pretended, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text(text)
    assert train(tmp_path) == 2
    err = capsys.readouterr().err
    assert complaint in err and err.count("\n") == 1
    assert (tmp_path / "run" / name).read_text() == text and not pretended[1]


def test_restart_moves_the_earlier_run_aside(tmp_path, pretended, capsys):
    assert train(tmp_path) == 0 and train(tmp_path, "--seed", "3", "--restart") == 0
    assert f"the earlier run is renamed to {tmp_path / 'run.1'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "run.1/choice.json").read_text())["chosen"] == "head" and len(pretended[1]) == 8
    assert train(tmp_path, "--seed", "3") == 0 and len(pretended[1]) == 8


def test_the_epochs_that_fit_leave_time_for_the_scores():
    costs = Costs(photo=0.01, train=1000, validation=100, start=30, end=20)
    an_epoch = 0.01 * (1000 * FORWARD_PASSES["lora"] + 100)
    assert costs.epoch("lora") == an_epoch
    assert costs.epochs("lora", 50 + 3.5 * an_epoch, most=10) == 3
    assert costs.epochs("lora", 50 + 99 * an_epoch, most=10) == 10
    assert costs.epochs("lora", 50 + 1.9 * an_epoch, most=10) == 0 == costs.epochs("finetune", -5, most=10)
    assert costs.epochs("lora", costs.least("lora") + 1e-6, most=10) == 2
    assert costs.training_seconds(80) == 30


def row(strategy: str, macro_f1: float, log_loss: float) -> dict:
    scores = {"macro_f1": macro_f1, "macro_f1_ci95": [macro_f1 - 0.0392, min(1.0, macro_f1 + 0.03)], "seconds": 3.0}
    trained = {"trainable_parameters": 1234, "epochs": 4.0, "planned_epochs": 10}
    return {"strategy": strategy, "state": "trained", "log_loss": log_loss, **scores, **trained}


def test_near_ties_are_decided_by_the_order_and_clear_leads_by_the_score():
    # The standard error is 0.02.
    clear = [
        row("head", 0.95, 0.1),
        row("lora", 0.92, 0.5),
        {"strategy": "finetune", "state": "not tried", "note": "-"},
    ]
    assert choose(clear) == ("head", "Feature extraction has the highest validation macro F1, 0.950.")
    near = [row("head", 0.95, 0.3), row("lora", 0.92, 0.2), row("finetune", 0.94, 0.4)]
    assert choose(near) == (
        "finetune",
        "Fine-tuning has a validation macro F1 of 0.940, within one standard error (0.020) of the highest, 0.950 of "
        "feature extraction; among near ties the order is LoRA, fine-tuning, feature extraction.",
    )
    # On a tie of all, the first in the order.
    assert choose([row(name, 1.0, 0.1) for name in ("head", "lora", "finetune")])[0] == "lora"
    choice = {"candidates": clear, "chosen": "head", "reason": "because", "command": "agritransfer train p"}
    page = choice_page(choice)
    assert (
        "| **feature extraction** | 0.950 [0.911, 0.980] | 0.100 | 4 of 10 | 1,234 | 3 |" in page
        and "| not tried: - |" in page
    )


SLEEPER = """
import signal, sys, time
def end(number, frame):
    print(f"sleeper.py: preempted: received {signal.Signals(number).name}", flush=True)
    sys.exit(75)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, end)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent to this process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_script_once_and_its_exit_code_comes_back(number, tmp_path, monkeypatch):
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.setattr(scripts, "SCRIPTS", tmp_path)
    log, handler = tmp_path / "log", signal.getsignal(number)

    def send():
        while not log.exists() or "ready" not in log.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    assert scripts.run_script(["sleeper.py"], log) == 75
    assert scripts.last_line(log) == f"preempted: received {number.name}" and signal.getsignal(number) == handler


def test_a_script_that_was_killed_has_the_exit_code_of_a_shell(tmp_path, monkeypatch):
    (tmp_path / "dies.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(scripts, "SCRIPTS", tmp_path)
    assert scripts.run_script(["dies.py"], tmp_path / "log") == 137
    assert scripts.last_line(tmp_path / "log") == "no output"
