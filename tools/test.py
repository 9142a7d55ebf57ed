"""Evaluate a checkpoint on the test set of a config.

python tools/test.py configs/classification/grootv-tiny_8xb128_in1k.py CHECKPOINT --out metrics.json
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import inspect
import os
from functools import partial
from pathlib import Path
from typing import Any

import mmengine
from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.registry import HOOKS, METRICS, RUNNERS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from grootv import checks, cli, distributed
from grootv.checkpoint import explain_loading, install_safe_loader
from grootv.datasets.summary import data_root
from grootv.engine import CheckpointKeysHook, DataReportHook, progress_bar
from grootv.errors import UserError
from grootv.files import write_named
from grootv.registry import class_name

_ITEMS = {'.json': 'metrics', '.pkl': 'pred', '.pickle': 'pred'}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    cli.add_runner_arguments(parser)
    parser.add_argument('--out', help='write the metrics to a .json, or the predictions to a .pkl')
    parser.add_argument('--out-item', choices=['metrics', 'pred'], help='what --out writes')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--show-score-thr', type=cli.share, help='least score of a box in the pictures')
    parser.add_argument('--interval', type=cli.positive, default=1, help='picture of every n-th sample')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show waits')
    parser.add_argument(
        '--tta', action='store_true', help='average over the views of the config (tta_pipeline)'
    )
    return parser.parse_args()


def what_to_write(args: argparse.Namespace) -> str | None:
    """'metrics', 'pred' or None, from --out-item or the ending of --out."""
    if args.out is None:
        if args.out_item is not None:
            raise UserError('--out-item says what to write, --out says where: give both')
        return None
    item = args.out_item or _ITEMS.get(Path(args.out).suffix)
    if item is None:
        raise UserError(f'--out {args.out}: end it in .json (metrics) or .pkl (predictions)')
    if item == 'pred' and _ITEMS.get(Path(args.out).suffix) != 'pred':
        raise UserError(f'--out {args.out}: predictions are pickled, end it in .pkl')
    try:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out {args.out}: its folder cannot be made ({error.strerror})') from error
    return item


def show_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Turn on the visualization hook, whichever library it comes from."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserError(f'--show and --show-dir: {args.config} has no default_hooks.visualization')
    with HOOKS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        kind = registry.get(hook.type) if isinstance(hook.type, str) else hook.type
        known = inspect.signature(kind.__init__).parameters
    switches = dict(enable=True, draw=True, interval=args.interval)
    if args.show_score_thr is not None and 'score_thr' not in known:
        raise UserError(f'--show-score-thr is of boxes, which {args.config} does not draw: leave it out')
    if args.show_score_thr is not None:
        switches['score_thr'] = args.show_score_thr
    hook.update({name: value for name, value in switches.items() if name in known})
    if args.show:
        hook.update(show=True, wait_time=args.wait_time)


def name_by_path(visualizer: Visualizer, dataset: Any, folder: Path) -> None:
    """Write the picture of an image under the image's path below its data folder.

    Each library has a hook of its own, which names a picture by the last part of the path alone.

    Args:
        visualizer: What the hooks of all libraries call.
        dataset: Config of the data set. Its folders' common one is left out of the names.
        folder: Where the pictures go.
    """
    root = data_root(dataset)
    draw_name = 'visualize_cls' if hasattr(visualizer, 'visualize_cls') else 'add_datasample'
    draw = getattr(visualizer, draw_name)

    def draw_named(*args: Any, data_sample: Any, **kwargs: Any) -> Any:
        path = data_sample.get('img_path')
        name = Path(kwargs.get('name') or args[0]) if path is None else Path(os.path.abspath(path))
        name = name.relative_to(root if name.is_relative_to(root) else name.anchor)
        ending = '' if name.suffix.lower() in ('.png', '.jpg', '.jpeg') else '.png'
        kwargs['out_file'] = str(folder / f'{name}{ending}')
        return draw(*args, data_sample=data_sample, **kwargs)

    setattr(visualizer, draw_name, draw_named)


def use_tta(cfg: Config, path: str) -> None:
    """Wrap the model and replace the pipeline as the config's tta_model and tta_pipeline say.

    The checkpoint's weights are the averaged ones already. EMAHook would swap in its own, which it cannot
    find inside the wrapper.
    """
    absent = [name for name in ('tta_model', 'tta_pipeline') if cfg.get(name) is None]
    if absent and 'mask_head' in (cfg.model.get('roi_head') or {}):
        raise UserError(
            f'--tta: {path} predicts masks, which mmdet cannot average over views: leave --tta out'
        )
    if absent:
        raise UserError(f'--tta: {path} has no {" and no ".join(absent)}, add them to the config')
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [hook for hook in hooks if class_name(hook['type']) != 'EMAHook']


def merge_args(cfg: Config, args: argparse.Namespace) -> None:
    """Write the command line into the config."""
    cli.apply_runner_arguments(cfg, args)
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.amp:
        checks.check_amp(cfg)
        cfg.test_cfg.fp16 = True
    if args.interval > 1 and cfg.get('default_scope') in ('mmdet', 'mmseg'):
        raise UserError(
            f'--interval {args.interval}: {cfg.default_scope} draws every image of a test, '
            'leave --interval out'
        )
    if args.show or args.show_dir:
        show_predictions(cfg, args)
    elif args.show_score_thr is not None:
        raise UserError('--show-score-thr is of pictures: add --show-dir FOLDER, or leave it out')
    if args.tta and (args.show or args.show_dir):
        raise UserError('--tta averages several views of an image: leave out --show and --show-dir')
    if args.tta:
        use_tta(cfg, args.config)


def dumper(scope: str | None, path: str) -> DumpResults:
    """The metric that writes predictions; mmdet's own one packs masks."""
    kind = 'mmdet.DumpDetResults' if scope == 'mmdet' else 'DumpResults'
    metric = METRICS.build(dict(type=kind, out_file_path=path))
    metric.compute_metrics = partial(write_predictions, path)
    return metric


def write_predictions(path: str, results: list) -> dict:
    """What DumpResults does with the results at the end, without leaving a part of a file."""
    with write_named(path) as draft:
        mmengine.dump(results, draft)
    return {}


def plain(value: Any) -> Any:
    """Tensors and numpy values as Python ones, for JSON."""
    return value.tolist() if hasattr(value, 'tolist') else value


def main() -> None:
    args = parse_args()
    item = what_to_write(args)
    cfg = cli.load_config(args.config, args.cfg_options)
    if cfg.get('test_dataloader') is None:
        raise UserError(f'{args.config} has no test_dataloader: give a config that tests')
    checks.check_checkpoint(args.checkpoint)
    merge_args(cfg, args)
    install_safe_loader(trust=args.trust_checkpoint)
    checks.check_data(cfg, ['model', 'test_dataloader', 'test_evaluator'])
    distributed.prepare(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if args.show_dir:
        name_by_path(runner.visualizer, cfg.test_dataloader.dataset, Path(args.show_dir).resolve())
    explain_loading(runner)
    runner.register_hook(CheckpointKeysHook())
    runner.register_hook(DataReportHook())
    runner.register_hook(cli.StopHook())
    if item == 'pred':
        runner.test_evaluator.metrics.append(dumper(cfg.get('default_scope'), args.out))
    with progress_bar(runner, distributed.rank()):
        metrics = runner.test()
    if item == 'metrics' and distributed.rank() == 0:
        with write_named(args.out) as draft:
            mmengine.dump({name: plain(value) for name, value in metrics.items()}, draft)


if __name__ == '__main__':
    cli.run(main)
