"""What the tests of the configs share: the files, a config's parts, and small models on small data."""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

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


def without_decay(model: nn.Module) -> set[str]:
    """Biases, norms and vectors, but not the two parameters that the published ImageNet run decays."""
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    spared = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if isinstance(module, norms) or name.endswith('.bias') or parameter.ndim == 1:
                spared.add(name)
    return {name for name in spared if not name.endswith(('.A_log', '.dt_proj.bias'))}


def on(folder: Path, config: Config) -> Config:
    """A copy of the config with its data in the folder, read by this process."""
    config = copy.deepcopy(config)
    for side in ('train', 'val', 'test'):
        loader = config[f'{side}_dataloader']
        evaluator = config.get(f'{side}_evaluator', {})
        if 'ann_file' in evaluator:
            evaluator.ann_file = evaluator.ann_file.replace(loader.dataset.data_root, f'{folder}/')
        loader.dataset.data_root = str(folder)
        loader.update(num_workers=0, persistent_workers=False)
    init_default_scope(config.default_scope)
    return config


def shrink(config: Config, divisor: int) -> None:
    """Give the config a tiny backbone, and divide the sizes of its images."""

    def divide(node) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ('scale', 'crop_size'):
                    node[key] = tuple(pixels // divisor for pixels in value)
                elif key == 'scales':
                    node[key] = [tuple(pixels // divisor for pixels in scale) for scale in value]
                else:
                    divide(value)
        elif isinstance(node, list):
            for element in node:
                divide(element)

    for pipeline in pipelines(config):
        divide(pipeline)
    backbone = config.model.backbone
    backbone.arch, backbone.init_cfg = dict(embed_dims=8, depths=[1, 1, 1, 1]), None


def start(config: Config) -> nn.Module:
    """The config's model with its initial weights."""
    model = MODELS.build(config.model)
    model.init_weights()
    return model


def train_once(config: Config, model: nn.Module, data: dict) -> dict[str, Tensor]:
    """A training step on preprocessed data, which must reach every parameter; the parts of its loss."""
    loss, parts = model.parse_losses(model(**data, mode='loss'))
    assert all(torch.isfinite(part).all() for part in parts.values())
    loss.backward()
    # Data-parallel training demands a gradient for every parameter.
    assert {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None} == set()
    first = model.backbone.stem.conv1.weight
    assert first.grad.abs().max() > 0
    before = first.detach().clone()
    build_optim_wrapper(model, config.optim_wrapper).step()
    assert torch.isfinite(first).all() and not torch.equal(first, before)
    return parts
