"""Pictures that the demo's page accepts, and its errors before it opens."""

import importlib
import io
import socket
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grootv.errors import UserError
from tests.tools.tiny_run import ROOT, write_config

pytest.importorskip('gradio', reason='gradio is not installed: make test-app')
RED = Image.new('RGB', (6, 4), (200, 10, 20))


@pytest.fixture
def app(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'demo'))
    return importlib.import_module('app')


@pytest.fixture
def read(app, tmp_path):
    """What the page makes of an uploaded file's content."""

    def read(content: bytes) -> Image.Image:
        (tmp_path / 'file').write_bytes(content)
        return importlib.import_module('viewer').read_upload(str(tmp_path / 'file'))

    return read


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header claims many pixels, without data."""
    chunks = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0), b'IDAT'
    parts = [struct.pack('>I', len(c) - 4) + c + struct.pack('>I', zlib.crc32(c)) for c in chunks]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'BMP'])
@pytest.mark.parametrize('mode', ['RGB', 'L', '1'])
def test_valid_picture_becomes_rgb(read, kind, mode):
    found = read(saved(RED.convert(mode), kind))
    assert found.mode == 'RGB' and found.size == (6, 4)


def test_transparent_and_16_bit_pictures_keep_their_colour(read):
    deep = Image.fromarray(np.full((4, 6), 51400, np.uint16))
    for image in (RED.convert('RGBA'), RED.convert('P'), deep):
        found = np.asarray(read(saved(image, 'PNG')))
        assert found.shape == (4, 6, 3) and abs(int(found[0, 0, 0]) - 200) <= 4


def test_picture_is_turned_upright_and_scaled_down(read):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    assert read(saved(RED.resize((3000, 1500)), 'JPEG', exif=exif)).size == (512, 1024)


INVALID = r'^The file is damaged or no PNG, JPEG, WebP or BMP picture: choose'


@pytest.mark.parametrize(
    'content, sentence',
    [
        (b'', INVALID),
        (b'no picture', INVALID),
        (saved(RED, 'PNG')[:40], INVALID),
        (saved(RED.resize((600, 400)), 'JPEG')[:900], INVALID),
        (saved(RED, 'GIF'), INVALID),
        (saved(RED, 'TIFF'), INVALID),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', INVALID),
        (png_that_claims(2**31 - 1, 2**31 - 1), INVALID),
        (png_that_claims(6000, 5000), r'^The picture has 6000 x 5000 pixels, and 25 million are the limit'),
        (saved(RED, 'PNG') + bytes(10 * 2**20), r'^The file has more than 10 MiB: save the picture smaller'),
    ],
    ids=['empty', 'text', 'cut PNG', 'cut JPEG', 'GIF', 'TIFF', 'SVG', 'bomb', 'pixels', 'bytes'],
)
def test_invalid_or_large_picture_gets_a_sentence(read, content, sentence):
    with pytest.raises(UserError, match=sentence):
        read(content)


@pytest.mark.parametrize(
    'checkpoint, sentence',
    [
        (dict(state_dict=Path('x')), 'holds more than weights'),
        (dict(weight=torch.zeros(1)), 'checkpoint does not fit the model ImageClassifier'),
    ],
)
def test_checkpoint_with_code_or_of_another_network_is_refused(app, tmp_path, checkpoint, sentence):
    torch.save(checkpoint, tmp_path / 'other.pth')
    with pytest.raises(UserError, match=sentence):
        app.load(write_config(tmp_path, tmp_path / 'nowhere'), tmp_path / 'other.pth')


def test_port_in_use_and_missing_demos_are_named(app, tmp_path, monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f'--port {port} cannot be used'):
            app.listen('127.0.0.1', port)
    monkeypatch.setattr(app, 'ROOT', tmp_path)
    demos = 'run make demo, make demo-detection, make demo-segmentation, or give'
    with pytest.raises(UserError, match=demos):
        app.offered([])
    with pytest.raises(UserError, match='give a CHECKPOINT for every CONFIG, got one'):
        app.offered(['one'])


def test_network_that_takes_too_long_gets_a_sentence(app, monkeypatch):
    viewer, end = importlib.import_module('viewer'), threading.Event()
    monkeypatch.setattr(viewer, 'TIME_LIMIT', 0.1)
    monkeypatch.setattr(viewer.Viewer, '_analyse', lambda *_: end.wait(20))
    with pytest.raises(UserError, match=r'takes longer than 0\.1 seconds'):
        viewer.Viewer({}).analyse('network', 'picture.png')
    end.set()
