"""What is special to the converter of ImageNet-1K: tars in a tar, checksums, labels, checking a folder."""

import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from mmpretrain.datasets import ImageNet

from tests.tools.tiny_archives import TOOLS, WNIDS, Copies, DataSet, archives, sentence, tar

imagenet = TOOLS['imagenet']
PAGE = 'https://image-net.org/challenges/LSVRC/2012/2012-downloads.php'


@pytest.fixture
def data(tmp_path, monkeypatch) -> DataSet:
    return DataSet.make('imagenet', tmp_path, monkeypatch)


@pytest.fixture
def told(capsys) -> Callable[[], str]:
    return lambda: sentence(capsys)


def test_the_published_checksums_and_the_classes_in_their_order():
    assert [imagenet.TRAIN.md5, imagenet.VAL.md5, imagenet.DEVKIT.md5] == [
        '1d675b47d978889d74fa0da5fadfb00e',
        '29b22e2961454d5413ddabcf34fc5622',
        'fa75699e90414af021442c21a62c3abf',
    ]
    assert len(imagenet.WNIDS) == 1000 and list(imagenet.WNIDS) == sorted(imagenet.WNIDS)


def test_checksums_are_compared_once(data, monkeypatch):
    with monkeypatch.context() as patch:
        Copies(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert data.run() == 130
    monkeypatch.delattr(archives.hashlib, 'md5')
    assert data.run() == 0
    assert data.written() == data.files


def test_another_archive_of_the_same_name_is_checked_again(data, told, monkeypatch):
    with monkeypatch.context() as patch:
        Copies(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert data.run() == 130
    told()
    path = data.src / 'ILSVRC2012_img_train.tar'
    path.write_bytes(path.read_bytes()[:-1] + b'x')
    assert data.run() == 1
    assert f'{path} is damaged: its MD5 is' in told()


def test_a_class_that_a_power_cut_left_empty_is_written_again(data, monkeypatch):
    total = len(data.files)
    with monkeypatch.context() as patch:
        Copies(patch, total, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert data.run() == 130
    emptied = data.out / '.imagenet.partial/train' / WNIDS[1]
    next(emptied.iterdir()).write_bytes(b'')
    copies = Copies(monkeypatch)
    assert data.run() == 0
    assert data.written() == data.files
    assert copies.count == 2 + 1  # the images of that class, and the one that was interrupted


@pytest.mark.parametrize('name', ['ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'])
def test_a_cut_tar_is_found_without_its_checksum(data, told, name):
    data.damage(name, 'cut')
    data.accept()
    assert data.run() == 1
    assert told().startswith(f'imagenet.py: {data.src / name} is damaged')


@pytest.mark.parametrize('kind', [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize('archive', ['ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar', 'class'])
def test_a_tar_entry_that_leads_out_of_the_folder_is_refused(data, told, archive, kind):
    member = tarfile.TarInfo('../evil.JPEG' if kind == tarfile.REGTYPE else 'evil.JPEG')
    member.type, member.linkname = kind, '/etc/passwd'
    path = data.src / archive
    if archive == 'class':  # one of the tars in the tar
        path = data.src / 'ILSVRC2012_img_train.tar'
        inner = data.src / 'inner.tar'
        with tarfile.open(inner, 'w') as tar_file:
            tar_file.addfile(member)
        path.write_bytes(tar({f'{WNIDS[0]}.tar': inner.read_bytes()}))
    else:
        with tarfile.open(path, 'a') as tar_file:
            tar_file.addfile(member)
    data.accept()
    assert data.run() == 1
    assert f'{path} is not the official archive: {member.name} in it leads out of the folder' in told()
    assert not any('evil' in name for name in data.written())
    assert not list(data.out.parent.rglob('evil*'))


def read_imagenet(out: Path) -> dict[str, int]:
    """The label of every image of both sides."""
    sides = [
        ImageNet(str(out), split=side, metainfo=dict(classes=WNIDS), pipeline=[]) for side in ('train', 'val')
    ]
    return {item['img_path']: item['gt_label'] for dataset in sides for item in dataset}


def test_imagenet_is_read_by_mmpretrain(data):
    assert data.run() == 0
    expected = {str(data.out / name): WNIDS.index(name.split('/')[1]) for name in data.files}
    assert read_imagenet(data.out) == expected
    labels = [expected[str(path)] for path in sorted(data.out.glob('val/*/*'), key=lambda path: path.name)]
    assert [WNIDS[label] for label in labels] == ['n02119789', 'n01440764', 'n01440764', 'n01443537']


def test_the_lists_give_mmpretrain_the_same_labels(data):
    assert data.run(data.src, data.out, '--meta') == 0
    assert (data.out / 'meta/val.txt').read_text().splitlines() == [
        'n01440764/ILSVRC2012_val_00000002.JPEG 0',
        'n01440764/ILSVRC2012_val_00000003.JPEG 0',
        'n01443537/ILSVRC2012_val_00000004.JPEG 1',
        'n02119789/ILSVRC2012_val_00000001.JPEG 2',
    ]
    by_list = read_imagenet(data.out)
    shutil.rmtree(data.out / 'meta')
    assert by_list == read_imagenet(data.out)


def test_a_whole_imagenet_folder_passes_the_check(data, capsys):
    assert data.run() == 0
    capsys.readouterr()
    assert data.run(data.out, '--check') == 0
    assert capsys.readouterr().out == f'{data.out} is complete: val 4, train 6\n'


@pytest.mark.parametrize(
    'spoil, fault',
    [
        (lambda out: shutil.rmtree(out / 'train' / WNIDS[0]), 'train lacks 1 of 3 classes (n01440764); '),
        (lambda out: shutil.rmtree(out / 'train' / WNIDS[0]), 'train has 3 images instead of 6'),
        (lambda out: shutil.rmtree(out / 'val'), 'val does not exist: move it away'),
        (
            lambda out: (out / 'train/.ipynb_checkpoints').mkdir(),
            'train has 1 folders of no class (.ipynb_checkpoints)',
        ),
        (lambda out: next((out / 'train' / WNIDS[0]).iterdir()).unlink(), 'train has 5 images instead of 6'),
        (
            lambda out: (out / 'val/n01443537/ILSVRC2012_val_00000004.JPEG').unlink(),
            'val lacks 1 images (ILSVRC2012_val_00000004.JPEG)',
        ),
        (
            lambda out: (out / 'val/n01443537/ILSVRC2012_val_00000004.JPEG').write_bytes(b''),
            'val has 1 missing or empty images (n01443537/ILSVRC2012_val_00000004.JPEG)',
        ),
    ],
)
def test_the_check_names_what_is_wrong(data, told, spoil, fault):
    assert data.run() == 0
    spoil(data.out)
    assert data.run(data.out, '--check') == 1
    sentence = told()
    assert f'{data.out}/{fault}' in sentence
    assert sentence.endswith(f': move it away and unpack the archives of {PAGE} anew')


def test_the_check_follows_the_lists_of_a_folder_without_classes(data, told):
    assert data.run(data.src, data.out, '--meta') == 0
    for side in ('train', 'val'):
        for path in list((data.out / side).glob('*/*')):
            path.rename(data.out / side / path.name)
        for wnid in WNIDS:
            (data.out / side / wnid).rmdir()
        lines = (data.out / f'meta/{side}.txt').read_text().splitlines(keepends=True)
        (data.out / f'meta/{side}.txt').write_text(''.join(line.split('/')[1] for line in lines))
    assert data.run(data.out, '--check') == 0
    (data.out / 'train/n01443537_10.JPEG').unlink()
    assert data.run(data.out, '--check') == 1
    assert 'train has 1 missing or empty images (n01443537_10.JPEG): ' in told()


def test_imagenet_without_a_source_wants_the_check(data, capsys):
    assert data.run(data.out) == 2
    assert 'give SRC OUT, or OUT --check' in capsys.readouterr().err
