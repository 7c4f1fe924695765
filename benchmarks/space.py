"""How fast does the Space answer, compared with a Gradio app that uses a transformers pipeline on the same model?

    python -m benchmarks.space runs/NAME PHOTOS

Both are started anew in each turn. Measured over HTTP, as for a visitor: the time from the start of the process to the
first answer (in which the Space times its two model files), the time to answer photos of 12 million
pixels one after another including the upload, and the resident memory. The photos below PHOTOS are enlarged for this.
The answers are compared.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from PIL import Image

from benchmarks.timing import ROOT, processor_name

TURNS = 5
PHOTOS = 40
FULL_SIZE = (4000, 3000)
PATIENCE = 120


def main() -> None:
    """Print the measurements of both, the ratios with their spread, and one line of JSON."""
    run, photos = Path(sys.argv[1]), full_size_photos(Path(sys.argv[2]))
    apps = {
        "space": ["space/app.py", "--model", str(run), "--port"],
        "pipeline": ["benchmarks/peers/pipeline_space.py", str(run)],
    }
    measured: dict[str, list[dict]] = {name: [] for name in apps}
    for turn in range(TURNS):
        for name, command in apps.items():
            measured[name].append(measure([*command, str(17860 + turn)], 17860 + turn, photos))
            figures = ", ".join(f"{key} {value:.3g}" for key, value in measured[name][-1].items() if key != "answers")
            print(f"{name}: {figures}", flush=True)
    answers = [of[0]["answers"] for of in measured.values()]
    same = sum(ours == theirs for ours, theirs in zip(*answers, strict=True))
    print(f"same answer on {same} of {len(photos)} photos; {TURNS} turns on {os.cpu_count()} cores, {processor_name()}")
    ratios = {}
    for key in ("seconds to the first answer", "p95 seconds", "median seconds", "MB"):
        pairs = zip(measured["space"], measured["pipeline"], strict=True)
        ratios[key] = [ours[key] / theirs[key] for ours, theirs in pairs]
        low, middle, high = min(ratios[key]), statistics.median(ratios[key]), max(ratios[key])
        print(f"{key}, space / pipeline: {middle:.2f} ({low:.2f} to {high:.2f})")
    print(json.dumps({"measured": measured, "ratios": ratios}))


def full_size_photos(folder: Path) -> list[bytes]:
    """Evenly chosen photos of the folder as JPEG files of 12 million pixels."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    contents = []
    for path in files[:: max(1, len(files) // PHOTOS)][:PHOTOS]:
        buffer = io.BytesIO()
        with Image.open(path) as photo:
            photo.convert("RGB").resize(FULL_SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
        contents.append(buffer.getvalue())
    return contents


def measure(command: list[str], port: int, photos: list[bytes]) -> dict:
    """Start an app, query it and stop it; seconds, megabytes and the first label for every photo."""
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as log, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        started = time.perf_counter()
        app = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            wait_for(client, app)
            diagnose(client, photos[0])
            first = time.perf_counter() - started
            seconds, answers = [], []
            for photo in photos:
                began = time.perf_counter()
                answers.append(diagnose(client, photo))
                seconds.append(time.perf_counter() - began)
            memory = psutil.Process(app.pid).memory_info().rss / 1e6
        finally:
            app.terminate()
            app.wait()
    return {
        "seconds to the first answer": first,
        "p95 seconds": statistics.quantiles(seconds, n=20)[-1],
        "median seconds": statistics.median(seconds),
        "MB": memory,
        "answers": answers,
    }


def wait_for(client: httpx.Client, app: subprocess.Popen) -> None:
    """Wait until the app responds."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and app.poll() is None:
        try:
            client.get("/config")
            return
        except httpx.ConnectError:
            time.sleep(0.02)
    raise RuntimeError(f"the app did not start (exit code {app.poll()})")


def diagnose(client: httpx.Client, photo: bytes) -> str:
    """Upload a photo and request its diagnosis; returns the first label."""
    (path,) = client.post("/gradio_api/upload", files={"files": ("leaf.jpg", photo, "image/jpeg")}).json()
    file = {"path": path, "orig_name": "leaf.jpg", "meta": {"_type": "gradio.FileData"}}
    event = client.post("/gradio_api/call/diagnose", json={"data": [file]}).json()["event_id"]
    told = client.get(f"/gradio_api/call/diagnose/{event}").text
    answer = json.loads(told.split("data: ", 1)[1].splitlines()[0])[0]
    return answer["answers"][0]["label"] if "answers" in answer else answer["label"]


if __name__ == "__main__":
    main()
