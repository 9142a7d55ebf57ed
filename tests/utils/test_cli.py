import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS
from torch.utils.data import DataLoader, Dataset

from grootv.utils import cli
from grootv.utils.errors import UserError


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / 'config.py'
    path.write_text('optim_wrapper = dict(lr=1)\nparam_scheduler = [dict(end=1)]\n')
    return path


def failing(error: BaseException):
    def main():
        raise error

    return main


def outcome(main, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    return stop.value.code, capsys.readouterr().err.strip()


def test_success_returns():
    assert cli.run(lambda: None) is None


HUGE_PAGES = Path('/sys/kernel/mm/transparent_hugepage/enabled')


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or '[never]' in HUGE_PAGES.read_text(), reason='a kernel without huge pages'
)
@pytest.mark.parametrize(('asked', 'huge'), [(None, True), ('0', False)])
def test_large_tensors_get_huge_pages_unless_asked_not_to(asked, huge):
    code = (
        'import torch\nfrom grootv.utils import cli\ncli.run(lambda: globals().update(x=torch.ones(2**25)))\n'
        'print(*(line.split()[1] for line in open("/proc/self/smaps_rollup") if "AnonHugePages" in line))'
    )
    environment = {name: value for name, value in os.environ.items() if name != 'THP_MEM_ALLOC_ENABLE'}
    environment |= {} if asked is None else {'THP_MEM_ALLOC_ENABLE': asked}
    found = subprocess.check_output([sys.executable, '-c', code], env=environment, text=True)
    assert (int(found) > 100_000) == huge  # kB


def test_a_failure_that_the_user_can_mend_is_one_line(capsys):
    status, error = outcome(failing(UserError('x is missing: add x')), capsys)
    assert status == 1
    assert error.endswith(': x is missing: add x') and len(error.splitlines()) == 1


def test_the_environment_brings_the_traceback_back(capsys, monkeypatch):
    monkeypatch.setenv('GROOTV_TRACEBACK', '1')
    _, error = outcome(failing(UserError('x is missing: add x')), capsys)
    assert 'Traceback' in error
    assert error.splitlines()[-1].endswith('x is missing: add x')


def test_a_fault_of_the_program_keeps_its_traceback_and_ends_in_one_line(capsys):
    status, error = outcome(failing(ZeroDivisionError('division by zero')), capsys)
    assert status == 1
    assert 'Traceback' in error
    assert error.splitlines()[-1].endswith('unexpected ZeroDivisionError: division by zero')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_counts_even_where_a_library_turns_it_into_another_error(capsys, number):
    def main():
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            raise SyntaxError('a parser that met a KeyboardInterrupt') from None

    status, error = outcome(main, capsys)
    assert status == 128 + number
    assert error.endswith(f'stopped by {number.name}')


