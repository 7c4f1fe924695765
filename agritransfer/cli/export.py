"""Turn a finished run into ONNX files that answer without torch, checked on the run's validation photos.

    python -m agritransfer export runs/NAME
    python -m agritransfer export runs/NAME --photos 500

It writes runs/NAME/onnx/: model.onnx; model_quantized.onnx, 8-bit integers, in the fastest form that gives at least
99 % of torch's answers and loses at most 0.3 points of accuracy; export.json with what was measured. Start it where
the run was trained: the photos are looked for under the name that they had then.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from agritransfer.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--photos", type=int, help="check on this many validation photos at most")


def run(arguments: argparse.Namespace) -> int:
    """Export, print what was measured; returns 0."""
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise UsageError(f"export needs {' and '.join(missing)}; install with: pip install 'agritransfer[export]'")
    from agritransfer.hub.export.onnx import export_onnx

    print(_table(arguments.run, export_onnx(arguments.run, arguments.photos)))
    return 0


def _table(folder: Path, exported: dict) -> str:
    lines = ["", f"{'':<22}{'MB':>7}{'accuracy':>10}{'same answers':>14}{'logits differ by':>18}"]
    lines.append(f"{'torch':<29}{exported['torch']['accuracy']:>10.3f}")
    lines.append(_row("model.onnx", exported["model"]))
    tried = exported["model_quantized"]["tried"]
    lines += [_row(f"8 bits, {facts['method']}", facts) for facts in tried]
    lines += [f"8 bits, {facts['method']}: not written, {facts['reason']}" for facts in tried if facts["reason"]]
    evidence = exported["evidence"]
    test = evidence["deletion_test"]
    fall = "hiding its hottest tenth lowers the class by {hottest:.2f}, a random tenth by {random:.2f}"
    lines.append(f"evidence: {evidence['method']}; {fall.format(**test['logit_fall'])}")
    if not test["passed"]:
        lines.append("that is no more than chance: do not show this evidence as a reason for the answer")
    reduced = exported["reduced_decoding"]
    alike = f"{reduced['agreement']:.1%} of {reduced['photos']} photos of a phone's size answered alike"
    served = "the Space may do so" if reduced["passed"] else "the Space decodes them whole"
    lines.append(f"decoded at a part of their size, {alike}: {served}")
    lines.append(f"checked on {exported['photos']} validation photos; {exported['seconds']:.0f} s")
    lines.append(f"written to {folder / 'onnx'}")
    return "\n".join(lines)


def _row(name: str, facts: dict) -> str:
    return (
        f"{name:<22}{facts['bytes'] / 1e6:>7.1f}{facts['accuracy']:>10.3f}{facts['agreement']:>14.1%}"
        f"{facts['largest_logit_difference']:>18.2g}"
    )
