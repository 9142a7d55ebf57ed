"""The converters of official archives, on miniatures with the official structure."""

import errno
import os
import shutil
import signal
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from mmdet.datasets import CocoDataset
from mmpretrain.datasets import ImageNet
from mmseg.datasets import ADE20KDataset

from tests.data.tiny_archives import COUNTS, OFFICIAL, TOOLS, WNIDS, DataSet, archives, tar, write_zip

PAGE = 'https://image-net.org/challenges/LSVRC/2012/2012-downloads.php'
TRAIN_TAR, VAL_TAR = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'


@pytest.fixture
def make(tmp_path, monkeypatch, capsys) -> Callable[[str], DataSet]:
    return lambda name: DataSet.make(name, tmp_path, monkeypatch, capsys)


@pytest.fixture(params=TOOLS)
def data(request, make) -> DataSet:
    return make(request.param)


@pytest.fixture
def imagenet(make) -> DataSet:
    return make('imagenet')


@pytest.fixture
def coco(make) -> DataSet:
    return make('coco')


def test_official_archives_counts_and_checksums():
    found = {
        name: {part.path: (*(archive.name for archive in part.archives), part.count) for part in parts}
        for name, parts in OFFICIAL.items()
    }
    assert found['imagenet'] == {
        'train': (TRAIN_TAR, 1281167),
        'val': (VAL_TAR, 'ILSVRC2012_devkit_t12.tar.gz', 50000),
    }
    assert found['coco'] == {
        'train2017': ('train2017.zip', 118287),
        'val2017': ('val2017.zip', 5000),
        'annotations/instances_train2017.json': ('annotations_trainval2017.zip', 1),
        'annotations/instances_val2017.json': ('annotations_trainval2017.zip', 1),
    }
    assert found['ade20k'] == {
        f'{kind}/{side}': ('ADEChallengeData2016.zip', count)
        for kind in ('images', 'annotations')
        for side, count in (('training', 20210), ('validation', 2000))
    }
    assert {archive.name: archive.md5 for part in OFFICIAL['imagenet'] for archive in part.archives} == {
        TRAIN_TAR: '1d675b47d978889d74fa0da5fadfb00e',
        VAL_TAR: '29b22e2961454d5413ddabcf34fc5622',
        'ILSVRC2012_devkit_t12.tar.gz': 'fa75699e90414af021442c21a62c3abf',
    }
    official = TOOLS['imagenet'].WNIDS
    assert len(official) == 1000 and list(official) == sorted(official)


def test_the_folder_holds_the_files_and_a_second_call_needs_no_archive(data, capsys):
    assert data.run() == 0
    assert data.written() == data.files
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(f'{data.out / path}: {n} files' for path, n in COUNTS[data.name].items())

    before = {path: path.stat().st_mtime_ns for path in data.out.rglob('*')}
    assert data.run(data.src / 'gone', data.out) == 0
    assert {path: path.stat().st_mtime_ns for path in data.out.rglob('*')} == before
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f'{data.out} is complete (') and line.endswith('): nothing to do')


def stop_at(data: DataSet, at: int) -> None:
    """Interrupt a call half way in the file number ``at``."""
    assert data.interrupt(at, lambda: os.kill(os.getpid(), signal.SIGINT)) == 130


@pytest.mark.parametrize('at', [1, 4, 6])
def test_an_interrupted_run_is_continued(data, capsys, at):
    stop_at(data, at)
    sentence = 'stopped by SIGINT; the same command continues from here'
    assert capsys.readouterr().err == f'{data.name}.py: {sentence}\n'
    for part in data.tool.PARTS:  # a part that is there is whole
        found = [name for name in data.written() if name == part.path or name.startswith(part.path + '/')]
        assert len(found) in (0, part.count)
    assert data.resume() == len(data.files) - (at - 1)


def test_what_a_power_cut_left_empty_is_written_again(data):
    stop_at(data, 2)
    (written,) = data.out.glob('.*.partial/**/[!.]*.[jJ]*')
    written.write_bytes(b'')
    assert data.resume() == len(data.files)


