"""What the demos share: each step is a tool of this repository, started as a user would start it.

A step whose result is there is skipped, and an interrupted training continues.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]


def step(title: str, *command: object, show: str = '', label: str = '') -> None:
    """Run a tool and print the lines of its output that contain ``show``; leave if it fails.

    A label precedes every line, for steps that run at the same time.
    """
    command = [str(part) for part in command]
    print(f'\n{label}{title}\n{label}$ python {" ".join(command)}', flush=True)
    environment = {'PYTHONWARNINGS': 'ignore', **os.environ}
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    try:
        for line in process.stdout:
            if show in line:
                print(f'{label}{line.rstrip()}', flush=True)
        status = process.wait()
    except KeyboardInterrupt:  # the tool got the signal too, and says how to continue
        status = process.wait()
    if status:
        sys.exit(f'demo: {command[0]} ended with status {status}; start the demo again to continue')


class Run:
    """A training of one config, and what is made from its last checkpoint.

    Args:
        config: Config file, relative to the repository.
        work_dir: Its folder; by default work_dirs/CONFIG.
        options: Settings of the config to replace, KEY=VALUE.
        label: Precedes every line of its output.
    """

    def __init__(
        self, config: str, work_dir: str | None = None, options: tuple[str, ...] = (), label: str = ''
    ):
        self.config = config
        self.label = label
        self.work_dir = Path(work_dir or f'work_dirs/{Path(config).stem}')
        self.options = ('--cfg-options', *options) if options else ()
        settings = dict(option.split('=') for option in options)
        cfg = Config.fromfile(ROOT / config).train_cfg
        unit = 'epoch' if 'max_epochs' in cfg else 'iter'
        last = settings.get(f'train_cfg.max_{unit}s', cfg.get(f'max_{unit}s'))
        self.checkpoint = self.work_dir / f'{unit}_{last}.pth'

    def train(self) -> None:
        if (ROOT / self.checkpoint).exists():
            print(f'\n{self.label}Training: done, {self.checkpoint} is there')
            return
        command = ('tools/train.py', self.config, '--work-dir', self.work_dir, '--resume')
        step('Training', *command, *self.options, show='(train)', label=self.label)

    def made(self, result: Path) -> bool:
        """Whether a result is there and no older than the checkpoint."""
        made, checkpoint = ROOT / result, ROOT / self.checkpoint
        return made.exists() and made.stat().st_mtime >= checkpoint.stat().st_mtime

    def make(self, title: str, result: Path, *command: object, show: str = '') -> None:
        """Run a tool unless its result is made."""
        if not self.made(result):
            step(title, *command, show=show, label=self.label)

    def curves(self, *metrics: str) -> Path:
        """The picture of the training's curves."""
        picture, options = self.work_dir / 'curves.png', ('--metrics', *metrics) if metrics else ()
        plot = ('tools/analysis_tools/plot_curves.py', self.work_dir, *options)
        self.make('Curves', picture, *plot, '--out', picture)
        return picture

    def tree(self, image: Path | str) -> Path:
        """The picture of an image and the tree of a block."""
        picture = self.work_dir / 'tree.png'
        draw = ('tools/analysis_tools/visualize_tree.py', image, '--config', self.config)
        self.make('Spanning tree', picture, *draw, '--checkpoint', self.checkpoint, '--out', picture)
        return picture

    def test(self, *command: object) -> dict[str, float]:
        """The metrics of the last checkpoint, from tools/test.py."""
        metrics = self.work_dir / 'metrics.json'
        test = ('tools/test.py', self.config, self.checkpoint, '--work-dir', self.work_dir / 'test')
        options = (*self.options, *command, '--out', metrics)
        self.make('Evaluation', metrics, *test, *options, show='(test)')
        return json.loads((ROOT / metrics).read_text())

    def logged(self, name: str) -> list[float]:
        """What the training logged under a name, first to last."""
        logs = sorted((ROOT / self.work_dir).glob('*/vis_data/scalars.json'))
        records = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
        return [record[name] for record in records if name in record]

    def check_loss(self) -> str:
        """The loss at the training's two ends, as text; leaves if it did not fall."""
        losses = self.logged('loss')
        part = max(1, len(losses) // 10)
        first, last = mean(losses[:part]), mean(losses[-part:])
        if last >= first:
            sys.exit(f'demo: the loss did not fall, {first:.3f} at first and {last:.3f} at last')
        return f'{first:.3f} at first, {last:.3f} at last'

    def log(self) -> Path:
        return sorted((ROOT / self.work_dir).glob('*/*.log'))[-1].relative_to(ROOT)


def summary(**entries: object) -> None:
    """Print where everything is."""
    width = max(map(len, entries))
    print()
    for name, value in entries.items():
        print(f'{name.replace("_", " "):<{width}}  {value}')