class Farewell:
    """Gets a signal in its destructor, where Python ignores exceptions."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_signal_that_python_lost_stops_the_next_iteration(capsys):
    hook = cli.StopHook()
    begun = []

    def main():
        hook.before_train_iter(None, 0)
        begun.append(0)
        Farewell()
        begun.append(1)
        hook.before_train_iter(None, 1)

    status, error = outcome(main, capsys)
    assert status == 128 + signal.SIGTERM and error.endswith('stopped by SIGTERM')
    assert begun == [0, 1]


def test_signals_are_handled_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    cli.run(lambda: None)
    assert signal.getsignal(signal.SIGTERM) is before


class Broken(Dataset):
    def __init__(self, error: Exception):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    'error, told',
    [
        (UserError('image a.png cannot be read'), 'image a.png cannot be read'),
        (FileNotFoundError(2, 'No such file or directory', 'a.png'), 'a.png does not exist: check'),
    ],
)
def test_a_sentence_survives_the_way_out_of_a_data_loading_process(workers, error, told):
    with pytest.raises(type(error)) as caught:
        list(DataLoader(Broken(error), num_workers=workers))
    assert cli.explain(caught.value).startswith(told)
    assert len(cli.explain(caught.value).splitlines()) == 1


def test_an_unknown_type_is_named():
    with pytest.raises(KeyError) as caught:
        MODELS.build(dict(type='Grotv'))
    assert cli.explain(caught.value).startswith('the config asks for Grotv, which no model registry')


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError) as caught:
        HOOKS.build(dict(type='IterTimerHook', speed=3))
    told = cli.explain(caught.value)
    assert told == "the config gives IterTimerHook an option 'speed' that it does not have"


def test_what_a_constructor_refuses_is_the_configs_fault():
    with pytest.raises(ValueError) as caught:
        HOOKS.build(dict(type='CheckpointHook', save_begin=-1))
    assert cli.explain(caught.value).startswith('the config is refused: save_begin')
    assert cli.explain(ValueError('elsewhere')) is None


def test_assertions_of_openmmlab_are_told_and_others_are_faults():
    with pytest.raises(AssertionError) as caught:
        HOOKS.build(dict(type='CheckpointHook', save_best=3))
    assert cli.explain(caught.value).startswith('"save_best" should be a str')
    assert cli.explain(AssertionError('ours')) is None


def test_a_missing_binary_and_a_full_disk_are_told():
    missing = ImportError('grootv.ops.tree_scan needs the compiled library: build it with pip')
    assert 'build it with pip' in cli.explain(missing)
    assert 'disk is full' in cli.explain(OSError(28, 'No space left on device'))
    assert 'lower train_dataloader.batch_size' in cli.explain(torch.OutOfMemoryError('CUDA'))


def test_an_operator_without_reduced_precision_is_told():
    nms = pytest.importorskip('mmcv.ops').nms
    boxes, scores = torch.rand(2, 4, dtype=torch.bfloat16), torch.rand(2, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError) as caught:
        nms(boxes, scores, 0.5)
    assert cli.explain(caught.value).endswith('found BFloat16): leave out --amp')
    assert cli.explain(RuntimeError('expected scalar type Float')) is None


def test_a_config_that_is_not_there_or_does_not_parse_is_named(tmp_path):
    with pytest.raises(UserError, match=r'config nowhere\.py does not exist'):
        cli.load_config('nowhere.py')
    for text in ('model = dict(', 'model = undefined', "_base_ = 'absent.py'"):
        path = tmp_path / 'bad.py'
        path.write_text(text)
        with pytest.raises(UserError, match=f'config {path} does not parse') as error:
            cli.load_config(path)
        assert len(str(error.value).splitlines()) == 1


def test_options_replace_settings_of_the_config(config):
    cfg = cli.load_config(config, {'optim_wrapper.lr': 2, 'param_scheduler.0.end': 5, 'new': 1})
    assert (cfg.optim_wrapper.lr, cfg.param_scheduler[0].end, cfg.new) == (2, 5, 1)


@pytest.mark.parametrize(
    'key, told',
    [
        ('optim_wraper.lr', 'has no optim_wraper, did you mean optim_wrapper?'),
        ('param_scheduler.7.end', 'has no place in'),
        ('optim_wrapper.lr.x', 'has no place in'),
    ],
)
def test_an_option_without_a_place_is_refused(config, key, told):
    with pytest.raises(UserError) as error:
        cli.load_config(config, {key: 1})
    assert told in str(error.value)


@pytest.mark.parametrize('text', ['lr', '=3', 'a..b=3', '.a=3', 'a=[(1,2]'])
def test_a_malformed_option_is_refused(text):
    parser = argparse.ArgumentParser()
    cli.add_config_arguments(parser)
    with pytest.raises(UserError, match='--cfg-options'):
        parser.parse_args(['c.py', '--cfg-options', text])


def test_well_formed_options_become_values():
    parser = argparse.ArgumentParser()
    cli.add_config_arguments(parser)
    options = parser.parse_args(['c.py', '--cfg-options', 'a.b=[1,2]', 'c=None', 'd=x=y'])
    assert options.cfg_options == {'a.b': [1, 2], 'c': None, 'd': 'x=y'}


def test_a_missing_data_folder_is_named_with_the_key_that_mends_it(tmp_path):
    inner = dict(type='Repeat', dataset=dict(data_root=str(tmp_path / 'none')))
    cfg = Config(dict(train_dataloader=dict(dataset=inner), val_dataloader=None))
    with pytest.raises(UserError, match=r'--cfg-options train_dataloader\.dataset\.dataset\.data_r'):
        cli.check_data(cfg, ['train_dataloader', 'val_dataloader'])
    inner['dataset']['data_root'] = str(tmp_path)
    cli.check_data(Config(dict(train_dataloader=dict(dataset=inner))), ['train_dataloader'])


@pytest.mark.parametrize(
    'setting, told',
    [
        (dict(ann_file='a/none.json'), '{root}/a/none.json does not exist: put the data there, or give its '),
        (dict(ann_file='a/none.json'), '--cfg-options val_dataloader.dataset.ann_file=FILE'),
        (dict(ann_file='/none.json'), 'annotation file /none.json does not exist'),
        (dict(data_prefix=dict(img='a', seg='b')), 'data folder {root}/b does not exist'),
        (
            dict(data_prefix=dict(img='a', seg='b')),
            '--cfg-options val_dataloader.dataset.data_prefix.seg=FOLD',
        ),
        (dict(data_prefix='b'), '--cfg-options val_dataloader.dataset.data_prefix=FOLDER'),
    ],
)
def test_missing_annotations_and_folders_below_the_root_are_named(tmp_path, setting, told):
    (tmp_path / 'a').mkdir()
    dataset = dict(data_root=str(tmp_path), **setting)
    with pytest.raises(UserError) as error:
        cli.check_data(Config(dict(val_dataloader=dict(dataset=dataset))), ['val_dataloader'])
    assert told.format(root=tmp_path) in str(error.value)


def test_data_that_are_there_or_elsewhere_pass(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/x.json').touch()
    sets = [dict(data_root=str(tmp_path), ann_file='a/x.json', data_prefix=dict(img='a', seg=''))]
    sets += [
        dict(data_root='s3://bucket', ann_file='x.json', data_prefix='b'),
        dict(ann_file='', data_prefix={}),
    ]
    sets += [
        dict(data_root=None, ann_file='https://host/x.json'),
        dict(data_root=str(tmp_path), split='train'),
    ]
    cfg = Config(dict(train_dataloader=dict(dataset=dict(datasets=sets))))
    cli.check_data(cfg, ['train_dataloader'])


def test_the_annotations_of_an_evaluator_are_looked_for_too(tmp_path):
    # They do not move with data_root.
    evaluators = [dict(type='Other'), dict(type='CocoMetric', ann_file=f'{tmp_path}/x.json')]
    cfg = Config(dict(val_evaluator=evaluators))
    with pytest.raises(UserError, match=r'--cfg-options val_evaluator\.1\.ann_file=FILE'):
        cli.check_data(cfg, ['val_evaluator'])
    (tmp_path / 'x.json').touch()
    cli.check_data(cfg, ['val_evaluator'])


def test_data_loading_processes_get_cores_of_their_own(monkeypatch):
    threads = []
    monkeypatch.setattr(cli, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 8)
    monkeypatch.setattr(torch, 'set_num_threads', threads.append)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    cfg = Config(dict(train_dataloader=dict(num_workers=3, pin_memory=True), val_dataloader=None))
    cli.prepare_for_cpu(cfg)
    assert threads == [5] and cfg.train_dataloader.pin_memory is False
    cfg.train_dataloader.num_workers = 9
    cli.prepare_for_cpu(cfg)
    assert threads == [5, 1]
    monkeypatch.setenv('OMP_NUM_THREADS', '4')
    cli.prepare_for_cpu(cfg)
    assert threads == [5, 1]

    monkeypatch.setattr(cli, 'get_device', lambda: 'cuda')
    cfg.train_dataloader.pin_memory = True
    cli.prepare_for_cpu(cfg)
    assert cfg.train_dataloader.pin_memory is True


@pytest.mark.parametrize('text', ['0', '-1', '1.5', 'x', ''])
def test_a_count_is_a_whole_number_from_one_on(text):
    assert cli.positive('1') == 1
    with pytest.raises(argparse.ArgumentTypeError, match=f'^must be 1 or more, got {text}$'):
        cli.positive(text)