def test_a_class_that_a_power_cut_left_with_an_empty_file_is_written_again(imagenet):
    stop_at(imagenet, len(imagenet.files))
    next((imagenet.out / '.imagenet.partial/train' / WNIDS[1]).iterdir()).write_bytes(b'')
    assert imagenet.resume() == 2 + 1  # the images of that class, and the one that was interrupted


def test_files_reach_the_disk_before_a_part_gets_its_name(data, monkeypatch):
    synced = []
    paths = [part.path for part in data.tool.PARTS]
    monkeypatch.setattr(os, 'sync', lambda: synced.append([p for p in paths if (data.out / p).exists()]))
    assert data.run() == 0
    assert synced == [paths[:index] for index in range(len(paths))]


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_with_what_is_missing(coco, capsys, number):
    archive = zipfile.ZipFile(coco.src / 'train2017.zip')
    sizes = [info.file_size for info in archive.infolist() if not info.is_dir()]

    def fail():
        raise OSError(number, os.strerror(number))

    assert coco.interrupt(4, fail) == 1  # the second image of train2017, after two of val2017
    assert capsys.readouterr().err == (
        f'coco.py: the disk of {coco.out} is full and train2017 needs {sum(sizes[1:]) / 1000:.1f} kB more: '
        'free some space, the same command then continues from here\n'
    )
    assert coco.resume() == len(coco.files) - 3


# Archives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, gone, page',
    [
        ('imagenet', ['ILSVRC2012_devkit_t12.tar.gz'], PAGE),
        ('ade20k', ['ADEChallengeData2016.zip'], 'http://sceneparsing.csail.mit.edu'),
        ('coco', ['val2017.zip', 'train2017.zip'], 'https://cocodataset.org/#download'),
    ],
)
def test_missing_archives_are_named_with_the_page_that_offers_them(make, name, gone, page):
    data = make(name)
    for archive in gone:
        (data.src / archive).unlink()
    names = ' and no '.join(gone)
    assert data.refusal() == f'{name}.py: {data.src} has no {names}: download what is missing from {page}'
    assert not data.out.exists()


@pytest.mark.parametrize('how', ['cut', 'changed'])
@pytest.mark.parametrize(
    'name, archive',
    [
        ('imagenet', TRAIN_TAR),
        ('imagenet', VAL_TAR),
        ('coco', 'train2017.zip'),
        ('ade20k', 'ADEChallengeData2016.zip'),
    ],
)
def test_a_damaged_archive_is_named_and_a_good_one_is_continued_with(make, name, archive, how):
    data = make(name)
    good = (data.src / archive).read_bytes()
    path = data.damage(archive, how)
    sentence = data.refusal()
    assert sentence.startswith(f'{name}.py: {path} is damaged')
    assert sentence.endswith(f'download it again from {data.tool.PARTS[0].archives[0].page}')
    visible = {item for item in data.written().items() if not item[0].startswith('.')}
    assert visible <= data.files.items()
    path.write_bytes(good)
    data.resume()


@pytest.mark.parametrize('name', [TRAIN_TAR, VAL_TAR])
def test_a_cut_tar_is_found_without_its_checksum(imagenet, name):
    imagenet.damage(name, 'cut')
    imagenet.accept()
    assert imagenet.refusal().startswith(f'imagenet.py: {imagenet.src / name} is damaged')


def test_checksums_are_compared_once_for_each_file(imagenet, monkeypatch):
    stop_at(imagenet, 2)
    with monkeypatch.context() as patch:
        patch.delattr(archives.hashlib, 'md5')
        stop_at(imagenet, 2)
    path = imagenet.src / TRAIN_TAR
    path.write_bytes(path.read_bytes()[:-1] + b'x')
    assert f'{path} is damaged: its MD5 is' in imagenet.refusal()


def test_an_archive_with_too_few_files_is_refused(coco):
    path = coco.src / 'train2017.zip'
    write_zip(path, {'train2017/000000000007.jpg': b'an image'})
    assert coco.refusal() == (
        f'coco.py: {path} holds 1 files for train2017 where the data set has 3: '
        'download it again from https://cocodataset.org/#download'
    )
    assert not (coco.out / 'train2017').exists()


