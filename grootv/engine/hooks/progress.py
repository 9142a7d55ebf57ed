"""A bar of a run's progress, on terminals alone."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_REFRESH = 0.2  # seconds between two pictures of the bar


class RateColumn(ProgressColumn):
    """Iterations a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text('' if speed is None else f'{speed:.3g} it/s', style='progress.data.speed')


class ProgressHook(Hook):
    """Show iterations, rate, remaining time, loss, and the main metric of the last validation.

    Args:
        progress: Bar, which somebody else starts and stops. It must refresh on demand only: a thread that
            refreshes it could hold its lock while processes that load data are forked.
        main: Name of the metric; None takes the first one.
    """

    priority = 'LOWEST'

    def __init__(self, progress: Progress, main: str | None = None):
        self.progress, self.main = progress, main
        self.tasks: dict[str, Any] = {}
        self.metric, self.drawn = '', 0.0

    def _start(self, kind: str, total: int, completed: int = 0) -> None:
        if kind in self.tasks:
            self.progress.remove_task(self.tasks[kind])
        self.tasks[kind] = self.progress.add_task(kind, total=total, completed=completed, text='')

    def _show(self, kind: str, completed: int, outputs: Any = None) -> None:
        self.progress.update(self.tasks[kind], completed=completed)
        if time.monotonic() - self.drawn > _REFRESH:  # reading a loss waits for the GPU
            loss = outputs.get('loss') if isinstance(outputs, Mapping) else None
            texts = [] if loss is None else [f'loss {float(loss):.4g}']
            self.progress.update(self.tasks[kind], text='  '.join([*texts, self.metric]))
            self.progress.refresh()
            self.drawn = time.monotonic()

    def before_train(self, runner: Any) -> None:
        self._start('training', runner.train_loop.max_iters, runner.train_loop.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._show('training', runner.train_loop.iter + 1, outputs)

    def before_val_epoch(self, runner: Any) -> None:
        self._start('validation', len(runner.val_loop.dataloader))

    def before_test_epoch(self, runner: Any) -> None:
        self._start('test', len(runner.test_loop.dataloader))

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._show('validation', batch_idx + 1)

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._show('test', batch_idx + 1)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self.progress.remove_task(self.tasks.pop('validation'))
        self.metric = self._main(metrics or {})

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self.metric = self._main(metrics or {})
        self.progress.update(self.tasks['test'], text=self.metric)

    def _main(self, metrics: Mapping[str, Any]) -> str:
        name = self.main if self.main in metrics else next(iter(metrics), None)
        value = metrics.get(name) if name else None
        return f'{name} {value:.4g}' if isinstance(value, int | float) else ''


@contextmanager
def progress_bar(runner: Any, rank: int = 0) -> Iterator[None]:
    """Show the progress of a runner while the body runs; its log goes on above the bar.

    Without a terminal, and in all processes but the first, nothing is shown: the log has lines.
    """
    if rank or not sys.stdout.isatty():
        yield
        return
    checkpoint = next((hook for hook in runner.hooks if getattr(hook, 'save_best', None)), None)
    main = getattr(checkpoint, 'save_best', None)
    columns = (TextColumn('{task.description}'), BarColumn(20), MofNCompleteColumn(), RateColumn())
    columns += (TimeRemainingColumn(), TextColumn('{task.fields[text]}', markup=False))
    progress = Progress(*columns, console=Console(file=sys.stdout), auto_refresh=False)
    runner.register_hook(ProgressHook(progress, main if isinstance(main, str) else None))
    terminal = sys.stdout
    handlers = [
        handler
        for handler in MMLogger.get_current_instance().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is terminal
    ]
    with progress:  # its sys.stdout writes above the bar
        for handler in handlers:
            handler.setStream(sys.stdout)
        try:
            yield
        finally:
            for handler in handlers:
                handler.setStream(terminal)
