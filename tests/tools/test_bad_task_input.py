"""What a user of detection and segmentation gets wrong; test_bad_input.py has what all tasks share."""

import shutil

import numpy as np
import pytest
from PIL import Image

from tests.tools.tiny_run import run_tool


@pytest.fixture
def failure(capsys):
    """Run a tool that must fail; its one sentence."""

    def run(name: str, *args: object, options: tuple[str, ...] = ()) -> str:
        assert run_tool(name, *args, options=options) == 1
        error = capsys.readouterr().err
        assert 'Traceback' not in error
        return error.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize('classes', [5, 80])
def test_heads_for_another_number_of_classes_than_the_data(tiny_run, tmp_path, failure, classes):
    run = tiny_run('detection')
    options = (
        f'model.roi_head.bbox_head.num_classes={classes}',
        f'model.roi_head.mask_head.num_classes={classes}',
    )
    told = failure('train.py', run.config, '--work-dir', tmp_path, options=options)
    assert f'`num_classes` ({classes}) in Shared2FCBBoxHead' in told and 'length of `classes` 10' in told


def test_amp_of_detection_needs_a_gpu(tiny_run, tmp_path, failure):
    run = tiny_run('detection')
    for command in (('train.py', run.config), ('test.py', run.config, run.checkpoint)):
        told = failure(*command, '--work-dir', tmp_path / 'run', '--amp')
        assert 'without a GPU mmcv cannot suppress overlapping boxes in bfloat16, leave --amp out' in told
    assert not (tmp_path / 'run').exists()


def test_amp_of_segmentation_trains_and_tests_without_a_gpu(tiny_run, tmp_path):
    run = tiny_run('segmentation')
    options = ('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2')
    assert run_tool('train.py', run.config, '--work-dir', tmp_path, '--amp', options=options) == 0
    assert run_tool('test.py', run.config, tmp_path / 'iter_2.pth', '--work-dir', tmp_path, '--amp') == 0


@pytest.mark.parametrize('task, library', [('detection', 'mmdet'), ('segmentation', 'mmseg')])
def test_every_image_is_drawn(tiny_run, tmp_path, failure, task, library):
    run = tiny_run(task)
    args = (run.config, run.checkpoint, '--work-dir', tmp_path, '--show-dir', tmp_path, '--interval', 3)
    assert f'--interval 3: {library} draws every image of a test, leave' in failure('test.py', *args)


def test_a_validation_map_with_an_unknown_label_is_not_scored(tiny_run, tmp_path, failure):
    run = tiny_run('segmentation')
    scenes = shutil.copytree(run.config.parent / 'scenes', tmp_path / 'scenes')
    path = scenes / 'annotations/validation/00001.png'
    labels = np.array(Image.open(path))
    labels[:4] = 200
    Image.fromarray(labels).save(path)
    options = (f'test_dataloader.dataset.data_root={scenes}',)
    told = failure('test.py', run.config, run.checkpoint, '--work-dir', tmp_path / 'run', options=options)
    assert f'label map {path} holds the label 200, and 11 classes are numbered 1 to 11' in told


def test_a_batch_of_one_is_too_small_for_the_pooled_norms(tiny_run, tmp_path, failure):
    run = tiny_run('segmentation')
    options = ('train_dataloader.batch_size=1',)
    told = failure('train.py', run.config, '--work-dir', tmp_path, options=options)
    assert 'raise train_dataloader.batch_size to 2 or more' in told
