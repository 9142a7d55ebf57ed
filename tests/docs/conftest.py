"""A checkout with small data and untrained checkpoints in the places where the demos leave theirs."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from grootv.checkpoint import build_model
from tests.docs.blocks import ROOT
from tests.tools.tiny_run import run_tool, write_scenes

TRAINED = (
    'demo/grootv-pico_digits',
    'demo/mask-rcnn_grootv-pico_fpn_digit-scenes',
    'demo/grootv-pico_upernet_digit-scenes',
    'classification/grootv-tiny_8xb128_in1k',
)


def write_last_checkpoint(folder: Path, config: Config) -> None:
    """Random weights of a config's model, with the names of its classes, as its training would name them."""
    loop = config.train_cfg
    last = f'epoch_{loop.max_epochs}' if 'max_epochs' in loop else f'iter_{loop.max_iters}'
    metainfo = config.val_dataloader.dataset.get('metainfo')
    meta = dict(dataset_meta=dict(metainfo)) if metainfo else {}
    folder.mkdir(parents=True)
    torch.save(dict(state_dict=build_model(config).state_dict(), meta=meta), folder / f'{last}.pth')


@pytest.fixture(scope='session')
def checkout(tmp_path_factory) -> Path:
    """Its sources are links to the real ones; what is written stays in it."""
    root = tmp_path_factory.mktemp('checkout')
    for name in ('tools', 'demo', 'experiments'):
        (root / name).symlink_to(ROOT / name)
    (root / 'configs').mkdir()
    for folder in (ROOT / 'configs').iterdir():
        (root / 'configs' / folder.name).symlink_to(folder)
    for name in TRAINED:
        config = Config.fromfile(ROOT / f'configs/{name}.py')
        write_last_checkpoint(root / 'work_dirs' / Path(name).name, config)
    assert run_tool('dataset_converters/digits.py', root / 'data/digits') == 0
    write_scenes(root / 'data/digit_scenes')
    return root
