"""A running Space of the project, and the requests of a visitor without a browser."""

import base64
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
from conftest import ROOT
from PIL import Image

SAMPLE = ROOT / "space/model"
PATIENCE = 90


class SpaceApp:
    """`python space/app.py` on a free port, started in the folder `home`; `before` is code that runs in it first."""

    def __init__(self, home: Path, before: str = "pass", **environment: str):
        program = f"import sys; sys.path.insert(0, {str(ROOT / 'space')!r}); import app; {before}; app.main()"
        self.log = home / "space.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error::UserWarning", "-c", program],
                stdout=log,
                stderr=log,
                cwd=home,
                env=os.environ | {"GRADIO_TEMP_DIR": str(home / "uploads"), "PYTHONUNBUFFERED": "1"} | environment,
            )
        self.url = self._address()
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def _address(self) -> str:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            told = self.log.read_text()
            # The line comes when the server listens.
            if "MCP server" in told:
                return told.split("Running on local URL:")[1].split()[0]
            time.sleep(0.1)
        raise RuntimeError(self.log.read_text())

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.process.terminate()
        self.process.wait()

    def memory(self) -> float:
        """Resident megabytes."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def upload(self, content: bytes, name: str = "leaf.jpg") -> dict:
        """Upload a file as a browser does; gives what the endpoints take for it."""
        answer = self.client.post("/gradio_api/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return file_of(answer.json()[0], name)

    def call(self, endpoint: str, *inputs: object, **headers: str) -> tuple[int, object]:
        """Ask an endpoint as curl does; gives the status and the answer, or the error's text."""
        began = self.client.post(f"/gradio_api/call/{endpoint}", json={"data": inputs}, headers=headers)
        if began.status_code != 200:
            return began.status_code, began.json()["detail"]
        told = self.client.get(f"/gradio_api/call/{endpoint}/{began.json()['event_id']}", headers=headers).text
        event, _, data = told.strip().partition("\n")
        content = json.loads(data.removeprefix("data: "))
        return (200, content[0]) if event == "event: complete" else (500, content["error"])


def file_of(path: str, name: str = "leaf.jpg") -> dict:
    """What Gradio's clients send for a file that lies at the server."""
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def data_url(content: bytes, kind: str = "image/jpeg") -> dict:
    """What they send for a photo in the request itself."""
    return {"url": f"data:{kind};base64,{base64.b64encode(content).decode()}"}


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
