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

from grootv import cli
from grootv.errors import UserError


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
    """Exit status and stderr of a tool that fails."""
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    return stop.value.code, capsys.readouterr().err.strip()


# Running ---------------------------------------------------------------------------------------

HUGE_PAGES = Path('/sys/kernel/mm/transparent_hugepage/enabled')


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or '[never]' in HUGE_PAGES.read_text(), reason='a kernel without huge pages'
)
@pytest.mark.parametrize(('asked', 'huge'), [(None, True), ('0', False)])
def test_large_tensors_get_huge_pages_unless_turned_off(asked, huge):
    code = (
        'import torch\nfrom grootv import cli\ncli.run(lambda: globals().update(x=torch.ones(2**25)))\n'
        'print(*(line.split()[1] for line in open("/proc/self/smaps_rollup") if "AnonHugePages" in line))'
    )
    environment = {name: value for name, value in os.environ.items() if name != 'THP_MEM_ALLOC_ENABLE'}
    environment |= {} if asked is None else {'THP_MEM_ALLOC_ENABLE': asked}
    found = subprocess.check_output([sys.executable, '-c', code], env=environment, text=True)
    assert (int(found) > 100_000) == huge  # kB


def test_failure_that_the_user_can_fix_is_one_line(capsys, monkeypatch):
    main = failing(UserError('x is missing: add x'))
    status, error = outcome(main, capsys)
    assert status == 1
    assert error.endswith(': x is missing: add x') and len(error.splitlines()) == 1

    monkeypatch.setenv('GROOTV_TRACEBACK', '1')
    _, error = outcome(main, capsys)
    assert 'Traceback' in error and error.splitlines()[-1].endswith('x is missing: add x')


def test_fault_of_the_program_keeps_its_traceback_and_ends_in_one_line(capsys):
    status, error = outcome(failing(ZeroDivisionError('division by zero')), capsys)
    assert status == 1
    assert 'Traceback' in error
    assert error.splitlines()[-1].endswith('unexpected ZeroDivisionError: division by zero')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_counts_even_if_a_library_turns_it_into_another_error(capsys, number):
    def main():
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            raise SyntaxError('a parser that met a KeyboardInterrupt') from None

    before = signal.getsignal(number)
    status, error = outcome(main, capsys)
    assert status == 128 + number
    assert error.endswith(f'stopped by {number.name}')
    assert signal.getsignal(number) is before
    assert cli.run(lambda: None) is None  # the signal is forgotten


class Farewell:
    """Gets a signal in its destructor, where Python ignores exceptions."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_signal_that_python_lost_stops_the_next_iteration(capsys):
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


# Sentences -------------------------------------------------------------------------------------


class Broken(Dataset):
    def __init__(self, error: Exception):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    'error, sentence',
    [
        (UserError('image a.png cannot be read'), 'image a.png cannot be read'),
        (FileNotFoundError(2, 'No such file or directory', 'a.png'), 'a.png does not exist: check the path'),
    ],
)
def test_sentence_survives_a_data_loading_process(workers, error, sentence):
    with pytest.raises(type(error)) as caught:
        list(DataLoader(Broken(error), num_workers=workers))
    assert cli.explain(caught.value) == sentence


@pytest.mark.parametrize(
    'build, sentence',
    [
        (lambda: MODELS.build(dict(type='Grotv')), 'the config asks for Grotv, which no model registry'),
        (
            lambda: HOOKS.build(dict(type='IterTimerHook', speed=3)),
            "the config gives IterTimerHook an option 'speed' that it does not have",
        ),
        (
            lambda: HOOKS.build(dict(type='CheckpointHook', save_begin=-1)),
            'the config is refused: save_begin',
        ),
        (
            lambda: HOOKS.build(dict(type='CheckpointHook', save_best=3)),
            '"save_best" should be a str',
        ),
    ],
)
def test_error_of_building_is_a_sentence(build, sentence):
    with pytest.raises(Exception) as caught:
        build()
    assert cli.explain(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    'error, sentence',
    [
        (ImportError('grootv.ops has no library: build it with pip'), 'build it with pip'),
        (OSError(28, 'No space left on device'), 'disk is full'),
        (torch.OutOfMemoryError('CUDA'), 'lower train_dataloader.batch_size'),
        # The same texts elsewhere are faults of the program.
        (ValueError('elsewhere'), None),
        (AssertionError('ours'), None),
        (RuntimeError('expected scalar type Float'), None),
    ],
)
def test_error_of_the_machine_is_a_sentence(error, sentence):
    explained = cli.explain(error)
    assert explained is None if sentence is None else sentence in explained


def test_operator_without_reduced_precision_is_a_sentence():
    nms = pytest.importorskip('mmcv.ops').nms
    boxes, scores = torch.rand(2, 4, dtype=torch.bfloat16), torch.rand(2, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError) as caught:
        nms(boxes, scores, 0.5)
    assert cli.explain(caught.value).endswith('found BFloat16): leave out --amp')


# Configs and arguments -------------------------------------------------------------------------


@pytest.mark.parametrize('text', [None, 'model = dict(', 'model = undefined', "_base_ = 'absent.py'"])
def test_config_that_is_missing_or_does_not_parse_is_named(tmp_path, text):
    path = tmp_path / 'bad.py'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        cli.load_config(path)
    fault = 'does not exist' if text is None else 'does not parse'
    assert str(error.value).startswith(f'config {path} {fault}') and len(str(error.value).splitlines()) == 1


def parse_options(*texts: str) -> dict:
    parser = argparse.ArgumentParser()
    cli.add_config_arguments(parser)
    return parser.parse_args(['c.py', '--cfg-options', *texts]).cfg_options


def test_options_replace_settings_of_the_config(config):
    assert parse_options('a.b=[1,2]', 'c=None', 'd=x=y') == {'a.b': [1, 2], 'c': None, 'd': 'x=y'}
    cfg = cli.load_config(config, parse_options('optim_wrapper.lr=2', 'param_scheduler.0.end=5', 'new=1'))
    assert (cfg.optim_wrapper.lr, cfg.param_scheduler[0].end, cfg.new) == (2, 5, 1)


@pytest.mark.parametrize('text', ['lr', '=3', 'a..b=3', '.a=3', 'a=[(1,2]'])
def test_malformed_option_is_refused(text):
    with pytest.raises(UserError, match='--cfg-options'):
        parse_options(text)


@pytest.mark.parametrize(
    'key, sentence',
    [
        ('optim_wraper.lr', 'has no optim_wraper, did you mean optim_wrapper?'),
        ('param_scheduler.7.end', 'has no place in'),
        ('optim_wrapper.lr.x', 'has no place in'),
    ],
)
def test_option_without_a_place_is_refused(config, key, sentence):
    with pytest.raises(UserError) as error:
        cli.load_config(config, {key: 1})
    assert sentence in str(error.value)


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
def test_count_is_a_whole_number_from_one_on(text):
    assert cli.positive('1') == 1
    with pytest.raises(argparse.ArgumentTypeError, match=f'^must be 1 or more, got {text}$'):
        cli.positive(text)
