"""How long do commands take to start, and how long does the prediction for one photo take?

    python -m benchmarks.start_up
    python -m benchmarks.start_up --run runs/NAME

Commands: CPU seconds (user and system) of whole processes, compared with `import torch`. `--help` and imports of a
training script: seconds of whole processes, compared with the recipe of the documentation. One answer: from the bytes
of a JPEG file to a label, one photo at a time in one process, by the classifier of the Space on an exported run,
compared with the pipeline of transformers on the same run. Without --run, a head is trained on the drawn leaves.
"""

import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image
from transformers import pipeline

from benchmarks.photos import SIZES, generated, photos_below
from benchmarks.timing import ROOT, Ratio, compare, machine, parser, report, take_turns

sys.path.insert(0, str(ROOT / "space"))
from classifier import Classifier  # noqa: E402

AIMS = {"--help": None, "imports": None, "answer": 1.25}
# The largest allowed ratio to the CPU seconds of `import torch`.
MOST = {"--help": 0.3, "audit, first": 0.8, "audit, again": 0.8, "predict": 2.0, "predict, exported": 1.0}
IMPORTS = (
    "import agritransfer.training.session, agritransfer.training.run, agritransfer.hub.model, agritransfer.models.lora"
)
SCRIPT = {"--help": ["train_finetune.py", "--help"], "imports": ["-c", IMPORTS]}
RECIPE = {"--help": ["-m", "benchmarks.peers.recipe", "--help"], "imports": ["-c", "import benchmarks.peers.recipe"]}


def main() -> None:
    """Compare commands, scripts and single predictions."""
    flags = parser(__doc__, turns=5)
    flags.add_argument("--run", type=Path, help="Folder of a finished and exported run.")
    flags.add_argument("--photos", type=int, default=40, help="Number of photos per measurement.")
    args = flags.parse_args()
    facts, turns = machine(), 1 if args.quick else args.turns
    run = args.run or trained(args.output.absolute() / "runs/start-up")
    ratios = [*costs_of_commands(run, turns), *starts_of_scripts(turns)]
    count = 4 if args.quick else args.photos
    for size in SIZES:
        counts = {"train": 0, "validation": 0, "test": count if size == "500px" else max(4, count // 4)}
        photos = [path.read_bytes() for path in photos_below(generated(args.output.absolute(), size, counts))]
        answer = {"Space's classifier": onnx_answers(run), "pipeline": pipeline_answers(run)}
        said = {name: [one(photo) for photo in photos] for name, one in answer.items()}
        same = sum(a == b for a, b in zip(*said.values(), strict=True))
        contestants = {name: partial(per_photo, one, photos) for name, one in answer.items()}
        values, _ = take_turns(contestants, turns)
        sides = [(name, [1000 * value for value in of]) for name, of in values.items()]
        guard = f"same label on {same} of {len(photos)} photos"
        more = {"target": AIMS["answer"], "guard": guard, "guarded": same == len(photos)}
        ratios.append(compare(f"one answer, {size} JPEG, {run.name}", *sides, "seconds", "ms", **more))
    report(args.output, "start_up", ratios, facts)


def costs_of_commands(run: Path, turns: int) -> list[Ratio]:
    """The CPU seconds of each command compared with those of `import torch`."""
    photo = next((ROOT / "sample/leaves/test").rglob("*.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(shutil.copytree(run, Path(folder) / "weights", ignore=shutil.ignore_patterns("onnx")))
        table = ["--output", f"{folder}/table.csv", "--overwrite"]
        audit = ["audit", "sample/leaves", "--output", f"{folder}/a.json"]
        commands = {
            "--help": partial(cpu_seconds_of_command, "--help"),
            "audit, first": partial(cpu_seconds_of_first_audit, *audit),
            "audit, again": partial(cpu_seconds_of_command, *audit, HF_DATASETS_CACHE=f"{folder}/cache"),
            "predict": partial(cpu_seconds_of_command, "predict", weights, photo, *table),
            "predict, exported": partial(cpu_seconds_of_command, "predict", run, photo, *table),
        }
        values, _ = take_turns({**commands, "import torch": lambda: cpu_seconds(["-c", "import torch"])}, turns)
    peer = "import torch", values["import torch"]
    return [
        compare(f"CPU of a command: {name}", (f"agritransfer {name}", values[name]), peer, "cost", "s", target=most)
        for name, most in MOST.items()
    ]


def cpu_seconds_of_command(*words: str | Path, **environment: str) -> float:
    """CPU seconds of a whole process that runs one of our commands."""
    return cpu_seconds(["-m", "agritransfer", *map(str, words)], **environment)


def cpu_seconds_of_first_audit(*words: str) -> float:
    """CPU seconds of an audit of photos that are not in the cache."""
    with tempfile.TemporaryDirectory() as cache:
        return cpu_seconds_of_command(*words, HF_DATASETS_CACHE=cache)


def cpu_seconds(command: list[str], **environment: str) -> float:
    """User and system seconds of a whole Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command, environment = [sys.executable, *command], os.environ | environment
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def starts_of_scripts(turns: int) -> list[Ratio]:
    """Seconds until a training script shows its help or has finished its imports, compared with the recipe."""
    ratios = []
    for what in SCRIPT:
        contestants = {
            "ours": lambda what=what: seconds(SCRIPT[what]),
            "recipe": lambda what=what: seconds(RECIPE[what]),
        }
        values, _ = take_turns(contestants, turns)
        names = " ".join(SCRIPT["--help"]) if what == "--help" else "imports of train_finetune.py"
        sides = (names, values["ours"]), (f"recipe, {what}", values["recipe"])
        ratios.append(compare(f"start: {what}", *sides, "seconds", "s", target=AIMS[what]))
    return ratios


def seconds(command: list[str]) -> float:
    """Wall-clock seconds of a whole process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def trained(run: Path) -> Path:
    """Train a head on the small backbone and export it, once."""
    if not (run / "onnx/model.onnx").exists():
        command = ["train_finetune.py", "--dataset_name", "sample/leaves", "--model_name_or_path", "sample/vit"]
        command += ["--train_layers", "head", "--num_train_epochs", "2", "--use_cpu", "--output_dir", str(run)]
        for step in ([*command, "--restart"], ["-m", "agritransfer", "export", str(run)]):
            subprocess.run([sys.executable, *step], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return run


def onnx_answers(run: Path) -> Callable[[bytes], str]:
    """A function that predicts the label of one photo as the Space does."""
    classifier = Classifier(run)
    return lambda photo: classifier.answer(classifier.read(photo)).labels[0]


def pipeline_answers(run: Path) -> Callable[[bytes], str]:
    """A function that predicts the label of one photo with the pipeline of transformers."""
    classify = pipeline("image-classification", model=str(run))
    return lambda photo: classify(Image.open(io.BytesIO(photo)).convert("RGB"), top_k=1)[0]["label"]


def per_photo(one: Callable[[bytes], str], photos: list[bytes]) -> float:
    """Median seconds per prediction."""
    took = []
    for photo in photos:
        started = time.perf_counter()
        one(photo)
        took.append(time.perf_counter() - started)
    return statistics.median(took)


if __name__ == "__main__":
    main()
