"""The converters of official archives, on miniatures with the official structure."""

import errno
import os
import re
import shutil
import signal
import stat
import tarfile
import zipfile
from collections.abc import Callable

import pytest
from mmpretrain.datasets import ImageNet

from tests.data.tiny_archives import OFFICIAL, TOOLS, WNIDS, DataSet, archives, tar, write_zip

PAGE = 'https://image-net.org/challenges/LSVRC/2012/2012-downloads.php'
TRAIN_TAR, VAL_TAR = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
ADE_ZIP = 'ADEChallengeData2016.zip'


@pytest.fixture
def make(tmp_path, monkeypatch) -> Callable[[str], DataSet]:
    return lambda name: DataSet(name, tmp_path, monkeypatch)


@pytest.fixture(params=TOOLS)
def data(request, make) -> DataSet:
    return make(request.param)


@pytest.fixture
def imagenet(make) -> DataSet:
    return make('imagenet')


@pytest.fixture
def coco(make) -> DataSet:
    return make('coco')


def interrupt(data: DataSet, at: int) -> str:
    """Stderr of a call that is interrupted half way in the file number ``at``."""
    error, count = data.run_until(at, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert count == at
    return error


def test_official_counts_and_checksums():
    assert {name: [part.count for part in parts] for name, parts in OFFICIAL.items()} == dict(
        imagenet=[50_000, 1_281_167], coco=[5_000, 118_287, 1, 1], ade20k=[2_000, 20_210, 2_000, 20_210]
    )
    assert OFFICIAL['imagenet'][1].archives[0].md5 == '1d675b47d978889d74fa0da5fadfb00e'
    official = TOOLS['imagenet'].WNIDS
    assert len(official) == 1000 and list(official) == sorted(official)


def test_the_folder_holds_the_files_and_a_second_call_needs_no_archive(data, capsys):
    assert data.run() == ''
    assert data.written() == data.files
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f'{data.out / part.path}: {part.count} files' for part in data.tool.PARTS]

    before = {path: path.stat().st_mtime_ns for path in data.out.rglob('*')}
    assert data.run(data.src / 'gone', data.out) == ''
    assert {path: path.stat().st_mtime_ns for path in data.out.rglob('*')} == before
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f'{data.out} is complete (') and line.endswith('): nothing to do')


@pytest.mark.parametrize('at', [1, 6])
def test_an_interrupted_run_is_continued(data, at):
    sentence = f'{data.name}.py: stopped by SIGINT; the same command continues from here\n'
    assert interrupt(data, at) == sentence
    for part in data.tool.PARTS:  # a part that is there is whole
        found = [name for name in data.written() if name == part.path or name.startswith(part.path + '/')]
        assert len(found) in (0, part.count)
    assert data.resume() == len(data.files) - (at - 1)


@pytest.mark.parametrize(
    'name, at, place, lost',
    [('coco', 2, 'val2017', 1), ('imagenet', 10, f'train/{WNIDS[1]}', 2)],  # a class is written as a whole
)
def test_what_a_power_cut_left_empty_is_written_again(make, name, at, place, lost):
    data = make(name)
    interrupt(data, at)
    next((data.out / f'.{name}.partial' / place).glob('[!.]*')).write_bytes(b'')
    assert data.resume() == len(data.files) - (at - 1) + lost


def test_files_reach_the_disk_before_a_part_gets_its_name(coco, monkeypatch):
    synced = []
    paths = [part.path for part in coco.tool.PARTS]
    monkeypatch.setattr(os, 'sync', lambda: synced.append([p for p in paths if (coco.out / p).exists()]))
    assert coco.run() == ''
    assert synced == [paths[:index] for index in range(len(paths))]


def test_a_full_disk_is_reported_with_what_is_missing(coco):
    def fail():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert coco.run_until(4, fail)[0] == (  # in the second image of train2017, after two of val2017
        f'coco.py: the disk of {coco.out} is full and train2017 needs 2.0 kB more: '
        'free some space, the same command then continues from here\n'
    )
    assert coco.resume() == len(coco.files) - 3


# Archives ----------------------------------------------------------------------------------------


