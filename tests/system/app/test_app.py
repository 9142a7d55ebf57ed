"""The demo's page in a headless Chromium, over tiny networks with random weights."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from urllib.parse import urlparse
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from grootv.visualization import network
from tests.tools.tiny_run import write_config, write_detection, write_segmentation

pytest.importorskip('gradio', reason='gradio is not installed: make test-app')
pytest.importorskip('selenium', reason='selenium is not installed: make test-app')
from tests.system.app.browser import PROGRAMS, SIZE, Page, opened, served, wait_for

pytestmark = pytest.mark.skipif(not all(map(which, PROGRAMS)), reason='no Chromium: make test-app')
WRITERS = dict(classification=write_config, detection=write_detection, segmentation=write_segmentation)


def write_network(folder: Path, task: str) -> list[Path]:
    """A tiny config, with two blocks in stage 2, and a checkpoint of its initial weights."""
    config = WRITERS[task](folder / task, folder / 'nowhere').rename(folder / f'{task}.py')
    config.write_text(config.read_text().replace('depths=[1, 1, 1, 1]', 'depths=[1, 1, 2, 1]'))
    cfg, checkpoint = Config.fromfile(config), folder / f'{task}/random.pth'
    meta = dict(dataset_meta=dict(network.test_set(cfg).metainfo))
    model = network.build_model(cfg, None)
    if task == 'detection':
        torch.nn.init.constant_(model.roi_head.bbox_head.fc_cls.bias[3:4], 10)  # sure of a 3, everywhere
    torch.save(dict(state_dict=model.state_dict(), meta=meta), checkpoint)
    return [config, checkpoint]


@pytest.fixture(scope='module')
def picture(tmp_path_factory) -> Path:
    """Noise around a bright bar, 64 x 64."""
    pixels = np.random.default_rng(0).integers(0, 120, (64, 64, 3), np.uint8)
    pixels[20:40, 8:56] += 120
    path = tmp_path_factory.mktemp('picture') / 'bar.png'
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope='module')
def page(tmp_path_factory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp('networks')
    pairs = [path for task in WRITERS for path in write_network(folder, task)]
    with served(*pairs) as address, opened(address) as page:
        yield page


def changed(page: Page, *places: str) -> Callable[[], bool]:
    """Whether the pictures of all places are others than now."""
    before = {place: page.picture(place) for place in places}
    return lambda: all(page.picture(place) not in ('', before[place]) for place in places)


def show(page: Page, picture: Path, kind: str = 'classification') -> None:
    """Upload a picture for a network, and wait until all is drawn."""
    page.clear()
    wait_for(lambda: not page.picture('affinities'), 'the end of the last picture')
    page.choose_network(kind)
    page.upload(picture)
    wait_for(lambda: page.picture('trees') and page.picture('affinities'), 'the pictures')


def wait_for_message(page: Page, part: str) -> None:
    wait_for(lambda: part in page.message(), part)


def test_upload_click_and_choose(page, picture):
    show(page, picture)
    assert page.message() == '32 x 32 pixels reach the network; row 16, column 16 is marked.'
    classes = wait_for(lambda: page.all('#scores .label .text'), 'the prediction')
    assert len({element.text for element in classes} & set('0123456789')) == 5
    assert not page.picture('drawn')

    first, trees, done = page.picture('affinities'), page.picture('trees'), changed(page, 'affinities')
    page.click_picture(24.5 / 32, 8.5 / 32)
    wait_for(done, 'another affinity')
    wait_for_message(page, 'row 8, column 24 is marked')
    assert page.picture('trees') == trees

    clicked, done = page.picture('affinities'), changed(page, 'trees', 'affinities')
    page.choose('stage', 2)
    wait_for(done, 'the pictures of stage 2')
    assert 'row 8, column 24' in page.message()
    done = changed(page, 'trees', 'affinities')
    page.choose('block', 1)
    wait_for(done, 'the pictures of block 1')
    page.choose('stage', 0)
    wait_for(lambda: page.picture('affinities') == clicked and page.picture('trees') == trees, 'stage 0')

    page.click_picture(16.5 / 32, 16.5 / 32)
    wait_for(lambda: page.picture('affinities') == first, 'the first affinity')


@pytest.mark.parametrize('kind', ['detection', 'segmentation'])
def test_prediction_is_drawn(page, picture, kind):
    show(page, picture, kind)
    drawn = wait_for(lambda: page.picture('drawn'), 'the prediction')
    assert not [element for element in page.all('#scores') if element.is_displayed()]
    with urlopen(drawn) as file:
        shown = np.asarray(Image.open(file).convert('RGB'))
    assert shown.shape == (512, 512, 3)
    original = np.asarray(Image.open(picture).convert('RGB')).repeat(8, axis=0).repeat(8, axis=1)
    assert (shown != original).any()


def test_wide_picture_is_clicked_and_a_broken_one_gets_a_sentence(page, picture, tmp_path):
    Image.radial_gradient('L').resize((200, 100)).save(tmp_path / 'wide.jpg')
    show(page, tmp_path / 'wide.jpg', 'detection')
    assert page.message() == '64 x 128 pixels reach the network; row 32, column 64 is marked.'
    page.click_picture(100.5 / 128, 10.5 / 64)
    wait_for_message(page, 'row 10, column 100 is marked')

    (tmp_path / 'cut.png').write_bytes(picture.read_bytes()[:2000])
    page.upload(tmp_path / 'cut.png')
    wait_for_message(page, 'The file is damaged or no PNG, JPEG, WebP or BMP picture: choose another.')
    assert not page.picture('picture') and not page.picture('trees') and not page.picture('affinities')
    for name, content, part in (
        ('text.txt', b'no picture', 'Invalid file type'),
        ('huge.png', bytes(10 * 2**20 + 1), 'maximum'),
    ):
        (tmp_path / name).write_bytes(content)
        page.upload(tmp_path / name)
        wait_for(lambda part=part: any(part in toast.text for toast in page.all('.toast-body')), 'the toast')


def test_page_fits_the_screen_and_neither_requests_nor_serves_anything_elsewhere(page, picture):
    show(page, picture)
    wide, tall, about = page.driver.execute_script(
        'const page = document.documentElement; return [page.scrollWidth, page.scrollHeight,'
        ' [...document.querySelectorAll("#about, #about div")].map(getComputedStyle).map(s => s.overflowY)]'
    )
    assert wide <= SIZE[0] and tall <= SIZE[1]
    assert set(about) == {'visible'}  # no scroll bars next to the formula
    urls, own = page.requested(), urlparse(page.address)
    assert len(urls) > 10
    assert {urlparse(url).netloc for url in urls} == {own.netloc}
    assert own.hostname == '127.0.0.1'
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.2', own.port), timeout=5)
