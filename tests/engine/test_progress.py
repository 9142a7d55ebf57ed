"""The bar of a run: on a terminal alone, with the log above it."""

import io
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import Progress, TextColumn

from grootv.engine import ProgressHook, progress_bar
from tests.tools.tiny_run import run_tool


def test_a_bar_shows_iterations_the_loss_and_the_main_metric(monkeypatch):
    monkeypatch.setattr('grootv.engine.hooks.progress._REFRESH', -1)
    text = TextColumn('{task.description} {task.completed}/{task.total} {task.fields[text]};')
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    progress = Progress(text, console=console, auto_refresh=False)
    hook = ProgressHook(progress, main='mIoU')
    loader = SimpleNamespace(dataloader=range(4))
    runner = SimpleNamespace(
        train_loop=SimpleNamespace(iter=5, max_iters=9), val_loop=loader, test_loop=loader
    )

    def shown() -> str:
        progress.refresh()
        with console.capture() as captured:
            console.print(progress.get_renderable())
        return ' '.join(captured.get().split())

    hook.before_train(runner)
    assert shown() == 'training 5/9 ;'
    hook.after_train_iter(runner, 0, outputs=dict(loss=torch.tensor(0.25)))
    assert shown() == 'training 6/9 loss 0.25 ;'
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 2)
    assert shown() == 'training 6/9 loss 0.25 ; validation 3/4 ;'
    hook.after_val_epoch(runner, dict(aAcc=1.0, mIoU=50.5))
    hook.after_train_iter(runner, 0, outputs=dict(loss=torch.tensor(0.5)))
    assert shown() == 'training 6/9 loss 0.5 mIoU 50.5;'
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 3)
    hook.after_test_epoch(runner, dict(other=2.0))
    assert shown().endswith('test 4/4 other 2;')


@pytest.mark.parametrize('terminal', [True, False])
def test_a_terminal_has_a_bar_and_a_pipe_has_lines(tiny_run, tmp_path, capsys, monkeypatch, terminal):
    run = tiny_run('classification')
    monkeypatch.setenv('COLUMNS', '120')
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: terminal)
    assert run_tool('test.py', run.config, run.checkpoint, '--work-dir', tmp_path) == 0
    printed = capsys.readouterr().out
    assert ('1/1' in printed and '━━━' in printed and '\x1b[?25h' in printed) == terminal
    assert 'Epoch(test) [1/1]    accuracy/top1:' in printed, 'the log'
    streams = [h.stream for h in MMLogger.get_current_instance().handlers if type(h) is logging.StreamHandler]
    assert streams and all(stream is sys.stdout for stream in streams)


def test_a_bar_ends_with_the_run_that_fails(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    runner = SimpleNamespace(hooks=[], register_hook=lambda hook: None)
    terminal = sys.stdout
    with pytest.raises(KeyboardInterrupt), progress_bar(runner):
        raise KeyboardInterrupt
    assert sys.stdout is terminal and capsys.readouterr().out.endswith('\x1b[?25h')
    with progress_bar(runner, rank=1):
        assert sys.stdout is terminal
