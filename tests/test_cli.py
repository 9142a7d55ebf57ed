import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch.utils.data import DataLoader

from grootv import cli
from grootv.errors import UserError
from grootv.options import parse_value


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / 'config.py'
    path.write_text('optim_wrapper = dict(lr=1)\nparam_scheduler = [dict(end=1)]\n')
    return path


def outcome(main, capsys) -> tuple[int, str]:
    """Exit status and stderr of a tool that fails."""
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    return stop.value.code, capsys.readouterr().err.strip()


HUGE_PAGES = Path('/sys/kernel/mm/transparent_hugepage/enabled')


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or '[never]' in HUGE_PAGES.read_text(), reason='a kernel without huge pages'
)
def test_large_tensors_get_huge_pages_unless_turned_off(monkeypatch):
    code = (
        'import torch\nfrom grootv import cli\ncli.run(lambda: globals().update(x=torch.ones(2**25)))\n'
        'print(*(line.split()[1] for line in open("/proc/self/smaps_rollup") if "AnonHugePages" in line))'
    )
    monkeypatch.setenv('THP_MEM_ALLOC_ENABLE', '0')
    cli.run(lambda: None)
    assert os.environ.pop('THP_MEM_ALLOC_ENABLE') == '0'
    assert int(subprocess.check_output([sys.executable, '-c', code], text=True)) > 100_000  # kB


@pytest.mark.parametrize('wish', ['', '1'])
@pytest.mark.parametrize(
    'error, sentence, fault',
    [
        (UserError('x is missing: add x'), 'x is missing: add x', False),
        (ZeroDivisionError('division by zero'), 'unexpected ZeroDivisionError: division by zero', True),
    ],
)
def test_failure_ends_in_one_line_and_a_fault_of_the_program_has_a_traceback(
    capsys, monkeypatch, error, sentence, fault, wish
):
    def main():
        raise error

    monkeypatch.setenv('GROOTV_TRACEBACK', wish)
    status, text = outcome(main, capsys)
    assert status == 1 and text.splitlines()[-1].endswith(f': {sentence}')
    assert ('Traceback' in text) == (len(text.splitlines()) > 1) == bool(fault or wish)


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


@pytest.mark.parametrize('hint', ['', '; continue from a.pth with --resume'])
def test_full_disk_is_reported_with_what_the_tool_can_do(capsys, hint):
    def main():
        with cli.stoppable(lambda: hint):
            raise OSError(28, 'No space left on device')

    status, error = outcome(main, capsys)
    assert status == 1
    assert error.endswith(f': the disk is full ([Errno 28] No space left on device): free some space{hint}')


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_signal_that_python_lost_stops_the_next_iteration(capsys):
    hook = cli.StopHook()
    begun = []

    class Farewell:
        """Gets a signal in its destructor, where Python ignores exceptions."""

        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def main():
        hook.before_train_iter(None, 0)
        begun.append(0)
        Farewell()
        begun.append(1)
        hook.before_train_iter(None, 1)

    status, error = outcome(main, capsys)
    assert status == 128 + signal.SIGTERM and error.endswith('stopped by SIGTERM')
    assert begun == [0, 1]


class Broken(list):
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
    data = Broken([0])
    data.error = error
    with pytest.raises(type(error)) as caught:
        list(DataLoader(data, num_workers=workers))
    assert cli.explain(caught.value) == sentence


@pytest.mark.parametrize(
    'error, sentence',
    [
        (ImportError('grootv.ops has no library: build it with pip'), 'build it with pip'),
        (OSError(28, 'No space left on device'), 'disk is full'),
        (
            RuntimeError('[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer.'),
            'lost another process of the run',
        ),
        (torch.OutOfMemoryError('CUDA'), 'lower train_dataloader.batch_size'),
        *((kind('expected scalar type Float'), None) for kind in (ValueError, AssertionError, RuntimeError)),
    ],
)
def test_error_of_the_machine_is_a_sentence_and_one_from_elsewhere_a_fault_of_the_program(error, sentence):
    found = cli.explain(error)
    assert found is None if sentence is None else sentence in found


def test_operator_without_reduced_precision_is_a_sentence():
    text = 'expected scalar type Float but found BFloat16'  # of a compiled operator
    with pytest.raises(RuntimeError) as caught:
        exec(compile(f'raise RuntimeError({text!r})', 'site-packages/mmcv/ops/nms.py', 'exec'))
    assert cli.explain(caught.value).endswith('found BFloat16): leave out --amp')


