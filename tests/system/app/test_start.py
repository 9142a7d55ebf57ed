"""Pictures that the demo's page accepts, and its errors before it opens."""

import importlib
import io
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grootv.errors import UserError
from tests.tools.tiny_run import ROOT, write_config

pytest.importorskip('gradio', reason='gradio is not installed: make test-app')


@pytest.fixture
def app(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'demo'))
    return importlib.import_module('app')


@pytest.fixture
def viewer(app):
    return importlib.import_module('viewer')


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RED = Image.new('RGB', (6, 4), (200, 10, 20))


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header claims many pixels, without data."""
    chunks = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0), b'IDAT'
    parts = [struct.pack('>I', len(c) - 4) + c + struct.pack('>I', zlib.crc32(c)) for c in chunks]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'BMP'])
@pytest.mark.parametrize('mode', ['RGB', 'L', '1'])
def test_valid_picture_becomes_rgb(viewer, tmp_path, kind, mode):
    (tmp_path / 'file').write_bytes(saved(RED.convert(mode), kind))
    found = viewer.read_upload(str(tmp_path / 'file'))
    assert found.mode == 'RGB' and found.size == (6, 4)


def test_transparent_and_16_bit_pictures(viewer, tmp_path):
    deep = Image.fromarray(np.full((4, 6), 51400, np.uint16))
    for image in (RED.convert('RGBA'), RED.convert('P'), deep):
        image.save(tmp_path / 'file.png')
        found = np.asarray(viewer.read_upload(str(tmp_path / 'file.png')))
        assert found.shape == (4, 6, 3) and abs(int(found[0, 0, 0]) - 200) <= 4


def test_picture_is_turned_upright_and_scaled_down(viewer, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    (tmp_path / 'file').write_bytes(saved(RED.resize((3000, 1500)), 'JPEG', exif=exif))
    assert viewer.read_upload(str(tmp_path / 'file')).size == (512, 1024)


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'no picture',
        saved(RED, 'PNG')[:40],
        saved(RED.resize((600, 400)), 'JPEG')[:900],
        saved(RED, 'GIF'),
        saved(RED, 'TIFF'),
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        png_that_claims(2**31 - 1, 2**31 - 1),
    ],
    ids=['empty', 'text', 'cut PNG', 'cut JPEG', 'GIF', 'TIFF', 'SVG', 'bomb'],
)
def test_invalid_picture_gets_a_sentence(viewer, tmp_path, content):
    (tmp_path / 'file.png').write_bytes(content)
    with pytest.raises(UserError, match=r'^The file is damaged or no PNG, JPEG, WebP or BMP picture: choose'):
        viewer.read_upload(str(tmp_path / 'file.png'))


def test_large_pictures_and_files_are_refused(viewer, tmp_path):
    path = tmp_path / 'file.png'
    path.write_bytes(png_that_claims(6000, 5000))
    with pytest.raises(UserError, match=r'^The picture has 6000 x 5000 pixels, and 25 million are the limit'):
        viewer.read_upload(str(path))
    path.write_bytes(saved(RED, 'PNG') + bytes(viewer.MOST_BYTES))
    with pytest.raises(UserError, match=r'^The file has more than 10 MiB: save the picture smaller\.$'):
        viewer.read_upload(str(path))


def test_checkpoint_with_code_is_refused(app, tmp_path):
    torch.save(dict(state_dict=Path('x')), tmp_path / 'code.pth')
    with pytest.raises(UserError, match='holds more than weights'):
        app.load(write_config(tmp_path, tmp_path / 'nowhere'), tmp_path / 'code.pth')


def test_checkpoint_of_another_network_is_refused(app, tmp_path):
    torch.save(dict(weight=torch.zeros(1)), tmp_path / 'other.pth')
    with pytest.raises(UserError, match='checkpoint does not fit the model ImageClassifier'):
        app.load(write_config(tmp_path, tmp_path / 'nowhere'), tmp_path / 'other.pth')


def test_port_in_use_is_reported(app):
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f'--port {port} cannot be used'):
            app.listen('127.0.0.1', port)


def test_missing_demos_are_named(app, tmp_path, monkeypatch):
    monkeypatch.setattr(app, 'ROOT', tmp_path)
    with pytest.raises(
        UserError, match='run make demo, make demo-detection, make demo-segmentation, or give'
    ):
        app.offered([])
    with pytest.raises(UserError, match='give a CHECKPOINT for every CONFIG, got one'):
        app.offered(['one'])
