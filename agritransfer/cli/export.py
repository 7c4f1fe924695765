"""Export a finished run to ONNX and check the files on its validation photos.

    agritransfer export runs/NAME
    agritransfer export runs/NAME --photos 500

The files are written to runs/NAME/onnx/ and run without torch:
    model.onnx            the model in 32-bit floating point
    model_quantized.onnx  the model in 8 bits, in the fastest form that gives the class and the
                          verdict of the run for at least 99% of the photos and loses at most
                          0.3 points of accuracy
    known_features_quantized.safetensors
                          the known photos of the 8-bit model, which has its own calibration
    export.json           the measurements

Run it where the run was trained, since it reads the photos from the same place.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from agritransfer.errors import UsageError
from agritransfer.wording import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--photos", type=int, help="check, and calibrate the 8-bit file, on at most N photos")


def run(arguments: argparse.Namespace) -> int:
    """Export and print the measurements; returns 0."""
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise UsageError(f"export needs {' and '.join(missing)}; install with: pip install 'agritransfer[export]'")
    from agritransfer.hub.export.onnx import export_onnx

    print(_table(arguments.run, export_onnx(arguments.run, arguments.photos)))
    return 0


def _table(folder: Path, exported: dict) -> str:
    lines = ["", f"{'':<22}{'MB':>7}{'accuracy':>10}{'agreement':>14}{'max logit diff.':>18}"]
    lines.append(f"{'torch':<29}{exported['torch']['accuracy']:>10.3f}")
    lines.append(_row("model.onnx", exported["model"]))
    tried = exported["model_quantized"]["tried"]
    lines += [_row(f"8 bits, {facts['method']}", facts) for facts in tried]
    lines += [_verdict_line(facts) for facts in tried]
    lines += [f"8 bits, {facts['method']}: not written because {facts['reason']}" for facts in tried if facts["reason"]]
    evidence = exported["evidence"]
    test = evidence["deletion_test"]
    fall = "hiding the top tenth of the image lowers the logit by {hottest:.2f}, a random tenth by {random:.2f}"
    lines.append(f"evidence: {evidence['method']}; {fall.format(**test['logit_fall'])}")
    if not test["passed"]:
        lines.append("this evidence is no better than chance: do not show it as an explanation")
    reduced = exported["reduced_decoding"]
    alike = f"the same answer for {reduced['agreement']:.1%} of {counted(reduced['photos'], 'phone-size photo')}"
    served = "the Space uses it" if reduced["passed"] else "the Space decodes at full size"
    lines.append(f"decoding at reduced size: {alike}; {served}")
    lines.append(f"checked on {counted(exported['photos'], 'validation photo')} in {exported['seconds']:.0f} s")
    lines.append(f"written to {folder / 'onnx'}")
    return "\n".join(lines)


def _verdict_line(facts: dict) -> str:
    """How far the verdicts of an 8-bit file agree with the run's: "answer" and the class, "not sure" or "unknown"."""
    from agritransfer.hub.export.quantization import LEAST_AGREEMENT

    same, (low, high) = facts["verdicts"], facts["verdicts"]["agreement_ci95"]
    line = f"8 bits, {facts['method']}: the same verdict for {same['same']} of {counted(same['photos'], 'photo')}, "
    line += f"{same['agreement']:.1%} [{low:.1%}, {high:.1%}]"
    few = facts["reason"] is None and low < LEAST_AGREEMENT
    return line + ("; too few photos to be sure of 99% on new ones" if few else "")


def _row(name: str, facts: dict) -> str:
    return (
        f"{name:<22}{facts['bytes'] / 1e6:>7.1f}{facts['accuracy']:>10.3f}{facts['agreement']:>14.1%}"
        f"{facts['largest_logit_difference']:>18.2g}"
    )
