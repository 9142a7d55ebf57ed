"""Calls that a visitor could send to the page without a browser."""

import json
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

pytest.importorskip('gradio', reason='gradio is not installed: make test-app')
pytest.importorskip('selenium', reason='selenium is not installed: make test-app')
from tests.system.app.browser import served
from tests.system.app.test_app import write_network

SECRET = 'not for visitors'


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    with served(*write_network(tmp_path_factory.mktemp('network'), 'classification')) as address:
        yield address


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ('secret.png', 'secret.svg'):
        (tmp_path / name).write_text(SECRET)
    return tmp_path


def request(url: str, content: object = None, **headers: str) -> str:
    data = None if content is None else json.dumps(content).encode()
    with urlopen(Request(url, data, {'Content-Type': 'application/json', **headers}), timeout=60) as answer:
        return answer.read().decode()


def call(address: str, function: int, values: list) -> str:
    """Everything that the page answers to a call of one of its functions."""
    body = dict(data=values, fn_index=function, session_hash='visitor', event_data=None, trigger_id=None)
    try:
        request(f'{address}/gradio_api/queue/join?', body)
        with urlopen(f'{address}/gradio_api/queue/data?session_hash=visitor', timeout=60) as stream:
            lines = []
            for line in stream:
                lines.append(line.decode())
                if 'process_completed' in lines[-1] or 'close_stream' in lines[-1]:
                    break
            return ''.join(lines)
    except HTTPError as error:
        return f'"success":false {error.code}'


@pytest.mark.parametrize('place', ['checkpoint', 'picture'])
@pytest.mark.parametrize(
    'path', ['{folder}/secret.png', '{folder}/secret.svg', '{address}/theme.css', '/dev/zero']
)
def test_no_file_of_the_server_is_read(address, folder, place, path):
    path = path.format(address=address, folder=folder)
    named = dict(path=path, meta=dict(_type='gradio.FileData'), orig_name='x.png')
    config = json.loads(request(f'{address}/config'))
    (name,) = (part['props']['value'] for part in config['components'] if part['type'] == 'dropdown')
    values = [named, None, 0, 0, None] if place == 'checkpoint' else [name, named, 0, 0, None]
    for number, function in enumerate(config['dependencies']):
        answer = call(address, number, values[: len(function['inputs'])])
        assert '"success":true' not in answer.replace(' ', '')
        assert SECRET not in answer and 'file=' not in answer
    for url in (f'/gradio_api/file={path}', f'/gradio_api/proxy={path}'):
        with pytest.raises(HTTPError, match=r'40[034]'):
            request(address + url)


def test_page_answers_to_its_own_name_only(address):
    assert '<html' in request(address)
    with pytest.raises(HTTPError, match='400'):
        request(address, Host='rebound.example')
