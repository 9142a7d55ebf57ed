"""What the data of a run hold, in one table, and what in them does not fit the config."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from PIL import Image
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from grootv.checkpoint import warn
from grootv.datasets.images import check_size, eight_bits, has_deep_pixels, unreadable, upright_size
from grootv.datasets.summary import Summary, aligned, content_key, difference, merged, spread
from grootv.errors import UserError, first
from grootv.registry import HOOKS

from .training_report import check_held_out, check_warm_up, training_lines

_MOST_ROWS = 30  # classes of a table


@HOOKS.register_module()
class DataReportHook(Hook):
    """Look at the data when they are loaded and the run has not begun.

    A table shows items, annotations, counts by class, and files that are left out. A data set tells by its
    ``summary()``, as those of ``grootv.datasets`` do; of any other the items are counted. For a training
    follow the items of an update, the learning rate and what decays.

    Raises:
        UserError: If the loader gives no batch, or a last one of one image to BatchNorm; if the classes of
            the data are not those of the model, the other loader or a metric; if nothing can be learned.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        loops = dict(training=runner._train_loop, validation=runner._val_loop, test=runner._test_loop)
        built: dict[str, Any] = {side: loop for side, loop in loops.items() if isinstance(loop, BaseLoop)}
        datasets = {side: list(parts(loop.dataloader.dataset)) for side, loop in built.items()}
        classes = {side: names_of(found[0]) for side, found in datasets.items()}
        summaries = {side: merged([summary_of(part) for part in found]) for side, found in datasets.items()}
        items = {side: len(loop.dataloader.dataset) for side, loop in built.items()}
        lines = ['data', *table(items, summaries)]
        if 'training' in built:
            lines += training_lines(runner, built['training'])
        print_log('\n'.join(lines), 'current')
        check_equal(classes)
        check_held_out(datasets)
        for side, names in classes.items():
            if names:
                check_model(runner.model, side, names)
                for metric in getattr(getattr(built[side], 'evaluator', None), 'metrics', ()):
                    check_top(metric, side, names)
                    check_evaluation_file(metric, datasets[side], side)
        for side, summary in summaries.items():
            check_counts(side, summary)
            for part in datasets[side]:
                check_images(part)
                if names_of(part) and not hasattr(part, 'summary'):
                    kind = f'{type(part).__module__.split(".")[0]}.{type(part).__name__}'
                    warn(
                        f'the {side} data are a {kind}, whose labels are not looked at: grootv.ImageNet, '
                        'grootv.CocoDataset and grootv.SegDataset are'
                    )
        if 'training' in built:
            check_batches(built['training'].dataloader, runner.model)
            check_warm_up(runner, built['training'])


