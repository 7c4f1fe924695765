"""How fast is agritransfer on this machine? Runs every short benchmark in turn: `make bench`.

    python -m benchmarks
    python -m benchmarks --quick --output /tmp/bench

Photos are drawn and the small backbones of sample/ are trained, so nothing has to be downloaded. Each benchmark is a
file in this folder, with flags for other sizes, photos and models. Writes runs/bench/results.json and results.md.
"""

import json
import subprocess
import sys
import time

from benchmarks.timing import ROOT, machine_line, parser, table

# The shortest first.
MEASUREMENTS = (
    ("input_pipeline-1", ["input_pipeline", "--cores", "1"]),
    ("input_pipeline-2", ["input_pipeline", "--cores", "2"]),
    ("cold_pass-1", ["cold_pass", "--cores", "1"]),
    ("cold_pass-2", ["cold_pass", "--cores", "2"]),
    ("start_up", ["start_up"]),
    ("training_step", ["training_step"]),
    ("head_only", ["head_only"]),
    ("last_blocks", ["last_blocks", "--photos", "400"]),
)


def main() -> None:
    """Run each benchmark in its own process, then join the tables."""
    args = parser(__doc__, turns=0).parse_args()
    started, ratios, notes, failed = time.perf_counter(), [], [], []
    for name, command in MEASUREMENTS:
        print(f"\n{name}", flush=True)
        flags = ["--output", str(args.output)] + (["--quick"] if args.quick else [])
        flags += ["--turns", str(args.turns)] if args.turns else []
        ended = subprocess.run([sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:], *flags], cwd=ROOT)
        if ended.returncode != 0:
            failed.append(name)
            continue
        result = json.loads((args.output / f"{name}.json").read_text())
        ratios += result["ratios"]
        notes += [f"{name}: {note}" for note in result["notes"]]
        facts = result["machine"]
    if ratios:
        joined = {"machine": facts, "seconds": time.perf_counter() - started, "ratios": ratios, "notes": notes}
        (args.output / "results.json").write_text(json.dumps(joined, indent=2) + "\n", encoding="utf-8")
        text = "\n".join([table(ratios), "", *notes, machine_line(facts)])
        (args.output / "results.md").write_text(text + "\n", encoding="utf-8")
        print(f"\n{args.output}/results.json and results.md, after {joined['seconds'] / 60:.0f} min")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see their output above")


if __name__ == "__main__":
    main()
