"""Train a classifier, detector, segmenter or language model from a config.

python tools/train.py configs/classification/grootv-tiny_8xb128_in1k.py
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
from contextlib import nullcontext
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from grootv import checks, cli, distributed
from grootv.checkpoint import explain_loading, install_safe_loader
from grootv.engine import CheckpointKeysHook, DataReportHook, ResumeHook, progress_bar
from grootv.errors import UserError
from grootv.files import lock_folder
from grootv.pretrained import drop_pretrained
from grootv.registry import class_name

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    cli.add_runner_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from this checkpoint, or from the latest one in the work folder',
    )
    parser.add_argument(
        '--resume-schedule',
        choices=['checkpoint', 'config'],
        help='which schedule and settings of the optimizer a resumed run has, where the two differ',
    )
    parser.add_argument('--no-validate', action='store_true', help='train without evaluation')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the total batch size over auto_scale_lr.base_batch_size',
    )
    return parser.parse_args()


def use_amp(cfg: Config) -> None:
    """Switch to mixed precision: float16 with loss scaling on a GPU, bfloat16 without one."""
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if class_name(kind) not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(
            f'--amp replaces an OptimWrapper, and the config has a {class_name(kind)}: '
            'leave --amp out, or set optim_wrapper.type in the config'
        )
    checks.check_amp(cfg)
    if torch.cuda.is_available():
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    else:
        cfg.optim_wrapper.type = 'grootv.BFloat16OptimWrapper'


def latest_checkpoint(work_dir: str) -> str | None:
    """The newest checkpoint of a work folder, or None.

    MMEngine's note of it is taken unless it is cut short, or the folder has been moved since.
    """
    folder = Path(work_dir)
    noted = Path(find_latest_checkpoint(work_dir) or '')
    written = [path for kind in ('epoch', 'iter') for path in folder.glob(f'{kind}_*.pth')]
    written.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    found = [path for path in (noted, folder / noted.name, *written) if path.is_file()]
    return str(found[0]) if found else None


def merge_args(cfg: Config, args: argparse.Namespace) -> None:
    """Write the command line into the config."""
    cli.apply_runner_arguments(cfg, args)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        if not cfg.get('auto_scale_lr'):
            raise UserError(
                f'--auto-scale-lr: {args.config} does not say for which total batch size its '
                'learning rate is, set auto_scale_lr.base_batch_size'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume not in (None, 'auto'):
        cfg.resume, cfg.load_from = True, args.resume
    elif args.resume or (cfg.get('resume') and not cfg.get('load_from')):
        latest = latest_checkpoint(cfg.work_dir)
        cfg.resume, cfg.load_from = latest is not None, latest or cfg.get('load_from')


def how_to_continue(work_dir: str) -> str:
    """End of the sentence that reports an interruption."""
    last = latest_checkpoint(work_dir)
    return f'; continue from {last} with --resume' if last else ' before the first checkpoint'


def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args.config, args.cfg_options)
    if cfg.get('train_dataloader') is None:
        raise UserError(f'{args.config} has no train_dataloader: give a config that trains')
    merge_args(cfg, args)
    checks.check_schedule(cfg)
    checks.check_layer_decay(cfg)
    install_safe_loader(trust=args.trust_checkpoint)
    if cfg.get('load_from'):
        checks.check_checkpoint(cfg.load_from)
    checks.check_data(cfg, ['model', 'train_dataloader', 'val_dataloader', 'val_evaluator'])
    if cfg.get('resume'):
        drop_pretrained(cfg)
    else:
        checks.check_pretrained_files(cfg, CONFIGS)
    distributed.prepare(cfg)
    first = distributed.launched_rank(cfg.launcher) == 0
    with lock_folder(cfg.work_dir) if first else nullcontext():
        train(cfg, args.resume_schedule)


def train(cfg: Config, resume_schedule: str | None) -> None:
    """Run the training of a config that has been checked."""
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    checks.check_pretrained_fit(runner.model)
    explain_loading(runner)
    runner.register_hook(CheckpointKeysHook(strict=bool(cfg.get('resume'))))
    runner.register_hook(DataReportHook())
    runner.register_hook(cli.StopHook())
    if cfg.get('resume'):
        runner.register_hook(ResumeHook(resume_schedule))
    bar = progress_bar(runner, distributed.rank())
    with cli.stoppable(lambda: how_to_continue(cfg.work_dir)), bar:
        runner.train()


if __name__ == '__main__':
    cli.run(main)
