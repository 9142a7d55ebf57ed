"""What a user gets wrong ends in one sentence, a status that is not 0, and nothing lost."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grootv.checkpoint import load_checkpoint_file
from tests.tools.tiny_run import ROOT, run_tool, write_config, write_images


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('bad_input')
    return write_config(folder, write_images(folder / 'data'))


@pytest.fixture
def failure(capsys):
    """Run a tool that must fail; its one sentence."""

    def run(name: str, *args: object, options: tuple[str, ...] = ()) -> str:
        assert run_tool(name, *args, options=options) == 1
        error = capsys.readouterr().err
        assert 'Traceback' not in error
        return error.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize('name', ['train.py', 'test.py'])
def test_without_a_config_one_line_is_all_there_is(name, tmp_path):
    command = [sys.executable, str(ROOT / 'tools' / name), 'nowhere.py']
    command += ['model.pth'] if name == 'test.py' else []
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode == 1
    assert result.stdout == ''
    (line,) = result.stderr.splitlines()
    assert line.startswith(f'{name}: config nowhere.py does not exist: give a file such as configs/')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'options, told',
    [
        (('train_dataloader.dataset.data_root=gone',), 'data folder gone does not exist: put the'),
        (('model.type=Grotv',), 'the config asks for Grotv, which no model registry of mmpretrain'),
        (('model.backbone.type=grootv.Groot',), 'the config asks for grootv.Groot, which no model'),
        (('model.backbone.dept=3',), "the config gives GrootV an option 'dept' that it does not"),
        (('model.backbone.metric=hamming',), 'the config is refused: GrootV: metric must be one of cosine'),
        (('train_dataloader.batchsize=3',), "the config gives DataLoader an option 'batchsize'"),
        (('optim_wraper.optimizer.lr=1',), 'did you mean optim_wrapper?'),
        (('load_from=gone.pth',), 'checkpoint gone.pth does not exist: check the path'),
        (('train_dataloader=None',), 'has no train_dataloader'),
        (('train_dataloader.dataset.ann_file=a.txt',), 'data/a.txt does not exist: put the data there'),
        (('val_evaluator.ann_file=a.json',), '--cfg-options val_evaluator.ann_file=FILE'),
        (
            ('optim_wrapper.paramwise_cfg.layer_decay_rate=0.9',),
            'has no effect by itself: add --cfg-options optim_wrapper.constructor=grootv.LayerDecay',
        ),
    ],
)
def test_a_wrong_setting_is_named(config, tmp_path, failure, options, told):
    assert told in failure('train.py', config, '--work-dir', tmp_path, options=options)


def test_a_malformed_option_is_named(config, failure):
    assert 'takes KEY=VALUE with a dotted KEY such as' in failure('train.py', config, options=('lr',))


def test_a_folder_without_images_is_named(config, tmp_path, failure):
    (tmp_path / 'data/train/0').mkdir(parents=True)
    options = (f'train_dataloader.dataset.data_root={tmp_path}/data',)
    told = failure('train.py', config, '--work-dir', tmp_path, options=options)
    assert "The number of subfolders (1) doesn't match the number of specified classes (10)" in told

    for label in '123456789':
        (tmp_path / 'data/train' / label).mkdir()
    told = failure('train.py', config, '--work-dir', tmp_path, options=options)
    assert told.startswith('train.py: no images in the data folder: Found 0 files')

    told = failure('train.py', config, '--work-dir', tmp_path, options=(f'{options[0]}/train',))
    assert 'data/train/train' in told and 'does not exist' in told


@pytest.mark.parametrize('workers', [0, 1])
def test_a_corrupt_image_is_named_and_the_checkpoint_before_it_stays(tmp_path, failure, workers):
    data = write_images(tmp_path / 'data')
    config = write_config(tmp_path, data)
    # Epoch 1 ends well; its validation then meets the file.
    bad = data / 'val/3/30.png'
    bad.write_bytes(bad.read_bytes()[:200])
    options = (f'val_dataloader.num_workers={workers}',)

    told = failure('train.py', config, '--work-dir', tmp_path / 'run', options=options)
    assert told.startswith(f'train.py: image {bad} cannot be read (')
    assert told.endswith('replace the file, or remove it from the data')
    assert load_checkpoint_file(tmp_path / 'run/epoch_1.pth')['meta']['epoch'] == 1


def test_resuming_from_another_model_is_refused(config, tmp_path, failure):
    torch.save({'state_dict': {'conv.weight': torch.zeros(1)}, 'meta': {}}, tmp_path / 'x.pth')
    told = failure('train.py', config, '--work-dir', tmp_path, '--resume', tmp_path / 'x.pth')
    assert 'checkpoint does not fit the model ImageClassifier' in told
    assert 'missing: backbone.stem.conv1.weight' in told and 'unknown: conv.weight' in told

    options = (f'load_from={tmp_path}/x.pth',)
    told = failure('train.py', config, '--work-dir', tmp_path, options=options)
    assert 'checkpoint shares no weight with the model' in told


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


def starting_from(path: object, prefix: str = 'backbone.') -> tuple[str, ...]:
    """Options of a run whose backbone starts from a file."""
    values = dict(type='Pretrained', checkpoint=path, prefix=prefix)
    return tuple(f'model.backbone.init_cfg.{name}={value}' for name, value in values.items())


@pytest.fixture(scope='module')
def trained(config) -> Path:
    """A checkpoint of the config's model."""
    options = ('train_cfg.max_epochs=2',)
    args = ('--work-dir', config.parent / 'trained', '--no-validate')
    assert run_tool('train.py', config, *args, options=options) == 0
    return config.parent / 'trained/epoch_2.pth'


