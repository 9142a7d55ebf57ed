"""What a run says about its data before it begins."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.optim import OptimWrapper
from mmengine.runner.base_loop import BaseLoop
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from grootv.datasets.summary import Summary, content_key
from grootv.engine import DataReportHook
from grootv.errors import UserError

CLASSES = ('cat', 'dog', 'owl')


class Data(Dataset):
    """Items that a data set of the project describes."""

    def __init__(self, count=8, classes=CLASSES, counts=(3, 3, 2), infos=(), unit='images', found=''):
        self.metainfo, self.count, self.infos = dict(classes=classes), count, list(infos)
        self._summary = Summary(
            unit, dict(zip(classes, counts, strict=False)), {'.txt': ['a.txt', 'b.txt']}, found
        )

    def __len__(self):
        return len(self.infos) or self.count

    def __getitem__(self, index):
        return index

    def get_data_info(self, index):
        return self.infos[index] if self.infos else {}

    def summary(self):
        return self._summary


class Loop(BaseLoop):
    def run(self):
        pass


def loop(data, batch_size=4, evaluator=None, sampler=DefaultSampler, **options):
    found = Loop(None, DataLoader(data, batch_size=batch_size, sampler=sampler(data), **options))
    found.evaluator = SimpleNamespace(metrics=[evaluator] if evaluator else [])
    return found


def model(num_classes=3, norm=False):
    head = nn.Sequential(nn.BatchNorm2d(2) if norm else nn.Identity())
    head.num_classes = num_classes
    backbone, rpn_head = nn.Identity(), nn.Identity()
    backbone.num_classes, rpn_head.num_classes = 1000, 1
    return nn.ModuleDict(dict(backbone=backbone, rpn_head=rpn_head, head=head))


def report(training=None, validation=None, network=None) -> None:
    loops = dict(_train_loop=training, _val_loop=validation, _test_loop=dict(type='not built'))
    DataReportHook().before_run(SimpleNamespace(model=network or model(), **loops))


@pytest.fixture
def said(monkeypatch) -> list[str]:
    texts: list[str] = []
    for module in ('grootv.engine.hooks.data_report', 'grootv.checkpoint'):
        monkeypatch.setattr(f'{module}.print_log', lambda text, *_: texts.append(text))
    return texts


def test_one_table_has_the_items_classes_and_files_that_are_left_out(said):
    halves = [Data(), Data(counts=(1, 2, 3))]
    for half in halves:
        half._summary.facts = {'labels': 4}
    joined = ConcatDataset(halves)
    report(loop(joined), loop(Data(4, counts=(2, 1, 1))))
    assert said == [
        'data\n'
        '                training   validation\n'
        'items           16         4         \n'
        'labels          8                    \n'
        'images of cat   4          2         \n'
        'images of dog   5          1         \n'
        'images of owl   5          1         \n'
        'left out, .txt  4 (a.txt)  2 (a.txt) '
    ]


def test_many_classes_are_summed_up(said):
    names = tuple(map(str, range(100)))
    report(loop(Data(classes=names, counts=range(1, 101))), network=model(100))
    assert (
        '100 classes, fewest images  1 (0)' in said[0] and '100 classes, most images    100 (99)' in said[0]
    )


@pytest.mark.parametrize(
    'validation, order',
    [
        (('dog', 'cat', 'owl'), 'from class 0 on, cat, dog, owl and dog, cat, owl'),
        (('cat', 'dog'), 'from class 2 on, owl and none'),
    ],
)
def test_loaders_with_other_classes_are_refused(validation, order):
    with pytest.raises(UserError, match=f'the training and the validation data differ {order}: give both'):
        report(loop(Data()), loop(Data(classes=validation)))


@pytest.mark.parametrize('side', ['training', 'validation'])
def test_another_number_of_classes_than_the_heads_have_is_refused(side):
    fault = (
        rf'num_classes of head \(Sequential\) is 4, and the {side} data have 3 classes, cat, dog, owl: set'
    )
    with pytest.raises(UserError, match=fault):
        report(**{side: loop(Data())}, network=model(4))


def test_a_metric_over_more_classes_than_there_are_is_refused():
    with pytest.raises(
        UserError, match='looks for the right class among the best 5, and the validation data have 3'
    ):
        report(loop(Data()), loop(Data(), evaluator=SimpleNamespace(topk=(1, 5))))


def test_classes_without_items_are_told_and_nothing_to_learn_is_refused(said):
    report(loop(Data(counts=(3, 0, 2))))
    assert said[-1] == 'the training data have no images of dog'
    report(loop(Data(counts=(0, 0, 2), unit='boxes')), loop(Data(counts=(1, 0, 0), found='why')))
    assert said[-2:] == [
        'the training data have no boxes of cat, dog',
        'the validation data have no images of dog, owl: why',
    ]
    with pytest.raises(UserError, match=r'^the training data have no images of dog, owl: fix the labels, '):
        report(loop(Data(counts=(1, 0, 0))))
    with pytest.raises(
        UserError, match=r'^the training data have no pixels of dog, owl: 0 alone: fix the labels, '
    ):
        report(loop(Data(counts=(1, 0, 0), unit='pixels', found='0 alone')))


def test_a_last_batch_of_one_is_refused_before_batchnorm_meets_it():
    network = model(norm=True)
    with pytest.raises(
        UserError, match=r'9 items a process leave a last batch of 1 at batch_size 4, which BatchNorm'
    ):
        report(loop(Data(9)), network=network)
    report(loop(Data(9)))
    report(loop(Data(9), drop_last=True), network=network)
    report(loop(Data(9), sampler=InfiniteSampler), network=network)
    report(loop(Data(10)), loop(Data(9)), network=network)
    with pytest.raises(
        UserError, match='the training data have 3 items, fewer than a batch of 4, and drop_last'
    ):
        report(loop(Data(3), drop_last=True))


def test_images_are_looked_at(said, tmp_path):
    def info(name, pixels, **facts):
        Image.fromarray(pixels).save(tmp_path / name)
        return dict(facts, img_path=str(tmp_path / name))

    flat = np.full((4, 6), 4095, np.uint16)
    report(loop(Data(infos=[info('a.png', flat), info('b.png', flat)])))
    assert 'images of 16 bits,' in said[-1] and 'b.png, hold no number above 4095' in said[-1]
    report(loop(Data(infos=[info('a.png', flat), info('c.png', flat + 1)])))
    assert said[-1].startswith('data')
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new('RGB', (6, 4)).save(tmp_path / 'turned.jpg', exif=turned)
    report(loop(Data(infos=[dict(img_path=str(tmp_path / 'turned.jpg'), height=6, width=4)])))
    for facts, fault in (
        (
            info('d.png', flat, height=6, width=4),
            'is 6 x 4 pixels upright, and the annotation file gives it 4 x 6',
        ),
        (info('e.tif', flat.astype(np.float32)), 'its pixels are 32-bit floats of unknown range'),
        (dict(img_path=str(tmp_path / 'absent.png')), 'it does not exist'),
    ):
        with pytest.raises(UserError, match=fault):
            report(loop(Data(infos=[facts])))


def test_shares_of_joined_data_sets_are_of_all(said):
    halves = [Data(counts=(4, 0, 0), unit='pixels'), Data(counts=(0, 3, 1), unit='pixels')]
    for half in halves:
        half._summary.total = 8
    report(loop(ConcatDataset(halves)))
    assert [line.split()[-1] for line in said[0].splitlines()[3:6]] == ['25', '18.8', '6.25']
    with pytest.raises(UserError, match='the training data have the class cat alone: fix the labels'):
        report(loop(Data(classes=('cat',), counts=(4,))), network=model(1))


@pytest.mark.parametrize('count, fits', [(2, False), (3, True), (4, True), (5, False)])
def test_weights_of_classes_are_counted(count, fits):
    network = model()
    network['head'].class_weight = [1.0] * count
    if fits:
        report(loop(Data()), network=network)
    else:
        with pytest.raises(UserError, match=rf'class_weight of head has {count} numbers, and the train'):
            report(loop(Data()), network=network)


def test_data_sets_that_are_not_looked_at_are_named(said):
    class Other:
        metainfo = dict(classes=CLASSES)

        def __len__(self):
            return 3

    report(loop(Other()))
    assert said[-1].startswith(
        'the training data are a tests.Other, whose labels are not looked at: grootv.ImageNet'
    )
    with pytest.raises(UserError, match="must be a tuple of names, got the text 'cat'"):
        report(loop(Data(classes='cat')))


BOX = dict(image_id=1, bbox=[1, 2, 3, 4], iscrowd=0)


@pytest.mark.parametrize(
    'images, box, fault',
    [
        ({1: 6, 2: 6}, {}, None),
        (
            {1: 6, 2: 6, 3: 6},
            {},
            'has other images or boxes than that of the validation data: give',
        ),
        ({1: 6, 2: 7}, {}, 'has other images or boxes'),
        ({1: 6, 2: 6}, dict(bbox=[1, 2, 3, 5]), 'has other images or boxes'),
        ({1: 6, 2: 6}, dict(id=0), 'an iscrowd of 0 or 1, got 0 and 0: use grootv.CocoMetric'),
        (
            {1: 6, 2: 6},
            dict(iscrowd=None),
            'from 1 and an iscrowd of 0 or 1, got 1 and None: use grootv.CocoMetric',
        ),
    ],
)
def test_the_file_of_a_metric_must_be_that_of_the_data(images, box, fault):
    def index(images, box):
        facts = {number: dict(file_name='a', width=width, height=4) for number, width in images.items()}
        return SimpleNamespace(imgs=facts, anns={1: dict(BOX, id=1) | box})

    data = Data(2)
    data.content_key = content_key(index({1: 6, 2: 6}, {}))
    evaluated = loop(data, evaluator=SimpleNamespace(_coco_api=index(images, box)))
    if fault is None:
        report(validation=evaluated)
        data.count = 1
        fault = 'evaluates 2 images, and the validation data are 1 of them'
    with pytest.raises(UserError, match=fault):
        report(validation=evaluated)


def test_a_training_tells_its_batch_its_length_its_rates_and_what_decays(said):
    """2 x 3 items an update; 10 iterations of 2 items are 4 updates, and 20 of 8 items."""
    network = model(norm=True)  # a weight and a bias of two numbers each
    (weight, bias), frozen = network.parameters(), nn.Parameter(torch.zeros(9), requires_grad=False)
    groups = [
        dict(params=[weight], weight_decay=0.05),
        dict(params=[bias, frozen], weight_decay=0.0, lr=1e-5),
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1)
    training = loop(Data(), batch_size=2)
    training.max_iters = 10
    wrapper = OptimWrapper(optimizer, accumulative_counts=3)
    loops = dict(_train_loop=training, _val_loop=None, _test_loop=None)
    DataReportHook().before_run(SimpleNamespace(model=network, optim_wrapper=wrapper, **loops))
    assert said[0].split('training\n')[-1].splitlines() == [
        'update: 6 items (1 process x 2 batch x 3 accumulated), 2 in the last one',
        'length: 4 updates, 2.5 times through 8 items',
        'optimizer: AdamW, learning rate 1e-05 to 0.001 (1e-06 to 0.0001 at the start)',
        'weight decay 0: 1 parameters of 2 numbers, learning rate 1e-05',
        'weight decay 0.05: 1 parameters of 2 numbers, learning rate 0.001',
    ]


@pytest.mark.parametrize(
    ('change', 'warned'),
    [
        ({}, True),
        (dict(ann_file='b.txt'), False),
        (dict(data_prefix={'img': 'x'}), False),
        (dict(_indices=2), False),
    ],
)
def test_images_that_are_learned_and_validated_are_reported(said, change, warned):
    first, second = Data(), Data()
    for data in (first, second):
        data.ann_file, data.data_prefix = 'a.txt', {'img': 'images'}
    for name, value in change.items():
        setattr(second, name, value)
    report(loop(first), loop(second))
    assert any('the training learns the images of the validation data' in text for text in said) == warned
