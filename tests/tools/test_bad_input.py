"""A wrong input ends in one sentence and a status that is not 0, and loses nothing."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grootv.checkpoint import load_checkpoint_file
from tests.tools.tiny_run import ROOT, run_tool, write_config, write_images


@pytest.fixture(scope='module')
def config(tiny_run) -> Path:
    return tiny_run('classification').config


@pytest.fixture(scope='module')
def trained(tiny_run) -> Path:
    """A checkpoint of the config's model."""
    return tiny_run('classification').checkpoint


def test_missing_config_prints_one_line_and_writes_nothing(tmp_path):
    command = [sys.executable, str(ROOT / 'tools/train.py'), 'nowhere.py']
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode == 1
    assert result.stdout == ''
    (line,) = result.stderr.splitlines()
    assert line.startswith('train.py: config nowhere.py does not exist: give a file such as configs/')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'options, sentence',
    [
        (('train_dataloader.dataset.data_root=gone',), 'data folder gone does not exist: put the'),
        (('model.type=Grotv',), 'the config asks for Grotv, which no model registry of mmpretrain'),
        (('model.backbone.type=grootv.Groot',), 'the config asks for grootv.Groot, which no model'),
        (('model.backbone.dept=3',), "the config gives GrootV an option 'dept' that it does not"),
        (('model.backbone.metric=hamming',), 'the config is refused: GrootV: metric must be one of cosine'),
        (('train_dataloader.batchsize=3',), "the config gives DataLoader an option 'batchsize'"),
        (('load_from=gone.pth',), 'checkpoint gone.pth does not exist: check the path'),
        (('train_dataloader=None',), 'has no train_dataloader'),
        (('train_dataloader.dataset.ann_file=a.txt',), 'images/a.txt does not exist: put the data there'),
        (('val_evaluator.ann_file=a.json',), '--cfg-options val_evaluator.ann_file=FILE'),
        (
            ('optim_wrapper.paramwise_cfg.layer_decay_rate=0.9',),
            'has no effect by itself: add --cfg-options optim_wrapper.constructor=grootv.LayerDecay',
        ),
        (('train_cfg.max_epochs=1',), 'param_scheduler.1 begins at epoch 1 and the run has 1'),
    ],
)
def test_wrong_setting_is_named(config, tmp_path, failure, options, sentence):
    assert sentence in failure('train.py', config, '--work-dir', tmp_path, options=options)


@pytest.mark.parametrize(
    'args, options, sentence',
    [
        ((), ('lr',), 'takes KEY=VALUE with a dotted KEY such as'),
        (('--auto-scale-lr',), ('auto_scale_lr=None',), 'set auto_scale_lr.base_batch_size'),
        (
            ('--amp',),
            ('optim_wrapper.type=ApexOptimWrapper',),
            'the config has a ApexOptimWrapper: leave --amp out',
        ),
        (('--launcher', 'slurm'), (), '--launcher slurm needs the environment variables'),
    ],
)
def test_wrong_argument_is_named(config, tmp_path, failure, args, options, sentence):
    assert sentence in failure('train.py', config, '--work-dir', tmp_path, *args, options=options)


def test_folder_without_images_is_named(config, tmp_path, failure):
    (tmp_path / 'data/train/0').mkdir(parents=True)
    options = (f'train_dataloader.dataset.data_root={tmp_path}/data',)
    sentence = failure('train.py', config, '--work-dir', tmp_path, options=options)
    assert "The number of subfolders (1) doesn't match the number of specified classes (10)" in sentence

    for label in '123456789':
        (tmp_path / 'data/train' / label).mkdir()
    sentence = failure('train.py', config, '--work-dir', tmp_path, options=options)
    assert sentence.startswith('train.py: no images in the data folder: Found 0 files')

    sentence = failure('train.py', config, '--work-dir', tmp_path, options=(f'{options[0]}/train',))
    assert 'data/train/train' in sentence and 'does not exist' in sentence


