"""How two processes are launched together."""

import sys

from conftest import ROOT

# accelerate 1.15 starts several CPU processes through this flag only: a MULTI_CPU configuration wants mpirun.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", ROOT / "accelerate_config.yaml"]


TOGETHER = {"OMP_NUM_THREADS": "1"}