@pytest.mark.parametrize('entry', ['../evil.jpg', '{outside}/evil.jpg', 'val2017/../../evil.jpg', 'link'])
def test_a_zip_entry_that_leads_out_of_the_folder_is_refused(coco, entry):
    outside = coco.out.parent
    info = zipfile.ZipInfo(entry.format(outside=outside))
    if entry == 'link':
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(coco.src / 'val2017.zip', 'a') as archive:
        archive.writestr(info, '/etc/passwd')
    reason = f'{coco.src}/val2017.zip is not the official archive: {info.filename} in it leads out of'
    assert reason in coco.refusal()
    assert coco.written() == {} and not (outside / 'evil.jpg').exists()


@pytest.mark.parametrize('kind', [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_a_tar_entry_that_leads_out_of_the_folder_is_refused(imagenet, kind):
    member = tarfile.TarInfo('../evil.JPEG' if kind == tarfile.REGTYPE else 'evil.JPEG')
    member.type, member.linkname = kind, '/etc/passwd'
    inner, path = imagenet.src / 'inner.tar', imagenet.src / TRAIN_TAR
    with tarfile.open(inner, 'w') as tar_file:
        tar_file.addfile(member)
    path.write_bytes(tar({f'{WNIDS[0]}.tar': inner.read_bytes()}))
    imagenet.accept()
    reason = f'{path} is not the official archive: {member.name} in it leads out of the folder'
    assert reason in imagenet.refusal()
    assert not list(imagenet.out.parent.rglob('evil*'))


# What is in the folder already -------------------------------------------------------------------


@pytest.mark.parametrize('name', ['mine.txt', 'deep/mine.txt', '.mine', '.deep/mine.txt'])
def test_foreign_files_are_named_and_stay(data, name):
    part = next(part for part in data.tool.PARTS if part.files)
    path = data.out / part.path / name
    path.parent.mkdir(parents=True)
    path.write_text('mine')
    shown = '.deep' if name.startswith('.deep') else name
    reason = f'{data.out / part.path} holds what is not of this data set ({shown}): remove it, or'
    assert reason in data.refusal()
    assert data.written() == {f'{part.path}/{name}': b'mine'}


def test_files_among_those_of_the_data_set_matter_and_others_do_not(data):
    mine = {'notes.txt': b'mine', 'test/000.jpg': b'mine'}
    for name, content in mine.items():
        (data.out / name).parent.mkdir(parents=True, exist_ok=True)
        (data.out / name).write_bytes(content)
    for part in data.tool.PARTS:
        if part.files:
            (data.out / part.path).mkdir(parents=True)
    assert data.run() == 0
    assert data.written() == data.files | mine
    among = data.out / next(iter(data.files))
    among.with_name('.DS_Store').write_text('mine')
    assert data.run() == 0
    among.with_name('copy.jpg').write_text('mine')
    assert 'copy.jpg): remove it, or give another folder' in data.refusal()


def test_a_part_of_another_size_is_named_and_stays(data):
    """Such as images that were made smaller, or those of an archive that was unpacked half by hand."""
    name = next(iter(data.files))
    (data.out / name).parent.mkdir(parents=True)
    (data.out / name).write_bytes(b'smaller')
    assert 'holds 1 files where the data set has' in data.refusal()
    assert data.written() == {name: b'smaller'}


# What reads the folder ---------------------------------------------------------------------------


def read_imagenet(out: Path) -> dict[str, int]:
    """The label of every image of both sides."""
    sides = [
        ImageNet(str(out), split=side, metainfo=dict(classes=WNIDS), pipeline=[]) for side in ('train', 'val')
    ]
    return {item['img_path']: item['gt_label'] for dataset in sides for item in dataset}


def test_mmpretrain_reads_imagenet_with_its_lists_and_without(imagenet):
    assert imagenet.run(imagenet.src, imagenet.out, '--meta') == 0
    assert (imagenet.out / 'meta/val.txt').read_text().splitlines() == [
        'n01440764/ILSVRC2012_val_00000002.JPEG 0',
        'n01440764/ILSVRC2012_val_00000003.JPEG 0',
        'n01443537/ILSVRC2012_val_00000004.JPEG 1',
        'n02119789/ILSVRC2012_val_00000001.JPEG 2',
    ]
    expected = {str(imagenet.out / name): WNIDS.index(name.split('/')[1]) for name in imagenet.files}
    assert read_imagenet(imagenet.out) == expected
    shutil.rmtree(imagenet.out / 'meta')
    assert read_imagenet(imagenet.out) == expected


def test_mmdet_reads_coco(coco):
    assert coco.run() == 0
    for side, count in (('train', 3), ('val', 2)):
        dataset = CocoDataset(
            data_root=str(coco.out),
            ann_file=f'annotations/instances_{side}2017.json',
            data_prefix=dict(img=f'{side}2017/'),
            metainfo=dict(classes=('person', 'car')),
            pipeline=[],
        )
        assert len(dataset) == count
        for item in dataset:
            path = Path(item['img_path'])
            assert path.read_bytes() == coco.files[str(path.relative_to(coco.out))]
            assert [instance['bbox_label'] for instance in item['instances']] == [1]


def test_mmseg_reads_ade20k(make):
    data = make('ade20k')
    assert data.run() == 0
    for side, count in (('training', 3), ('validation', 2)):
        prefix = dict(img_path=f'images/{side}', seg_map_path=f'annotations/{side}')
        dataset = ADE20KDataset(data_root=str(data.out), data_prefix=prefix, pipeline=[])
        assert len(dataset) == count
        for item in dataset:
            assert Path(item['img_path']).stem == Path(item['seg_map_path']).stem
            for path in (item['img_path'], item['seg_map_path']):
                assert Path(path).read_bytes() == data.files[str(Path(path).relative_to(data.out))]


@pytest.mark.parametrize(
    'spoil, fault',
    [
        (lambda out: shutil.rmtree(out / 'train' / WNIDS[0]), 'train lacks 1 of 3 classes (n01440764); '),
        (lambda out: shutil.rmtree(out / 'train' / WNIDS[0]), 'train has 3 images instead of 6'),
        (lambda out: shutil.rmtree(out / 'val'), 'val does not exist: move it away'),
        (lambda out: (out / 'train/.cache').mkdir(), 'train has 1 folders of no class (.cache)'),
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
def test_the_check_of_imagenet_names_what_is_wrong(imagenet, capsys, spoil, fault):
    assert imagenet.run() == 0
    capsys.readouterr()
    assert imagenet.run(imagenet.out, '--check') == 0
    assert capsys.readouterr().out == f'{imagenet.out} is complete: val 4, train 6\n'
    spoil(imagenet.out)
    sentence = imagenet.refusal(imagenet.out, '--check')
    assert f'{imagenet.out}/{fault}' in sentence
    assert sentence.endswith(f': move it away and unpack the archives of {PAGE} again')


def test_the_check_follows_the_lists_of_a_folder_without_classes(imagenet, capsys):
    assert imagenet.run(imagenet.out) == 2
    assert 'give SRC OUT, or OUT --check' in capsys.readouterr().err
    assert imagenet.run(imagenet.src, imagenet.out, '--meta') == 0
    for side in ('train', 'val'):
        for path in list((imagenet.out / side).glob('*/*')):
            path.rename(imagenet.out / side / path.name)
        for wnid in WNIDS:
            (imagenet.out / side / wnid).rmdir()
        listed = imagenet.out / f'meta/{side}.txt'
        lines = listed.read_text().splitlines(keepends=True)
        listed.write_text(''.join(line.split('/')[1] for line in lines))
    assert imagenet.run(imagenet.out, '--check') == 0
    (imagenet.out / 'train/n01443537_10.JPEG').unlink()
    reason = 'train has 1 missing or empty images (n01443537_10.JPEG): '
    assert reason in imagenet.refusal(imagenet.out, '--check')
