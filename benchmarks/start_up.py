"""How long until something happens: `--help`, the imports of a training, the answer for one photo?

    python -m benchmarks.start_up
    python -m benchmarks.start_up --run runs/NAME

`--help` and imports: whole processes, beside the documentation's recipe. The answer: from the bytes of a JPEG file to a
label, one photo at a time in one process, by the Space's own classifier on an exported run beside transformers'
pipeline on the same run. Without a run, a head is trained on the drawn leaves for it.
"""

import io
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image
from transformers import pipeline

from benchmarks.photos import SIZES, generated, photos_below
from benchmarks.timing import ROOT, compare, machine, parser, report, take_turns

sys.path.insert(0, str(ROOT / "space"))
from classifier import Classifier  # noqa: E402

AIMS = {"--help": None, "imports": None, "answer": 1.25}
IMPORTS = "import agritransfer.training.run, agritransfer.hub.model, agritransfer.models.lora"
SCRIPT = {"--help": ["train_finetune.py", "--help"], "imports": ["-c", IMPORTS]}
RECIPE = {"--help": ["-m", "benchmarks.peers.recipe", "--help"], "imports": ["-c", "import benchmarks.peers.recipe"]}


def main() -> None:
    """Compare the three."""
    flags = parser(__doc__, turns=5)
    flags.add_argument("--run", type=Path, help="A finished and exported run.")
    flags.add_argument("--photos", type=int, default=40, help="Photos to answer in one measurement.")
    args = flags.parse_args()
    facts, turns = machine(), 1 if args.quick else args.turns
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

    run = args.run or trained(args.output.absolute() / "runs/start-up")
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


def seconds(command: list[str]) -> float:
    """Of a whole process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def trained(run: Path) -> Path:
    """A head on the small backbone, trained and exported once."""
    if not (run / "onnx/model.onnx").exists():
        command = ["train_finetune.py", "--dataset_name", "sample/leaves", "--model_name_or_path", "sample/vit"]
        command += ["--train_layers", "head", "--num_train_epochs", "2", "--use_cpu", "--output_dir", str(run)]
        for step in ([*command, "--restart"], ["-m", "agritransfer", "export", str(run)]):
            subprocess.run([sys.executable, *step], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return run


def onnx_answers(run: Path) -> Callable[[bytes], str]:
    """Label of one photo, as the Space finds it."""
    classifier = Classifier(run)
    return lambda photo: classifier.answer(classifier.read(photo)).labels[0]


def pipeline_answers(run: Path) -> Callable[[bytes], str]:
    """Label of one photo, as transformers' pipeline finds it."""
    classify = pipeline("image-classification", model=str(run))
    return lambda photo: classify(Image.open(io.BytesIO(photo)).convert("RGB"), top_k=1)[0]["label"]


def per_photo(one: Callable[[bytes], str], photos: list[bytes]) -> float:
    """Median seconds of an answer."""
    took = []
    for photo in photos:
        started = time.perf_counter()
        one(photo)
        took.append(time.perf_counter() - started)
    return statistics.median(took)


if __name__ == "__main__":
    main()