def test_missing_pretrained_weights_are_told_before_anything_is_written(config, tmp_path, failure):
    name = 'grootv-tiny_8xb128_in1k'
    options = starting_from(f'work_dirs/{name}/none.pth')
    told = failure('train.py', config, '--work-dir', tmp_path / 'run', options=options)
    assert f'pretrained weights work_dirs/{name}/none.pth do not exist' in told
    assert f'make them with tools/train.py configs/classification/{name}.py, ' in told
    assert 'model.backbone.init_cfg=None' in told
    assert not (tmp_path / 'run').exists()


def test_pretrained_weights_that_do_not_fit_are_told(config, trained, tmp_path, failure):
    args = ('--work-dir', tmp_path)
    told = failure('train.py', config, *args, options=starting_from(trained, prefix='neck.'))
    assert f'pretrained weights {trained} have none under the prefix neck.' in told

    width = ('model.backbone.arch.embed_dims=16', 'model.head.in_channels=128')
    told = failure('train.py', config, *args, options=(*starting_from(trained), *width))
    assert f'pretrained weights {trained} do not fit GrootV (other shape: stem.conv1.weight (4, 3' in told

    torch.save({'bomb': Bomb(tmp_path / 'exploded')}, tmp_path / 'bomb.pth')
    told = failure('train.py', config, *args, options=starting_from(tmp_path / 'bomb.pth'))
    assert '--trust-checkpoint' in told and not (tmp_path / 'exploded').exists()


def test_another_class_count_is_told_with_both(config, trained, tmp_path, failure):
    checkpoint = load_checkpoint_file(trained)
    for part in ('state_dict', 'ema_state_dict'):
        for name in [name for name in checkpoint[part] if 'head.fc' in name]:
            checkpoint[part][name] = checkpoint[part][name][:3]
    checkpoint['meta']['dataset_meta']['classes'] = ('ox', 'cow', 'elk')
    other = tmp_path / 'other.pth'
    torch.save(checkpoint, other)
    shapes = 'other shape: head.fc.weight (3, 96) instead of (10, 96), head.fc.bias (3,) instead of (10,)'
    counts = 'it was trained with 3 classes, ox, cow, elk, and the config has 10, 0, 1, 2 and 7 more'

    told = failure('test.py', config, other, '--work-dir', tmp_path / 'test')
    assert told.startswith('test.py: checkpoint does not fit the model ImageClassifier')
    assert shapes in told and counts in told
    told = failure('train.py', config, '--work-dir', tmp_path / 'resumed', '--resume', other)
    assert shapes in told and counts in told

    # Fine-tuning goes on and says what it leaves out.
    args = ('--work-dir', tmp_path / 'tuned', '--no-validate')
    assert run_tool('train.py', config, *args, options=(f'load_from={other}',)) == 0
    (log,) = (tmp_path / 'tuned').glob('*/*.log')
    (line,) = [line for line in log.read_text().splitlines() if 'checkpoint fits the model' in line]
    assert shapes in line and counts in line


def test_auto_scale_lr_needs_a_batch_size(config, tmp_path, failure):
    args = ('--work-dir', tmp_path, '--auto-scale-lr')
    told = failure('train.py', config, *args, options=('auto_scale_lr=None',))
    assert 'set auto_scale_lr.base_batch_size' in told


def test_amp_does_not_replace_a_wrapper_of_the_user(config, tmp_path, failure):
    args = ('--work-dir', tmp_path, '--amp')
    told = failure('train.py', config, *args, options=('optim_wrapper.type=ApexOptimWrapper',))
    assert 'the config has a ApexOptimWrapper: leave --amp out' in told


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_a_launcher_that_did_not_launch_is_told(config, tmp_path, failure, launcher):
    told = failure('train.py', config, '--work-dir', tmp_path, '--launcher', launcher)
    assert f'--launcher {launcher} needs the environment variables' in told
