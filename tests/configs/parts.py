"""What the tests of the configs share: all config files, and a config's model, pipelines and rates."""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


def build_model(cfg: Config) -> nn.Module:
    """The config's model without memory for its weights."""
    init_default_scope(cfg.default_scope)
    model = copy.deepcopy(cfg.model)  # mmdet's transformers write into theirs
    model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    with torch.device('meta'):
        return MODELS.build(model)


def pipelines(cfg: Config) -> Iterator[list]:
    """The pipelines of training, validation, test and, where there is one, test-time augmentation."""
    for name in ('train', 'val', 'test'):
        dataset = cfg[f'{name}_dataloader'].dataset
        while 'pipeline' not in dataset:
            dataset = dataset.dataset
        yield dataset.pipeline
    if 'tta_pipeline' in cfg:
        yield cfg.tta_pipeline


def parameter_groups(cfg: Config, model: nn.Module) -> dict[str, dict]:
    """The optimizer's settings (lr, weight_decay ...) of every parameter by its name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    return {names[p]: group for group in groups for p in group['params']}
