"""Run a script of another project with GrootV among the models of timm.

python -m grootv.integrations SCRIPT [ARGS]
torchrun --nproc-per-node 8 -m grootv.integrations SCRIPT [ARGS]
"""

import runpy
import sys
from pathlib import Path

import grootv.integrations.timm  # noqa: F401

if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
    sys.exit(f'python -m grootv.integrations: give a script that exists, got {sys.argv[1:2]}')
del sys.argv[0]
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as if Python had started the script
runpy.run_path(sys.argv[0], run_name='__main__')
