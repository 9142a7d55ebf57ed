"""Every config of the vision tasks builds and keeps what all of them promise."""

import pytest
from mmengine.config import Config

from .parts import CONFIGS, ROOT, build_model, pipelines

VISION = [path for path in CONFIGS if path.parent.name != 'language']


@pytest.fixture(scope='module', params=VISION, ids=lambda path: path.stem)
def config(request) -> Config:
    return Config.fromfile(request.param)


def test_the_model_builds(config):
    assert sum(parameter.numel() for parameter in build_model(config).parameters()) > 1e5


def test_checkpoints_are_written_safely_and_epochs_seeded(config):
    assert config.default_hooks.checkpoint.type == 'grootv.CheckpointHook'
    assert config.default_hooks.epoch_seed.type == 'grootv.EpochSeedHook'
    assert config.train_dataloader.persistent_workers is False


def test_an_image_that_cannot_be_read_is_named(config):
    for pipeline in pipelines(config):
        assert pipeline[0].type == 'grootv.LoadImageFromFile'


def test_a_pretrained_backbone_comes_from_a_config_of_its_size(config):
    pretrained = config.model.backbone.get('init_cfg')
    if pretrained is None:
        assert config.default_scope == 'mmpretrain'
        return
    folder, file = pretrained.checkpoint.removeprefix('work_dirs/').split('/')
    (source,) = (ROOT / 'configs').rglob(f'{folder}.py')
    source = Config.fromfile(source)
    assert file == f'epoch_{source.train_cfg.max_epochs}.pth'
    assert pretrained.type == 'Pretrained' and pretrained.prefix == 'backbone.'
    assert source.model.backbone.arch == config.model.backbone.arch


def test_the_learning_rate_is_for_the_batch_size_it_scales_by(config):
    batch, devices = config.train_dataloader.batch_size, 1 if 'demo' in config.filename else 8
    assert config.auto_scale_lr == dict(base_batch_size=devices * batch, enable=False)