def test_corrupt_image_is_named_and_the_checkpoint_before_it_stays(tmp_path, failure):
    data = write_images(tmp_path / 'data')
    config = write_config(tmp_path, data)
    # The first epoch succeeds; its validation then reads the file.
    bad = data / 'val/3/30.png'
    bad.write_bytes(bad.read_bytes()[:200])
    options = ('val_dataloader.num_workers=1',)

    sentence = failure('train.py', config, '--work-dir', tmp_path / 'run', options=options)
    assert sentence.startswith(f'train.py: image {bad} cannot be read (')
    assert sentence.endswith('replace the file, or remove it from the data')
    assert load_checkpoint_file(tmp_path / 'run/epoch_1.pth')['meta']['epoch'] == 1


@pytest.mark.parametrize('name', ['test.py', 'train.py'])
def test_code_in_a_checkpoint_runs_only_if_trusted(config, tmp_path, failure, name):
    torch.save({'state_dict': {}, 'bomb': Bomb(tmp_path / 'exploded')}, tmp_path / 'bomb.pth')
    args = [tmp_path / 'bomb.pth'] if name == 'test.py' else ['--resume', tmp_path / 'bomb.pth']
    args = [config, *args, '--work-dir', tmp_path / 'run']

    assert 'add --trust-checkpoint only if you trust its author' in failure(name, *args)
    assert not (tmp_path / 'exploded').exists()
    assert 'does not fit the model' in failure(name, *args, '--trust-checkpoint')
    assert (tmp_path / 'exploded').exists()


class Bomb:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def starting_from(path: object) -> tuple[str, ...]:
    """Options of a run whose backbone starts from a file."""
    values = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    return tuple(f'model.backbone.init_cfg.{name}={value}' for name, value in values.items())


def test_missing_pretrained_weights_are_named_before_anything_is_written(config, tmp_path, failure):
    name = 'grootv-tiny_8xb128_in1k'
    options = starting_from(f'work_dirs/{name}/none.pth')
    sentence = failure('train.py', config, '--work-dir', tmp_path / 'run', options=options)
    assert f'pretrained weights work_dirs/{name}/none.pth do not exist' in sentence
    assert f'make them with tools/train.py configs/classification/{name}.py, ' in sentence
    assert 'model.backbone.init_cfg=None' in sentence
    assert not (tmp_path / 'run').exists()


def test_pretrained_weights_that_do_not_fit_are_refused(config, trained, tmp_path, failure):
    args = ('--work-dir', tmp_path)
    width = ('model.backbone.arch.embed_dims=16', 'model.head.in_channels=128')
    sentence = failure('train.py', config, *args, options=(*starting_from(trained), *width))
    assert f'pretrained weights {trained} do not fit GrootV (other shape: stem.conv1.weight (4, 3' in sentence

    torch.save({'bomb': Bomb(tmp_path / 'exploded')}, tmp_path / 'bomb.pth')
    sentence = failure('train.py', config, *args, options=starting_from(tmp_path / 'bomb.pth'))
    assert '--trust-checkpoint' in sentence and not (tmp_path / 'exploded').exists()


def test_both_numbers_of_classes_are_reported(config, trained, tmp_path, failure):
    checkpoint = load_checkpoint_file(trained)
    for part in ('state_dict', 'ema_state_dict'):
        for name in [name for name in checkpoint[part] if 'head.fc' in name]:
            checkpoint[part][name] = checkpoint[part][name][:3]
    checkpoint['meta']['dataset_meta']['classes'] = ('ox', 'cow', 'elk')
    other = tmp_path / 'other.pth'
    torch.save(checkpoint, other)
    shapes = 'other shape: head.fc.weight (3, 96) instead of (10, 96), head.fc.bias (3,) instead of (10,)'
    counts = 'it was trained with 3 classes, ox, cow, elk, and the config has 10, 0, 1, 2 and 7 more'

    sentence = failure('test.py', config, other, '--work-dir', tmp_path / 'test')
    assert sentence.startswith('test.py: checkpoint does not fit the model ImageClassifier')
    assert shapes in sentence and counts in sentence
    sentence = failure('train.py', config, '--work-dir', tmp_path / 'resumed', '--resume', other)
    assert shapes in sentence and counts in sentence

    # Fine-tuning continues with a warning of what is not loaded.
    args = ('--work-dir', tmp_path / 'tuned', '--no-validate')
    assert run_tool('train.py', config, *args, options=(f'load_from={other}',)) == 0
    (log,) = (tmp_path / 'tuned').glob('*/*.log')
    (line,) = [line for line in log.read_text().splitlines() if 'checkpoint fits the model' in line]
    assert 'WARNING' in line and shapes in line and counts in line