def parts(dataset: Any) -> Iterator[Any]:
    """The data sets inside the wrappers of OpenMMLab and PyTorch."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        yield dataset
    else:
        for each in inner:
            yield from parts(each)


def names_of(dataset: Any) -> tuple[str, ...]:
    classes = getattr(dataset, 'metainfo', {}).get('classes') or ()
    if isinstance(classes, str):
        raise UserError(f'metainfo.classes must be a tuple of names, got the text {classes!r}')
    return tuple(classes)


def summary_of(dataset: Any) -> Summary:
    return dataset.summary() if hasattr(dataset, 'summary') else Summary('items')


def table(items: Mapping[str, int], summaries: Mapping[str, Summary]) -> list[str]:
    """Lines of a table with a column for each loader."""
    columns: dict[str, dict[str, str]] = {}
    for side, summary in summaries.items():
        rows = columns[side] = {'items': str(items[side])}
        rows |= {name: str(number) for name, number in summary.facts.items()}
        counts, unit = summary.counts, f'% of {summary.unit}' if summary.total else summary.unit
        texts = {
            name: f'{100 * count / summary.total:.3g}' if summary.total else str(count)
            for name, count in counts.items()
        }
        if len(counts) > _MOST_ROWS:
            for word, choose in (('fewest', min), ('most', max)):
                name = choose(counts, key=counts.__getitem__)
                rows[f'{len(counts)} classes, {word} {unit}'] = f'{texts[name]} ({name})'
        else:
            rows |= {f'{unit} of {name}': text for name, text in texts.items()}
        for reason, files in summary.left_out.items():
            rows[f'left out, {reason}'] = f'{len(files)} ({first(files[:1])})'
    names = list(dict.fromkeys(name for rows in columns.values() for name in rows))
    cells = [['', *columns], *([name, *(rows.get(name, '') for rows in columns.values())] for name in names)]
    return aligned(cells)


def check_equal(classes: Mapping[str, tuple[str, ...]]) -> None:
    """The loaders must number the classes alike."""
    named = {side: names for side, names in classes.items() if names}
    (side, names), *others = [*named.items()] or [('', ())]
    for other, found in others:
        if names != found:
            place, ours, theirs = difference(names, found)
            raise UserError(
                f'the {side} and the {other} data differ from class {place} on, {ours} and {theirs}: give '
                'both the same metainfo.classes and folders'
            )


def check_model(model: Any, side: str, names: tuple[str, ...]) -> None:
    """Heads must have as many classes as the data; those that tell objects from background have none."""
    for key, module in model.named_modules():
        count: Any = getattr(module, 'num_classes', None)
        weights: Any = getattr(module, 'class_weight', None)
        inside = not key or 'backbone' in key.split('.') or 'rpn_head' in key.split('.')
        fits = not isinstance(weights, list | tuple) or len(weights) - len(names) in (0, 1)  # and background
        if not fits and not inside:
            raise UserError(
                f'class_weight of {key} has {len(weights)} numbers, and the {side} data have {len(names)} '
                f'classes, {first(names)}: give one for each'
            )
        if isinstance(count, int) and count > 0 and not inside and count != len(names):
            raise UserError(
                f'num_classes of {key} ({type(module).__name__}) is {count}, and the {side} data have '
                f'{len(names)} classes, {first(names)}: set it to {len(names)}, or fix metainfo.classes'
            )


def check_top(metric: Any, side: str, names: tuple[str, ...]) -> None:
    most = max(getattr(metric, 'topk', None) or (0,))
    if most > len(names):
        raise UserError(
            f'{type(metric).__name__} looks for the right class among the best {most}, and the {side} data '
            f'have {len(names)} classes: set topk of the evaluators, for example '
            '--cfg-options val_evaluator.topk="[1]" test_evaluator.topk="[1]"'
        )


def check_evaluation_file(metric: Any, datasets: list, side: str) -> None:
    """A COCO metric with a file of its own must evaluate the images of the data, and all of them."""
    index, kind = getattr(metric, '_coco_api', None), type(metric).__name__
    if index is None or len(datasets) != 1 or not hasattr(datasets[0], 'content_key'):
        return
    (dataset,) = datasets
    if content_key(index) != dataset.content_key:
        raise UserError(
            f'the ann_file of {kind} has other images or boxes than that of the {side} data: give '
            'evaluator and data set the same file'
        )
    if type(metric).__module__.startswith('grootv.'):
        return
    if len(dataset) < len(index.imgs):
        raise UserError(
            f'{kind} evaluates {len(index.imgs)} images, and the {side} data are {len(dataset)} of them, so '
            'that the others count as missed: leave indices out, or use grootv.CocoMetric'
        )
    boxes = index.anns.values()
    odd = next((box for box in boxes if not box['id'] or box.get('iscrowd') not in (0, 1)), None)
    if odd is not None:
        raise UserError(
            f'{kind} takes only annotations with an id from 1 and an iscrowd of 0 or 1, got {odd["id"]} and '
            f'{odd.get("iscrowd")!r}: use grootv.CocoMetric'
        )


def check_counts(side: str, summary: Summary) -> None:
    """Every class should have something, and a training more than one class to tell apart."""
    absent = [name for name, count in summary.counts.items() if not count]
    single = len(summary.counts) - len(absent) < 2 and bool(summary.counts) and summary.unit != 'boxes'
    text = f'the {side} data have no {summary.unit} of {first(absent)}' if absent else ''
    if single and side == 'training':
        text = text or f'the training data have the class {first(summary.counts)} alone'
        text += f': {summary.found}' if summary.found else ''
        raise UserError(f'{text}: fix the labels, reduce_zero_label or metainfo.classes')
    if absent:
        warn(text + (f': {summary.found}' if summary.found else ''))


def check_images(dataset: Any) -> None:
    """Look at the headers of a thousand images, evenly spread."""
    infos = (
        (dataset.get_data_info(i) for i in spread(len(dataset))) if hasattr(dataset, 'get_data_info') else ()
    )
    dark, bright = [], False
    for info in infos:
        path = info.get('img_path')
        if not isinstance(path, str) or '://' in path:
            continue
        try:
            with Image.open(path) as image:
                width, height = upright_size(image)
                if has_deep_pixels(image) and not bright:
                    bright = int(np.asarray(eight_bits(image)).max()) > 15
                    dark.append(path)
        except Exception as error:  # each decoder has its own exceptions
            raise unreadable(path, error) from None
        check_size(path, (height, width), (info.get('height'), info.get('width')))
    if dark and not bright:
        warn(
            f'images of 16 bits, {first(dark)}, hold no number above 4095: scaled by the range of their type '
            'they are almost black, multiply the pixels by 16'
        )


def check_batches(loader: DataLoader, model: Any) -> None:
    sampler: Any = loader.sampler
    dataset: Any = loader.dataset
    size = loader.batch_size
    if len(loader) == 0:
        raise UserError(
            f'the training data have {len(dataset)} items, fewer than a batch of {size}, and '
            'drop_last=True leaves none: lower train_dataloader.batch_size'
        )
    if size is None or isinstance(sampler, InfiniteSampler) or loader.drop_last:
        return
    normalised = any(isinstance(module, _BatchNorm) for module in model.modules())
    if normalised and size > 1 and len(sampler) % size == 1:
        raise UserError(
            f'{len(sampler)} items a process leave a last batch of 1 at batch_size {size}, which BatchNorm '
            'cannot normalise: set --cfg-options train_dataloader.drop_last=True, or another batch_size'
        )
