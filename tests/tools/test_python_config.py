"""A Python-style config, whose types are classes and not texts, works in every tool."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.tools.tiny_run import run_tool

PLACES = {
    'mmpretrain.models': ('ImageClassifier', 'AverageClsScoreTTA'),
    'mmpretrain.engine': ('EMAHook', 'VisualizationHook'),
    'mmpretrain.datasets': ('ImageNet', 'PackInputs', 'ResizeEdge', 'CenterCrop'),
    'mmengine.optim': ('OptimWrapper', 'CosineAnnealingLR', 'LinearLR'),
    'mmengine.hooks': ('LoggerHook', 'ParamSchedulerHook'),
    'grootv.models.backbones': ('grootv.GrootV',),
    'grootv.models.heads': ('grootv.GrootVClsHead',),
    'grootv.engine': ('grootv.CheckpointHook', 'grootv.EpochSeedHook'),
}


@pytest.fixture(scope='module')
def config(tiny_run, tmp_path_factory) -> Path:
    text, lines = Config.fromfile(tiny_run('classification').config).pretty_text, []
    for module, names in PLACES.items():
        for name in names:
            short = name.removeprefix('grootv.')
            text, count = re.subn(f"type='{re.escape(name)}'", f'type={short}', text)
            lines += [f'from {module} import {short}'] if count else []
    path = tmp_path_factory.mktemp('python') / 'classes.py'
    path.write_text('\n'.join(lines) + '\n' + text)
    assert len(lines) > 8 and isinstance(Config.fromfile(path).model.type, type)
    return path


@pytest.mark.parametrize(
    'tool, args',
    [
        ('train.py', ('--amp', '--no-validate', '--work-dir', '{folder}/run')),
        ('test.py', ('{checkpoint}', '--tta', '--work-dir', '{folder}/run')),
        ('test.py', ('{checkpoint}', '--show-dir', '{folder}/shown', '--work-dir', '{folder}/run')),
        ('deployment/torch2export.py', ('--out', '{folder}/model.pt2', '--input-size', 64, 64)),
        ('analysis_tools/confusion_matrix.py', ('{checkpoint}', '--out', '{folder}/matrix.png')),
        ('analysis_tools/get_flops.py', ()),
        (
            'analysis_tools/visualize_tree.py',
            ('{image}', '--config', '{config}', '--out', '{folder}/tree.png'),
        ),
    ],
)
def test_tool_takes_classes_as_types(tiny_run, config, tmp_path, tool, args):
    run = tiny_run('classification')
    image = run.config.parent / 'images/val/0/00.png'
    names = dict(folder=tmp_path, checkpoint=run.checkpoint, image=image, config=config)
    args = [str(arg).format(**names) for arg in args]
    assert run_tool(tool, *([] if '--config' in args else [config]), *args) == 0
