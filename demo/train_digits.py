"""Train, evaluate and picture a small GrootV on real handwritten digits: what ``make demo`` runs.

Every step is a tool of this repository, started as a user would start it, and is skipped where an
earlier call already did it. An interrupted training continues.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
CONFIG = 'configs/demo/grootv-pico_digits.py'
DATA = 'data/digits'
WORK_DIR = Path('work_dirs/grootv-pico_digits')
CHECKPOINT = WORK_DIR / f'epoch_{Config.fromfile(ROOT / CONFIG).train_cfg.max_epochs}.pth'
IMAGE = f'{DATA}/val/8'  # the first image of this folder is drawn with its tree


def step(title: str, *command: object, show: str = '') -> None:
    """Run a tool and pass on the lines of its output that contain ``show``; leave if it fails."""
    command = [str(part) for part in command]
    print(f'\n{title}\n$ python {" ".join(command)}', flush=True)
    environment = {'PYTHONWARNINGS': 'ignore', **os.environ}
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    try:
        for line in process.stdout:
            if show in line:
                print(line.rstrip(), flush=True)
        status = process.wait()
    except KeyboardInterrupt:  # the tool got the signal too, and says how to go on
        status = process.wait()
    if status:
        sys.exit(f'demo: {command[0]} ended with status {status}; start the demo again to continue')


def stale(result: Path) -> bool:
    """Whether a file is missing or older than the checkpoint."""
    result, checkpoint = ROOT / result, ROOT / CHECKPOINT
    return not result.exists() or result.stat().st_mtime < checkpoint.stat().st_mtime


def main() -> None:
    step('Data', 'tools/dataset_converters/digits.py', DATA)
    if (ROOT / CHECKPOINT).exists():
        print(f'\nTraining: done, {CHECKPOINT} is there')
    else:
        step('Training', 'tools/train.py', CONFIG, '--resume', show='Epoch(')

    metrics, curves = WORK_DIR / 'metrics.json', WORK_DIR / 'curves.png'
    matrix, tree = WORK_DIR / 'confusion_matrix.png', WORK_DIR / 'tree.png'
    if stale(metrics):
        test = ('tools/test.py', CONFIG, CHECKPOINT, '--work-dir', WORK_DIR / 'test')
        step('Evaluation', *test, '--out', metrics, show='Epoch(test)')
    if stale(curves):
        step('Curves', 'tools/analysis_tools/plot_curves.py', WORK_DIR, '--out', curves)
    if stale(matrix):
        plot = 'tools/analysis_tools/confusion_matrix.py'
        step('Confusion matrix', plot, CONFIG, CHECKPOINT, '--out', matrix, show='confusion matrix:')
    if stale(tree):
        image = sorted((ROOT / IMAGE).iterdir())[0].relative_to(ROOT)
        draw = ('tools/analysis_tools/visualize_tree.py', image, '--config', CONFIG)
        step('Spanning tree', *draw, '--checkpoint', CHECKPOINT, '--out', tree)

    accuracy = json.loads((ROOT / metrics).read_text())['accuracy/top1']
    log = sorted((ROOT / WORK_DIR).glob('*/*.log'))[-1].relative_to(ROOT)
    print(f'\nlog               {log}')
    print(f'checkpoint        {CHECKPOINT}')
    print(f'curves            {curves}')
    print(f'confusion matrix  {matrix}')
    print(f'tree              {tree}')
    print(f'accuracy          {accuracy:.2f} % top-1 on the held-out digits')


if __name__ == '__main__':
    main()
