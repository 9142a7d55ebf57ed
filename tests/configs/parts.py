"""The configs of the vision tasks by name, each read and built once."""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
TASKS = ('classification', 'detection', 'segmentation')
CONFIGS = {
    path.stem: path for task in (*TASKS, 'demo') for path in sorted((ROOT / f'configs/{task}').glob('*.py'))
}
RECIPES = [name for name, path in CONFIGS.items() if path.parent.name in TASKS]
IMAGENET, DETECTION, SEGMENTATION = (
    [name for name in RECIPES if CONFIGS[name].parent.name == task] for task in TASKS
)
TINY, DIGITS = 'grootv-tiny_8xb128_in1k', 'grootv-pico_digits'
MASK_RCNN, MASK_RCNN_3X = 'mask-rcnn_grootv-tiny_fpn_1x_coco', 'mask-rcnn_grootv-tiny_fpn_ms-3x_coco'
CASCADE, RETINANET = 'cascade-mask-rcnn_grootv-tiny_fpn_1x_coco', 'retinanet_grootv-tiny_fpn_1x_coco'
DINO = 'dino-4scale_grootv-tiny_8xb2-12e_coco'
BOXES_ONLY = [RETINANET, DINO]
DETECTORS = [MASK_RCNN_3X, CASCADE, *BOXES_ONLY]
UPERNET = 'grootv-tiny_upernet_8xb2-160k_ade20k-512x512'
MASK2FORMER = 'grootv-tiny_mask2former_8xb2-160k_ade20k-512x512'
FPN = 'grootv-tiny_fpn_8xb4-40k_ade20k-512x512'
SEGMENTORS = [UPERNET, MASK2FORMER, FPN]


def task_of(name: str) -> str:
    return CONFIGS[name].parent.name


@cache
def load(name: str) -> Config:
    """A config, not to be changed."""
    return Config.fromfile(CONFIGS[name])


@cache
def model_of(name: str) -> nn.Module:
    """A config's model without memory for its weights."""
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    model = copy.deepcopy(cfg.model)  # mmdet's transformers write into theirs
    model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    with torch.device('meta'):
        return MODELS.build(model)


def start(cfg: dict) -> nn.Module:
    """A model with its initial weights."""
    model = MODELS.build(cfg)
    model.init_weights()
    return model


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def pipelines(cfg: Config) -> Iterator[list]:
    """The pipelines of training, validation, test and, where there is one, test-time augmentation."""
    for side in ('train', 'val', 'test'):
        yield cfg[f'{side}_dataloader'].dataset.pipeline
    if 'tta_pipeline' in cfg:
        yield cfg.tta_pipeline


def parameter_groups(cfg: Config, model: nn.Module) -> dict[str, dict]:
    """The optimizer's settings (lr, weight_decay ...) of every parameter by its name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    return {names[p]: group for group in groups for p in group['params']}


def without_decay(model: nn.Module) -> set[str]:
    """Biases, norms and vectors, but not the two parameters that the published ImageNet run decays."""
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    spared = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if isinstance(module, norms) or name.endswith('.bias') or parameter.ndim == 1:
                spared.add(name)
    return {name for name in spared if not name.endswith(('.A_log', '.dt_proj.bias'))}


def on(scenes: Path, config: Config) -> Config:
    """A copy of the config with scenes of digits for data, read by this process."""
    config = copy.deepcopy(config)
    for side, folder in (('train', 'training'), ('val', 'validation'), ('test', 'validation')):
        loader = config[f'{side}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(scenes)
        if config.default_scope == 'mmdet':
            images = dict(img=f'images/{folder}')
            loader.dataset.update(ann_file=f'annotations/{folder}.json', data_prefix=images)
            if side != 'train':
                config[f'{side}_evaluator'].ann_file = f'{scenes}/annotations/{folder}.json'
    init_default_scope(config.default_scope)
    return config
