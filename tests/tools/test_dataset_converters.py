"""The converters of official archives, on miniatures with the official structure."""

import errno
import multiprocessing
import os
import signal
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from mmdet.datasets import CocoDataset
from mmseg.datasets import ADE20KDataset

from tests.tools.tiny_archives import COUNTS, OFFICIAL, TOOLS, Copies, DataSet, sentence, write_zip

IMAGENET = 'https://image-net.org/challenges/LSVRC/2012/2012-downloads.php'


@pytest.fixture
def make(tmp_path, monkeypatch) -> Callable[[str], DataSet]:
    return lambda name: DataSet.make(name, tmp_path, monkeypatch)


@pytest.fixture(params=TOOLS)
def data(request, make) -> DataSet:
    return make(request.param)


@pytest.fixture
def told(capsys) -> Callable[[], str]:
    return lambda: sentence(capsys)


def test_the_official_archives_and_their_counts():
    found = {
        name: {part.path: ([archive.name for archive in part.archives], part.count) for part in parts}
        for name, parts in OFFICIAL.items()
    }
    assert found['imagenet'] == {
        'train': (['ILSVRC2012_img_train.tar'], 1281167),
        'val': (['ILSVRC2012_img_val.tar', 'ILSVRC2012_devkit_t12.tar.gz'], 50000),
    }
    assert found['coco'] == {
        'train2017': (['train2017.zip'], 118287),
        'val2017': (['val2017.zip'], 5000),
        'annotations/instances_train2017.json': (['annotations_trainval2017.zip'], 1),
        'annotations/instances_val2017.json': (['annotations_trainval2017.zip'], 1),
    }
    archive = ['ADEChallengeData2016.zip']
    assert found['ade20k'] == {
        'images/training': (archive, 20210),
        'images/validation': (archive, 2000),
        'annotations/training': (archive, 20210),
        'annotations/validation': (archive, 2000),
    }


def test_the_folder_holds_the_files_and_nothing_else(data, capsys):
    assert data.run() == 0
    assert data.written() == data.files
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(f'{data.out / path}: {n} files' for path, n in COUNTS[data.name].items())


def test_a_second_call_writes_nothing_and_needs_no_archive(data, capsys):
    assert data.run() == 0
    before = {path: path.stat().st_mtime_ns for path in data.out.rglob('*')}
    capsys.readouterr()
    assert data.run(data.src / 'gone', data.out) == 0
    assert {path: path.stat().st_mtime_ns for path in data.out.rglob('*')} == before
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f'{data.out} is complete (') and line.endswith('): nothing to do')