@pytest.mark.parametrize(
    'text, fault',
    [
        (None, 'does not exist'),
        ('model = dict(', 'does not parse'),
        ('model = undefined', 'does not parse'),
        ("_base_ = 'absent.py'", 'does not parse'),
        ("custom_imports = dict(imports=['grootv.absent'])", 'imports what is not installed'),
    ],
)
def test_config_that_is_missing_or_does_not_parse_is_named(tmp_path, text, fault):
    path = tmp_path / 'bad.py'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f'^config {path} {fault}.*$') as error:
        cli.load_config(path)
    assert '\n' not in str(error.value)


def parse_options(*texts: str) -> dict:
    parser = argparse.ArgumentParser()
    cli.add_config_arguments(parser)
    return parser.parse_args(['c.py', '--cfg-options', *texts]).cfg_options


def test_options_replace_settings_of_the_config(config):
    assert parse_options('a.b=[1,2]', 'c=None', 'd=x=y') == {'a.b': [1, 2], 'c': None, 'd': 'x=y'}
    cfg = cli.load_config(config, parse_options('optim_wrapper.lr=2', 'param_scheduler.0.end=5', 'new=1'))
    assert (cfg.optim_wrapper.lr, cfg.param_scheduler[0].end, cfg.new) == (2, 5, 1)


@pytest.mark.parametrize(
    'text, value',
    [
        ('/a/with blank, comma', '/a/with blank, comma'),
        ("/it's/(old", "/it's/(old"),
        ('[a]/b[1]', '[a]/b[1]'),
        ('"1,2"', '1,2'),
        ("'/a, b'", '/a, b'),
        ('plain, file.json', 'plain, file.json'),  # exists
        ('20_24', '20_24'),  # exists
        ('8', 8),  # exists too
        ('s3://b/a,b', 's3://b/a,b'),
        ("['/a, b',/c d, 1]", ['/a, b', '/c d', 1]),
        ('1,2', [1, 2]),
        ('1,', [1]),
        ('(1,)', (1,)),
        ('[(1, 2), [a b, None], True]', [(1, 2), ['a b', None], True]),
        ('[1],[2]', [[1], [2]]),
        ('f(a,b)', 'f(a,b)'),
        ('1e-3', 1e-3),
        ('80_000', 80_000),
        ('false', False),
        ('[]', []),
        ('', ''),
        ('two words', 'two words'),
    ],
)
def test_value_of_an_option(tmp_path, monkeypatch, text, value):
    monkeypatch.chdir(tmp_path)
    for name in ('plain, file.json', '20_24', '8'):
        Path(name).touch()
    found = parse_value(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    'text, sentence',
    [
        ('a={b:1}', '--cfg-options a: set the keys of a dict one by one'),
        *((text, 'takes KEY=VALUE with a dotted KEY') for text in ('lr', '=3', 'a..b=3', '.a=3')),
        ('a=[(1,2]', '--cfg-options a: close the brackets'),
        ('optim_wraper.lr=1', 'has no optim_wraper, did you mean optim_wrapper?'),
        ('param_scheduler.7.end=1', 'has no place in'),
        ('optim_wrapper.lr.x=1', 'has no place in'),
    ],
)
def test_option_that_is_malformed_or_has_no_place_is_refused(config, text, sentence):
    with pytest.raises(UserError, match='--cfg-options') as error:
        cli.load_config(config, parse_options(text))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    'device, workers, variable, threads',
    [('cpu', 3, None, [5]), ('cpu', 9, None, [1]), ('cpu', 3, '4', []), ('cuda', 3, None, [])],
)
def test_data_loading_processes_get_cores_of_their_own(monkeypatch, device, workers, variable, threads):
    found = []
    monkeypatch.setattr(cli, 'get_device', lambda: device)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 8)
    monkeypatch.setattr(torch, 'set_num_threads', found.append)
    monkeypatch.setenv('OMP_NUM_THREADS', variable or '')
    if variable is None:
        monkeypatch.delenv('OMP_NUM_THREADS')
    cfg = Config(dict(train_dataloader=dict(num_workers=workers, pin_memory=True), val_dataloader=None))
    cli.prepare_for_cpu(cfg)
    assert found == threads and cfg.train_dataloader.pin_memory == (device == 'cuda')


@pytest.mark.parametrize('text', ['0', '-1', '1.5', 'x', ''])
def test_count_is_a_whole_number_from_one_on(text):
    assert cli.positive('1') == 1
    with pytest.raises(argparse.ArgumentTypeError, match=f'^must be 1 or more, got {text}$'):
        cli.positive(text)
