"""A wrong input of train.py and test.py ends in one sentence and a status of 1, and loses nothing."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grootv.checkpoint import load_checkpoint_file
from tests.tools.tiny_run import ROOT, Call, run_tool, starting_from, write_config, write_images


@pytest.fixture(scope='module')
def config(tiny_run) -> Path:
    return tiny_run('classification').config


def test_missing_config_prints_one_line_and_writes_nothing(tmp_path):
    command = [sys.executable, str(ROOT / 'tools/train.py'), 'nowhere.py']
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (result.returncode, result.stdout, list(tmp_path.iterdir())) == (1, '', [])
    (line,) = result.stderr.splitlines()
    assert line.startswith('train.py: config nowhere.py does not exist: give a file such as configs/')


TOOLS = [path for path in sorted(ROOT.glob('tools/**/*.py')) if 'run(main)' in path.read_text()]


@pytest.mark.parametrize('tool', TOOLS, ids=lambda tool: tool.stem)
def test_ctrl_c_while_a_tool_imports_ends_in_one_line(tmp_path, tool):
    for name in ('torch', 'mmengine', 'numpy', 'rich', 'scipy'):  # imports that last
        (tmp_path / f'{name}.py').write_text('import time\nprint(flush=True)\ntime.sleep(60)\n')
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]),
    }
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, str(tool)], env=environment, **pipes) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == f'{tool.name}: stopped by SIGINT\n'


NAME = 'grootv-tiny_8xb128_in1k'
MAKE = f'make them with tools/train.py configs/classification/{NAME}.py, '


@pytest.mark.parametrize(
    'options, sentence',
    [
        (('model.type=Grotv',), 'the config asks for Grotv, which no model registry of mmpretrain'),
        (('model.backbone.type=grootv.Groot',), 'the config asks for grootv.Groot, which no model'),
        (('model.backbone.dept=3',), "the config gives GrootV an option 'dept' that it does not"),
        (('model.backbone.metric=hamming',), 'the config is refused: GrootV: metric must be one of cosine'),
        (('train_dataloader.batchsize=3',), "the config gives DataLoader an option 'batchsize'"),
        (('load_from=gone.pth',), 'checkpoint gone.pth does not exist: check the path'),
        (('train_dataloader=None',), 'has no train_dataloader'),
        (('train_dataloader.dataset.data_root=gone',), 'data folder gone does not exist: put the'),
        (('val_dataloader.dataset.ann_file=a.txt',), 'images/a.txt does not exist: put the data there'),
        (('val_evaluator.ann_file=a.json',), '--cfg-options val_evaluator.ann_file=FILE'),
        (
            ('optim_wrapper.paramwise_cfg.layer_decay_rate=0.9',),
            'has no effect by itself: add --cfg-options optim_wrapper.constructor=grootv.LayerDecay',
        ),
        (('train_cfg.max_epochs=1',), 'param_scheduler.1 begins at epoch 1 and the run has 1'),
        (('lr',), 'takes KEY=VALUE with a dotted KEY such as'),
        (('--auto-scale-lr', 'auto_scale_lr=None'), 'set auto_scale_lr.base_batch_size'),
        (('--amp', 'optim_wrapper.type=ApexOptimWrapper'), 'has a ApexOptimWrapper: leave --amp out'),
        (('--work-dir=',), '--work-dir is empty: give a folder'),
        (('--launcher=slurm',), '--launcher slurm needs the environment variables'),
        (starting_from(f'work_dirs/{NAME}/none.pth'), f'says where there are some): {MAKE}'),
    ],
)
def test_wrong_argument_or_setting_is_named(config, tmp_path, failure, options, sentence):
    args = [option for option in options if option.startswith('--')]
    options = tuple(option for option in options if option not in args)
    assert sentence in failure('train.py', config, '--work-dir', tmp_path / 'run', *args, options=options)
    assert sentence.startswith('the config') or not (tmp_path / 'run').exists()  # before a run is built


def test_folder_without_images_is_named(config, tmp_path, failure):
    (tmp_path / 'data/train/0').mkdir(parents=True)
    options = (f'train_dataloader.dataset.data_root={tmp_path}/data',)
    sentence = failure('train.py', config, '--work-dir', tmp_path, options=options)
    assert 'metainfo.classes differ: 1 folders, 10 names (look at ' in sentence

    for label in '123456789':
        (tmp_path / 'data/train' / label).mkdir()
    sentence = failure('train.py', config, '--work-dir', tmp_path, options=options)
    assert sentence.startswith('train.py: no images in the data folder: Found 0 files')


def test_corrupt_image_is_named_and_the_checkpoint_before_it_stays(tmp_path, failure):
    data = write_images(tmp_path / 'data')
    config = write_config(tmp_path, data)
    # The first epoch succeeds; its validation then reads the file.
    bad = data / 'val/3/30.png'
    bad.write_bytes(bad.read_bytes()[:200])
    options = ('val_dataloader.num_workers=1',)

    sentence = failure('train.py', config, '--work-dir', tmp_path / 'run', options=options)
    assert sentence.startswith(f'train.py: image {bad} cannot be read (')
    assert load_checkpoint_file(tmp_path / 'run/epoch_1.pth')['meta']['epoch'] == 1


@pytest.mark.parametrize('name', ['test.py', 'train.py'])
def test_code_in_a_checkpoint_runs_only_if_trusted(config, tmp_path, failure, name):
    torch.save({'state_dict': {}, 'bomb': Call(Path.touch, tmp_path / 'exploded')}, tmp_path / 'bomb.pth')
    args = [tmp_path / 'bomb.pth'] if name == 'test.py' else ['--resume', tmp_path / 'bomb.pth']
    args = [config, *args, '--work-dir', tmp_path / 'run']
    assert 'add --trust-checkpoint only if you trust its author' in failure(name, *args)
    if name == 'train.py':
        sentence = failure(name, *args[:1], *args[3:], options=starting_from(tmp_path / 'bomb.pth'))
        assert '--trust-checkpoint' in sentence
    assert not (tmp_path / 'exploded').exists()
    assert 'does not fit the model' in failure(name, *args, '--trust-checkpoint')
    assert (tmp_path / 'exploded').exists()


def test_work_folder_of_another_run_is_refused(config, tmp_path, failure):
    code = 'import sys\nfrom grootv.files import lock_folder\nwith lock_folder(sys.argv[1]):\n    print()\n'
    code += '    sys.stdout.flush()\n    sys.stdin.read()'
    command = [sys.executable, '-c', code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        sentence = failure('train.py', config, '--work-dir', tmp_path)
    assert f'work folder {tmp_path} is in use by process {other.pid} on' in sentence
    assert [path.name for path in tmp_path.iterdir()] == ['train.lock']


def test_best_checkpoint_is_not_resumed(tiny_run, tmp_path, failure):
    run = tiny_run('classification')
    (best,) = run.work_dir.glob('best_*.pth')
    sentence = failure('train.py', run.config, '--work-dir', tmp_path, '--resume', best)
    assert f'checkpoint {best} has no optimizer, so that --resume would start the schedule again' in sentence
    assert sentence.endswith(f'start from its weights with --cfg-options load_from={best}')


def test_pretrained_weights_that_do_not_fit_are_refused(tiny_run, tmp_path, failure):
    run = tiny_run('classification')
    width = ('model.backbone.arch.embed_dims=16', 'model.head.in_channels=128')
    options = (*starting_from(run.checkpoint), *width)
    sentence = failure('train.py', run.config, '--work-dir', tmp_path, options=options)
    assert f'weights {run.checkpoint} do not fit GrootV (other shape: stem.conv1.weight (4, 3' in sentence


def test_both_numbers_of_classes_are_reported(tiny_run, tmp_path, failure):
    run, other = tiny_run('classification'), tmp_path / 'other.pth'
    checkpoint = load_checkpoint_file(run.checkpoint)
    for part in ('state_dict', 'ema_state_dict'):
        for name in [name for name in checkpoint[part] if 'head.fc' in name]:
            checkpoint[part][name] = checkpoint[part][name][:3]
    checkpoint['meta']['dataset_meta']['classes'] = ('ox', 'cow', 'elk')
    torch.save(checkpoint, other)
    shapes = 'other shape: head.fc.weight (3, 96) instead of (10, 96), head.fc.bias (3,) instead of (10,)'
    counts = 'it was trained with 3 classes, ox, cow, elk, and the config has 10, 0, 1, 2 and 7 more'

    args = ('--work-dir', tmp_path / 'run')
    for sentence in (
        failure('test.py', run.config, other, *args),
        failure('train.py', run.config, *args, '--resume', other),
    ):
        assert 'checkpoint does not fit the model ImageClassifier' in sentence
        assert shapes in sentence and counts in sentence

    # Fine-tuning continues with a warning of what is not loaded.
    args = ('--work-dir', tmp_path / 'tuned', '--no-validate')
    assert run_tool('train.py', run.config, *args, options=(f'load_from={other}',)) == 0
    (log,) = (tmp_path / 'tuned').glob('*/*.log')
    (line,) = [line for line in log.read_text().splitlines() if 'checkpoint fits the model' in line]
    assert 'WARNING' in line and shapes in line and counts in line


# Detection and segmentation --------------------------------------------------------------------

AMP = 'without a GPU mmcv cannot suppress overlapping boxes in bfloat16, leave --amp out'
CLASSES = tuple(f'model.roi_head.{part}_head.num_classes=5' for part in ('bbox', 'mask'))
INTERVAL = ('--show-dir', '{folder}', '--interval', 3)


@pytest.mark.parametrize(
    'task, tool, args, options, sentence',
    [
        (
            'classification',
            'train.py',
            (),
            ('model.head.num_classes=7',),
            'num_classes of head (GrootVClsHead) is 7',
        ),
        (
            'segmentation',
            'train.py',
            (),
            ('model.decode_head.num_classes=7',),
            'num_classes of decode_head (',
        ),
        (
            'detection',
            'train.py',
            (),
            CLASSES,
            'num_classes of roi_head.bbox_head (Shared2FCBBoxHead) is 5, and the',
        ),
        ('detection', 'train.py', ('--amp',), (), AMP),
        ('detection', 'test.py', ('--amp',), (), AMP),
        ('detection', 'test.py', INTERVAL, (), '--interval 3: mmdet draws every image of a test, leave'),
        ('segmentation', 'test.py', INTERVAL, (), '--interval 3: mmseg draws every image of a test, leave'),
        ('detection', 'test.py', ('--tta',), (), 'predicts masks, which mmdet cannot average over views'),
        ('segmentation', 'train.py', (), ('train_dataloader.batch_size=1',), 'batch_size to 2 or more'),
    ],
)
def test_what_the_library_of_a_task_cannot_do_is_named(
    tiny_run, tmp_path, failure, task, tool, args, options, sentence
):
    run = tiny_run(task)
    args = [str(arg).format(folder=tmp_path) for arg in args]
    args += ['--work-dir', tmp_path] if tool == 'train.py' else [run.checkpoint, '--work-dir', tmp_path]
    assert sentence in failure(tool, run.config, *args, options=options)


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