@pytest.mark.parametrize('stop', [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize('at', [1, 4, 6])
def test_an_interrupted_run_is_gone_on_with(data, told, monkeypatch, stop, at):
    with monkeypatch.context() as patch:
        Copies(patch, at, lambda: os.kill(os.getpid(), stop))
        if stop == signal.SIGINT:
            assert data.run() == 128 + stop
            assert told() == f'{data.name}.py: stopped by SIGINT; the same command goes on from here'
        else:
            process = multiprocessing.get_context('fork').Process(target=data.run)
            process.start()
            process.join(30)
            assert process.exitcode == -stop
    for part in data.tool.PARTS:  # a part that is there is whole
        there = [name for name in data.written() if name == part.path or name.startswith(part.path + '/')]
        assert len(there) in (0, part.count)

    copies = Copies(monkeypatch)
    assert data.run() == 0
    assert data.written() == data.files
    assert copies.count == len(data.files) - (at - 1)


def test_a_file_that_a_power_cut_left_empty_is_written_again(data, monkeypatch):
    with monkeypatch.context() as patch:
        Copies(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert data.run() == 130
    written = [path for path in data.out.glob('.*.partial/**/[!.]*') if path.suffix in ('.jpg', '.JPEG')]
    assert len(written) == 1
    written[0].write_bytes(b'')
    assert data.run() == 0
    assert data.written() == data.files


@pytest.mark.parametrize(
    'name, gone, page',
    [
        ('imagenet', 'ILSVRC2012_devkit_t12.tar.gz', IMAGENET),
        ('imagenet', 'ILSVRC2012_img_train.tar', IMAGENET),
        ('coco', 'annotations_trainval2017.zip', 'https://cocodataset.org/#download'),
        ('ade20k', 'ADEChallengeData2016.zip', 'http://sceneparsing.csail.mit.edu'),
    ],
)
def test_a_missing_archive_is_named_with_the_page_that_offers_it(make, told, name, gone, page):
    data = make(name)
    (data.src / gone).unlink()
    assert data.run() == 1
    assert told() == f'{name}.py: {data.src} has no {gone}: download what is missing from {page}'
    assert not data.out.exists()


def test_all_missing_archives_are_named(make, told, tmp_path):
    data = make('coco')
    assert data.run(tmp_path / 'nowhere', data.out) == 1
    assert 'has no val2017.zip and no train2017.zip and no annotations_trainval2017.zip: ' in told()


def test_an_archive_is_not_needed_for_what_is_there(make):
    data = make('coco')
    assert data.run() == 0
    (data.out / 'annotations/instances_val2017.json').unlink()
    for name in ('train2017.zip', 'val2017.zip'):
        (data.src / name).unlink()
    assert data.run() == 0
    assert data.written() == data.files


@pytest.mark.parametrize('how', ['cut', 'changed'])
@pytest.mark.parametrize(
    'name, archive',
    [
        ('imagenet', 'ILSVRC2012_img_train.tar'),
        ('imagenet', 'ILSVRC2012_img_val.tar'),
        ('coco', 'train2017.zip'),
        ('ade20k', 'ADEChallengeData2016.zip'),
    ],
)
def test_a_damaged_archive_is_named_and_a_good_one_goes_on(make, told, name, archive, how):
    data = make(name)
    good = (data.src / archive).read_bytes()
    path = data.damage(archive, how)
    assert data.run() == 1
    sentence = told()
    assert sentence.startswith(f'{name}.py: {path} is damaged')
    assert sentence.endswith(f'download it again from {data.tool.PARTS[0].archives[0].page}')
    assert data.written().items() & data.files.items() == {
        item for item in data.written().items() if not item[0].startswith('.')
    }
    path.write_bytes(good)
    data.accept()
    assert data.run() == 0
    assert data.written() == data.files


def test_an_archive_with_too_few_files_is_refused(make, told):
    data = make('coco')
    path = data.src / 'train2017.zip'
    write_zip(path, {'train2017/000000000007.jpg': b'an image'})
    assert data.run() == 1
    assert told() == (
        f'coco.py: {path} holds 1 files for train2017 where the data set has 3: '
        'download it again from https://cocodataset.org/#download'
    )
    assert not (data.out / 'train2017').exists()


@pytest.mark.parametrize('name', ['mine.txt', 'deep/mine.txt', '.mine', '.deep/mine.txt'])
def test_foreign_files_are_named_and_stay(data, told, name):
    part = next(part for part in data.tool.PARTS if part.files)
    path = data.out / part.path / name
    path.parent.mkdir(parents=True)
    path.write_text('mine')
    assert data.run() == 1
    shown = '.deep' if name.startswith('.deep') else name
    assert f'{data.out / part.path} holds what is not of this data set ({shown}): remove it, or' in told()
    assert data.written() == {f'{part.path}/{name}': b'mine'}


def test_a_foreign_file_among_those_of_the_data_set_is_named(data, told):
    assert data.run() == 0
    path = (data.out / next(iter(data.files))).with_name('copy.jpg')
    path.write_text('mine')
    assert data.run() == 1
    assert 'copy.jpg): remove it, or give another folder' in told()
    assert len(data.written()) == len(data.files) + 1


def test_files_beside_the_parts_and_hidden_ones_are_no_matter(data):
    mine = {'notes.txt': b'mine', 'test/000.jpg': b'mine'}
    for name, content in mine.items():
        (data.out / name).parent.mkdir(parents=True, exist_ok=True)
        (data.out / name).write_bytes(content)
    assert data.run() == 0
    assert data.written() == data.files | mine
    (data.out / next(iter(data.files))).with_name('.DS_Store').write_text('mine')
    assert data.run() == 0


def test_a_part_of_another_size_is_named_and_stays(data, told):
    """Such as images that were made smaller, or those of an archive that was unpacked half by hand."""
    name = next(iter(data.files))
    (data.out / name).parent.mkdir(parents=True)
    (data.out / name).write_bytes(b'smaller')
    assert data.run() == 1
    assert 'holds 1 files where the data set has' in told()
    assert data.written() == {name: b'smaller'}


def test_empty_folders_are_filled(data):
    for part in data.tool.PARTS:
        if part.files:
            (data.out / part.path).mkdir(parents=True)
    assert data.run() == 0
    assert data.written() == data.files


@pytest.mark.parametrize('entry', ['../evil.jpg', '{outside}/evil.jpg', 'val2017/../../evil.jpg', 'link'])
def test_a_zip_entry_that_leads_out_of_the_folder_is_refused(make, told, entry):
    data = make('coco')
    outside = data.out.parent
    entry = entry.format(outside=outside)
    info = zipfile.ZipInfo(entry)
    if entry == 'link':
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(data.src / 'val2017.zip', 'a') as archive:
        archive.writestr(info, '/etc/passwd')
    assert data.run() == 1
    sentence = told()
    assert f'{data.src}/val2017.zip is not the official archive: {entry} in it leads out of' in sentence
    assert data.written() == {}
    assert not (outside / 'evil.jpg').exists()


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_and_nothing_is_lost(data, told, monkeypatch, number):
    def fail():
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        Copies(patch, 4, fail)
        assert data.run() == 1
    sentence = told()
    assert sentence.startswith(f'{data.name}.py: the disk of {data.out} is full and ')
    assert sentence.endswith(' more: free some space, the same command then goes on from here')
    copies = Copies(monkeypatch)
    assert data.run() == 0
    assert data.written() == data.files
    assert copies.count == len(data.files) - 3


def test_a_full_disk_is_told_with_what_is_missing(make, told, monkeypatch):
    data = make('coco')
    archive = zipfile.ZipFile(data.src / 'train2017.zip')
    sizes = [info.file_size for info in archive.infolist() if not info.is_dir()]

    def fail():
        raise OSError(errno.ENOSPC, 'No space left on device')

    Copies(monkeypatch, 4, fail)  # the second image of train2017, after two of val2017
    assert data.run() == 1
    assert f'is full and train2017 needs {sum(sizes[1:]) / 1000:.1f} kB more: free some space' in told()


def test_files_reach_the_disk_before_a_part_gets_its_name(data, monkeypatch):
    synced = []
    monkeypatch.setattr(
        os, 'sync', lambda: synced.append([p.path for p in data.tool.PARTS if (data.out / p.path).exists()])
    )
    assert data.run() == 0
    paths = [part.path for part in data.tool.PARTS]
    assert synced == [paths[:index] for index in range(len(paths))]


def test_coco_is_read_by_mmdet(make):
    data = make('coco')
    assert data.run() == 0
    for side, count in (('train', 3), ('val', 2)):
        dataset = CocoDataset(
            data_root=str(data.out),
            ann_file=f'annotations/instances_{side}2017.json',
            data_prefix=dict(img=f'{side}2017/'),
            metainfo=dict(classes=('person', 'car')),
            pipeline=[],
        )
        assert len(dataset) == count
        for item in dataset:
            assert (
                Path(item['img_path']).read_bytes() == data.files[f'{side}2017/{Path(item["img_path"]).name}']
            )
            assert [instance['bbox_label'] for instance in item['instances']] == [1]


def test_ade20k_is_read_by_mmseg(make):
    data = make('ade20k')
    assert data.run() == 0
    for side, count in (('training', 3), ('validation', 2)):
        dataset = ADE20KDataset(
            data_root=str(data.out),
            data_prefix=dict(img_path=f'images/{side}', seg_map_path=f'annotations/{side}'),
            pipeline=[],
        )
        assert len(dataset) == count
        for item in dataset:
            assert Path(item['img_path']).stem == Path(item['seg_map_path']).stem
            for path in (item['img_path'], item['seg_map_path']):
                assert Path(path).read_bytes() == data.files[str(Path(path).relative_to(data.out))]
