"""Counts by true and predicted class, of labels, boxes and pixels."""

import os
import pickle

import numpy as np
import pytest
import torch

from grootv.confusion import Confusion, read_predictions
from grootv.errors import UserError


class Data:
    metainfo = dict(classes=('cat', 'dog'))

    def __init__(self, *instances: list):
        self.infos = [dict(img_id=number, instances=each) for number, each in enumerate(instances)]

    def __len__(self):
        return len(self.infos)

    def get_data_info(self, index):
        return self.infos[index]


def true_box(x, label, crowd=False):
    return dict(bbox=[x, 0, x + 10, 10], bbox_label=label, ignore_flag=crowd)


def found(*boxes):
    """Predictions of (x, label, score)."""
    corners = torch.tensor([[x, 0, x + 10, 10] for x, _, _ in boxes], dtype=torch.float).reshape(-1, 4)
    labels, scores = (torch.tensor([box[place] for box in boxes]) for place in (1, 2))
    return dict(img_id=0, pred_instances=dict(bboxes=corners, labels=labels.long(), scores=scores, masks=[]))


@pytest.mark.parametrize(
    ('truth', 'boxes', 'counts'),
    [
        ([(0, 0)], [(1, 0, 0.9)], [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ([(0, 0)], [(0, 1, 0.9)], [[0, 1, 0], [0, 0, 0], [0, 0, 0]]),
        ([(0, 0)], [(0, 0, 0.2)], [[0, 0, 1], [0, 0, 0], [0, 0, 0]]),  # below the least score
        ([(0, 0)], [(7, 0, 0.9)], [[0, 0, 1], [0, 0, 0], [1, 0, 0]]),  # overlaps by 3 / 17
        ([(0, 0)], [(0, 0, 0.8), (1, 0, 0.9)], [[1, 0, 0], [0, 0, 0], [1, 0, 0]]),  # found twice
        ([(0, 0)], [(0, 1, 0.9), (0, 0, 0.4)], [[1, 0, 0], [0, 0, 0], [0, 1, 0]]),  # the right class first
        ([(0, 0), (2, 0)], [(1, 0, 0.9), (0, 0, 0.8)], [[2, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ([(0, 0, True)], [(0, 1, 0.9)], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),  # a crowd
        ([], [(0, 1, 0.9)], [[0, 0, 0], [0, 0, 0], [0, 1, 0]]),
        ([(0, 1)], [], [[0, 0, 0], [0, 0, 1], [0, 0, 0]]),
        ([], [], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_boxes_are_matched_one_to_one(truth, boxes, counts):
    confusion = Confusion(Data([true_box(*box) for box in truth]))
    confusion.process(None, [found(*boxes)])
    assert confusion.counts.tolist() == counts


def test_boxes_that_do_not_overlap_are_no_partners_from_an_overlap_of_zero():
    confusion = Confusion(Data([true_box(0, 0)]), iou_thr=0)
    confusion.process(None, [found((20, 0, 0.9))])
    assert confusion.counts.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_pixels_are_counted_where_there_is_a_label():
    confusion = Confusion(Pixels([0]))
    true, predicted = torch.tensor([[0, 0, 1, 255]]), torch.tensor([[0, 1, 1, 1]])
    confusion.add(dict(gt_sem_seg=dict(data=true), pred_sem_seg=dict(data=predicted)))
    assert confusion.counts.tolist() == [[1, 1], [0, 1]]
    assert [row.split() for row in confusion.table()[1:]] == [
        ['cat', '2', '1', '1', '100.0', '50.0', '50.0'],
        ['dog', '1', '2', '1', '50.0', '100.0', '50.0'],
        ['mean', '75.0', '75.0', '50.0'],
    ]
    with pytest.raises(UserError, match=r'hold the class 7, and the test data have 2: give the config'):
        confusion.add(dict(gt_sem_seg=dict(data=true), pred_sem_seg=dict(data=predicted * 7)))


class Pixels(list):
    metainfo = Data.metainfo


def test_predictions_of_other_data_are_refused():
    confusion = Confusion(Data([], []))
    confusion.add(found())
    with pytest.raises(UserError, match=r'are of 1 images and the test data have 2: give the config'):
        confusion.check_complete()
    with pytest.raises(UserError, match=r'are of image 9, which the test data do not have: give'):
        confusion.add(dict(found(), img_id=9))
    with pytest.raises(UserError, match=r'hold img_path, no label, boxes or label map'):
        confusion.add(dict(img_path='a.png'))


class Attack:
    def __reduce__(self):
        return os.mkdir, ('attacked',)


def test_a_file_of_predictions_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'p.pkl'
    sample = dict(found((0, 1, 0.5)), rle=dict(counts=b'x'), shape=np.zeros(2), one=np.float32(1))
    path.write_bytes(pickle.dumps([sample]))
    (read,) = read_predictions(path)
    assert torch.equal(read['pred_instances']['bboxes'], sample['pred_instances']['bboxes'])
    for content, fault in (
        (pickle.dumps([Attack()]), r'the file holds posix.mkdir, which is no prediction: write them'),
        (pickle.dumps([sample])[:-9], 'are cut short or no file of predictions: write them'),
        (b'{}', 'are cut short or no file of predictions: write them'),
        (pickle.dumps({}), 'are not a list with a dict for each image: write them'),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=fault):
            read_predictions(path)
    assert not (tmp_path / 'attacked').exists()
    with pytest.raises(UserError, match='do not exist: write them'):
        read_predictions(tmp_path / 'none.pkl')