def test_missing_archives_are_named_with_the_page_that_offers_them(coco):
    for archive in ('val2017.zip', 'train2017.zip'):
        (coco.src / archive).unlink()
    assert coco.run() == (
        f'coco.py: {coco.src} has no val2017.zip and no train2017.zip: '
        'download what is missing from https://cocodataset.org/#download\n'
    )
    assert not coco.out.exists()


@pytest.mark.parametrize(
    'name, archive, how, checksum',
    [
        ('imagenet', TRAIN_TAR, 'cut', False),
        ('imagenet', TRAIN_TAR, 'changed', True),
        ('imagenet', VAL_TAR, 'cut', False),
        ('coco', 'train2017.zip', 'cut', False),
        ('ade20k', ADE_ZIP, 'changed', False),
        ('coco', 'val2017.zip', 'encrypted', False),
        ('ade20k', ADE_ZIP, 'compressed in an unknown way', False),
    ],
)
def test_a_damaged_archive_is_named_and_a_good_one_is_continued_with(make, name, archive, how, checksum):
    data = make(name)
    path = data.src / archive
    content = bytearray(good := path.read_bytes())
    if how == 'cut':
        del content[len(content) // 2 :]
    elif how != 'changed':
        # Bit 0 of the flags, or the method, in every local header and in the central directory.
        offset, value = (0, 1) if how == 'encrypted' else (2, 99)
        for mark, place in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
            for found in re.finditer(re.escape(mark), good):
                content[found.start() + place + offset] = value
    else:
        content[content.rindex(next(image for image in data.files.values() if image in content))] ^= 1
    path.write_bytes(content)
    if not checksum:
        data.accept()
    sentence = data.run()
    assert sentence.startswith(f'{name}.py: {path} is damaged') and sentence.count('\n') == 1
    assert sentence.endswith(f'download it again from {data.tool.PARTS[0].archives[0].page}\n')
    visible = {item for item in data.written().items() if not item[0].startswith('.')}
    assert visible <= data.files.items()
    path.write_bytes(good)
    data.accept()
    data.resume()


def test_checksums_are_compared_once_for_each_file(imagenet, monkeypatch):
    interrupt(imagenet, 2)
    with monkeypatch.context() as patch:
        patch.delattr(archives.hashlib, 'md5')
        interrupt(imagenet, 2)
    path = imagenet.src / TRAIN_TAR
    path.write_bytes(path.read_bytes()[:-1] + b'x')
    assert f'{path} is damaged: its MD5 is' in imagenet.run()


def test_an_archive_with_too_few_files_is_refused(coco):
    path = coco.src / 'train2017.zip'
    write_zip(path, {'train2017/000000000007.jpg': b'an image'})
    assert f'{path} holds 1 files for train2017 where the data set has 3: download it again' in coco.run()
    assert not (coco.out / 'train2017').exists()


@pytest.mark.parametrize('entry', ['../evil.jpg', '/evil.jpg', 'val2017/../../evil.jpg', 'link'])
def test_a_zip_entry_that_leads_out_of_the_folder_is_refused(coco, entry):
    info = zipfile.ZipInfo(entry)
    if entry == 'link':
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(coco.src / 'val2017.zip', 'a') as archive:
        archive.writestr(info, '/etc/passwd')
    reason = f'{coco.src}/val2017.zip is not the official archive: {info.filename} in it leads out of'
    assert reason in coco.run()
    assert coco.written() == {} and not (coco.out.parent / 'evil.jpg').exists()


@pytest.mark.parametrize('kind', [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_tar_entry_that_leads_out_of_the_folder_is_refused(imagenet, kind):
    member = tarfile.TarInfo('../evil.JPEG' if kind == tarfile.REGTYPE else 'evil.JPEG')
    member.type, member.linkname = kind, '/etc/passwd'
    inner, path = imagenet.src / 'inner.tar', imagenet.src / TRAIN_TAR
    with tarfile.open(inner, 'w') as tar_file:
        tar_file.addfile(member)
    path.write_bytes(tar({f'{WNIDS[0]}.tar': inner.read_bytes()}))
    imagenet.accept()
    reason = f'{path} is not the official archive: {member.name} in it leads out of the folder'
    assert reason in imagenet.run()
    assert not list(imagenet.out.parent.rglob('evil*'))


def test_foreign_files_are_named_and_stay(coco):
    folder, deep = coco.out / 'train2017', coco.out / 'train2017/deep'
    deep.mkdir(parents=True)
    for path in (coco.out / 'notes.txt', deep / 'mine.txt'):
        path.write_bytes(b'mine')
    reason = f'{folder} holds what is not of this data set (deep/mine.txt): remove it, or'
    assert reason in coco.run()
    assert coco.written() == {'notes.txt': b'mine', 'train2017/deep/mine.txt': b'mine'}

    (deep / 'mine.txt').rename(folder / '.mine')
    deep.rmdir()
    assert '/train2017 holds what is not of this data set (.mine)' in coco.run()
    (folder / '.mine').unlink()  # what comes takes the place of an empty folder
    assert coco.run() == ''
    (folder / '.DS_Store').touch()
    assert coco.run() == ''
    (folder / 'copy.jpg').touch()
    assert 'copy.jpg): remove it, or give another folder' in coco.run()
    for name in ('copy.jpg', '000000000008.jpg', '000000000009.jpg'):
        (folder / name).unlink()
    assert f'{folder} holds 1 files where the data set has 3: move it away' in coco.run()


# What reads the folder ---------------------------------------------------------------------------


def test_mmpretrain_reads_imagenet_with_its_lists_and_without(imagenet):
    assert imagenet.run(imagenet.src, imagenet.out, '--meta') == ''
    expected = {str(imagenet.out / name): WNIDS.index(name.split('/')[1]) for name in imagenet.files}
    for _ in range(2):
        options = dict(metainfo=dict(classes=WNIDS), pipeline=[], serialize_data=False)
        sides = [ImageNet(str(imagenet.out), split=side, **options) for side in ('train', 'val')]
        assert {item['img_path']: item['gt_label'] for side in sides for item in side} == expected
        shutil.rmtree(imagenet.out / 'meta', ignore_errors=True)


def test_the_check_of_imagenet_names_what_is_wrong(imagenet, capsys):
    out = imagenet.out
    assert 'give SRC OUT, or OUT --check' in imagenet.run(out)
    assert imagenet.run() == ''
    capsys.readouterr()
    assert imagenet.run(out, '--check') == ''
    assert capsys.readouterr().out == f'{out} is complete: val 4, train 6\n'

    shutil.rmtree(out / 'train' / WNIDS[0])
    (out / 'train/.cache').mkdir()
    image = out / 'val/n01443537/ILSVRC2012_val_00000004.JPEG'
    image.write_bytes(b'')
    assert imagenet.run(out, '--check') == (
        f'imagenet.py: {out}/val has 1 missing or empty images '
        f'(n01443537/ILSVRC2012_val_00000004.JPEG); {out}/train lacks 1 of 3 classes (n01440764); '
        f'{out}/train has 1 folders of no class (.cache); {out}/train has 3 images '
        f'instead of 6: move it away and unpack the archives of {PAGE} again\n'
    )
    image.unlink()
    assert '/val lacks 1 images (ILSVRC2012_val_00000004.JPEG); ' in imagenet.run(out, '--check')
    shutil.rmtree(out / 'val')
    assert f'{out}/val does not exist; ' in imagenet.run(out, '--check')


def test_the_check_follows_the_lists_of_a_folder_without_classes(imagenet):
    train, listed = imagenet.out / 'train', imagenet.out / 'meta/train.txt'
    assert imagenet.run(imagenet.src, imagenet.out, '--meta') == ''
    (train / WNIDS[1]).rename(train / 'other')
    listed.write_text(listed.read_text().replace(f'{WNIDS[1]}/', 'other/'))
    assert imagenet.run(imagenet.out, '--check') == ''
    (train / 'other/n01443537_10.JPEG').unlink()
    reason = 'train has 1 missing or empty images (other/n01443537_10.JPEG): '
    assert reason in imagenet.run(imagenet.out, '--check')