# Detection and segmentation --------------------------------------------------------------------


def test_heads_for_another_number_of_classes_than_the_data_are_refused(tiny_run, tmp_path, failure):
    run = tiny_run('detection')
    options = ('model.roi_head.bbox_head.num_classes=5', 'model.roi_head.mask_head.num_classes=5')
    sentence = failure('train.py', run.config, '--work-dir', tmp_path, options=options)
    assert '`num_classes` (5) in Shared2FCBBoxHead' in sentence and 'length of `classes` 10' in sentence


def test_amp_of_detection_needs_a_gpu(tiny_run, tmp_path, failure):
    run = tiny_run('detection')
    for command in (('train.py', run.config), ('test.py', run.config, run.checkpoint)):
        sentence = failure(*command, '--work-dir', tmp_path / 'run', '--amp')
        assert 'without a GPU mmcv cannot suppress overlapping boxes in bfloat16, leave --amp out' in sentence
    assert not (tmp_path / 'run').exists()


def test_amp_of_segmentation_trains_and_tests_without_a_gpu(tiny_run, tmp_path):
    run = tiny_run('segmentation')
    options = ('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2')
    assert run_tool('train.py', run.config, '--work-dir', tmp_path, '--amp', options=options) == 0
    assert run_tool('test.py', run.config, tmp_path / 'iter_2.pth', '--work-dir', tmp_path, '--amp') == 0


@pytest.mark.parametrize('task, library', [('detection', 'mmdet'), ('segmentation', 'mmseg')])
def test_interval_is_refused_where_every_image_is_drawn(tiny_run, tmp_path, failure, task, library):
    run = tiny_run(task)
    args = (run.config, run.checkpoint, '--work-dir', tmp_path, '--show-dir', tmp_path, '--interval', 3)
    assert f'--interval 3: {library} draws every image of a test, leave' in failure('test.py', *args)


def test_tta_of_masks_is_refused(tiny_run, tmp_path, failure):
    run = tiny_run('detection')
    sentence = f'{run.config} predicts masks, which mmdet cannot average over views: leave --tta out'
    args = ('--work-dir', tmp_path, '--tta')
    assert failure('test.py', run.config, run.checkpoint, *args) == f'test.py: --tta: {sentence}'


def test_validation_map_with_an_unknown_label_is_refused(tiny_run, tmp_path, failure):
    run = tiny_run('segmentation')
    scenes = shutil.copytree(run.config.parent / 'scenes', tmp_path / 'scenes')
    path = scenes / 'annotations/validation/00001.png'
    labels = np.array(Image.open(path))
    labels[:4] = 200
    Image.fromarray(labels).save(path)
    options = (f'test_dataloader.dataset.data_root={scenes}',)
    sentence = failure('test.py', run.config, run.checkpoint, '--work-dir', tmp_path / 'run', options=options)
    assert f'label map {path} holds the label 200, and 11 classes are numbered 1 to 11' in sentence


def test_batch_of_one_is_too_small_for_the_pooled_norms(tiny_run, tmp_path, failure):
    run = tiny_run('segmentation')
    options = ('train_dataloader.batch_size=1',)
    sentence = failure('train.py', run.config, '--work-dir', tmp_path, options=options)
    assert 'raise train_dataloader.batch_size to 2 or more' in sentence
