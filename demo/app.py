"""A page to try checkpoints on: predictions, the trees of the blocks, what a clicked pixel reaches.

python demo/app.py [CONFIG CHECKPOINT ...] [--host 127.0.0.1] [--port 7860]

Without arguments it offers the last checkpoints of the demos. Runs on a CPU.
"""

import argparse
import os
import socket
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from steps import ROOT, Run
from viewer import MOST_BYTES, Analysis, Network, Viewer, load

from grootv import cli
from grootv.checkpoint import install_safe_loader
from grootv.errors import UserError
from grootv.visualization.blocks import scans

try:
    import fastapi
    import gradio as gr
    import uvicorn
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
except ImportError:
    gr = None

DEMOS = {
    'make demo': 'configs/demo/grootv-pico_digits.py',
    'make demo-detection': 'configs/demo/mask-rcnn_grootv-pico_fpn_digit-scenes.py',
    'make demo-segmentation': 'configs/demo/grootv-pico_upernet_digit-scenes.py',
}
ENDINGS = ['.png', '.jpg', '.jpeg', '.webp', '.bmp']
SHOWN = 512  # a small network input is enlarged to about this side, pixel by pixel
# The page may load nothing from elsewhere, and no other page may frame it.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)
TITLE = 'GrootV: a scan along the tree of a picture'
ABOUT = r"""
Every block joins neighbouring pixels where their features agree, by a minimum spanning tree, and lets each of
them receive all others along it. The **affinity** of two pixels,
$A_{ij} = \frac{1}{D} \sum_{d=1}^{D} \prod_{e \in \mathrm{path}(i, j)} a_{e,d}$, is the product of the decays
$a \in (0, 1)$ of the edges between them, averaged over $D$ channels.
"""
HINT = f'Choose a picture of up to {MOST_BYTES >> 20} MiB: PNG, JPEG, WebP or BMP.'
STYLE = """
.gradio-container { padding: 8px 20px !important }
#about h1 { font-size: 1.35rem; margin: 0 0 .2rem }
#about, #about p { font-size: .92rem; line-height: 1.45 }
#about, #about * { overflow: visible !important }
#message { font-size: .92rem }
#stage label, #block label { padding: 3px 8px }
#message .wrong { color: #b42318; font-weight: 600 }
#picture img { image-rendering: pixelated; cursor: crosshair }
"""


def enlargement(picture: np.ndarray) -> int:
    return max(1, SHOWN // max(picture.shape))


def enlarged(picture: np.ndarray) -> np.ndarray:
    times = enlargement(picture)
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def message(text: str, wrong: bool = False) -> str:
    return f'<p role="status"{" class=wrong" * wrong}>{escape(text)}</p>'


def guard(blocks: 'gr.Blocks') -> None:
    """Let requests name files that visitors uploaded, and no others.

    Gradio looks at the files that a request names only in a page that ``launch`` started, and reads addresses
    of other machines even there.
    """
    blocks.has_launched = blocks.is_running = True
    for block in blocks.blocks.values():
        block.async_move_resource_to_block_cache = local_only(block.async_move_resource_to_block_cache)


def local_only(move: Callable[[str | None], Awaitable[str | None]]) -> Callable:
    async def checked(path: str | None) -> str | None:
        if path and '://' in str(path):
            raise gr.Error('Addresses are not read: upload the picture.')
        return await move(path)

    return checked


def page(viewer: Viewer) -> 'gr.Blocks':
    """The page and what happens on it."""
    names = list(viewer.networks)
    shown = dict(format='png', interactive=False, buttons=['fullscreen'])
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as blocks:
        gr.Markdown(
            f'# {TITLE}\n{ABOUT}',
            elem_id='about',
            latex_delimiters=[dict(left='$', right='$', display=False)],
        )
        pixel = gr.State()
        with gr.Row():
            with gr.Column(scale=6, min_width=480):
                network = gr.Dropdown(
                    names, value=names[0], label='Checkpoint', filterable=False, elem_id='network'
                )
                with gr.Row():
                    with gr.Column(min_width=220):
                        upload = gr.File(label='Picture', file_types=ENDINGS, height=120, elem_id='upload')
                        note = gr.HTML(message(HINT), elem_id='message')
                        scores = gr.Label(
                            label='Prediction', num_top_classes=5, visible=False, elem_id='scores'
                        )
                        drawn = gr.Image(label='Prediction', visible=False, elem_id='drawn', **shown)
                    with gr.Column(min_width=220):
                        picture = gr.Image(label='Network input: click a pixel', elem_id='picture', **shown)
                        stage = gr.Radio(label='Stage', visible=False, elem_id='stage')
                        block = gr.Radio(label='Block', visible=False, elem_id='block')
            with gr.Column(scale=7, min_width=480):
                # Their titles are in the pictures.
                trees = gr.Image(label='Spanning tree', show_label=False, elem_id='trees', **shown)
                affinities = gr.Image(label='Affinity', show_label=False, elem_id='affinities', **shown)

        place = [network, upload, stage, block]

        def choose(name: str, file: str | None) -> dict[Any, Any]:
            """A picture or a checkpoint: everything is new."""
            empty = {item: None for item in (picture, trees, affinities, pixel)}
            hidden = {item: gr.update(visible=False) for item in (scores, drawn, stage, block)}
            if file is None:
                return {note: message(HINT), **empty, **hidden}
            try:
                found = viewer.analyse(name, file)
            except Exception as error:
                if not isinstance(error, UserError):
                    traceback.print_exc()
                sentence = cli.explain(error) or 'The network failed on this picture: the server says more.'
                return {note: message(sentence, wrong=True), **empty, **hidden}
            middle = tuple(side // 2 for side in found.picture.shape[:2])
            classified = isinstance(found.prediction, dict)
            return {
                note: seen(found, middle),
                picture: enlarged(found.picture),
                pixel: middle,
                scores: gr.update(value=found.prediction if classified else None, visible=classified),
                drawn: gr.update(
                    value=None if classified else enlarged(found.prediction), visible=not classified
                ),
                stage: gr.update(choices=sorted({i for i, _ in found.blocks}), value=0, visible=True),
                block: blocks_of(name, 0),
                trees: viewer.trees(name, file, 0, 0),
                affinities: viewer.affinities(name, file, 0, 0, middle),
            }

        def blocks_of(name: str, chosen: int) -> dict[str, Any]:
            known = [k for i, k in scans(viewer.networks[name].model.backbone) if i == chosen]
            return gr.update(choices=known, value=0, visible=True)

        def choose_stage(name: str, file: str, chosen: int, at: tuple[int, int]) -> tuple:
            return blocks_of(name, chosen), *choose_block(name, file, chosen, 0, at)

        def choose_block(name: str, file: str, i: int, k: int, at: tuple[int, int]) -> tuple:
            return viewer.trees(name, file, i, k), viewer.affinities(name, file, i, k, at)

        def seen(found: Analysis, at: tuple[int, int]) -> str:
            height, width = found.picture.shape[:2]
            return message(
                f'{height} x {width} pixels reach the network; row {at[0]}, column {at[1]} is marked.'
            )

        def click(name: str, file: str, i: int, k: int, event: gr.SelectData) -> tuple:
            found = viewer.analyse(name, file)
            (column, row), sides = event.index, found.picture.shape
            at = tuple(
                min(max(int(p) // enlargement(found.picture), 0), n - 1)
                for p, n in zip((row, column), sides[:2], strict=True)
            )
            return at, seen(found, at), viewer.affinities(name, file, i, k, at)

        # One at a time: the networks are shared, and so is MMEngine's default scope.
        alone = dict(
            concurrency_id='network',
            concurrency_limit=1,
            trigger_mode='always_last',
            api_visibility='private',
        )
        everything = [note, picture, pixel, scores, drawn, stage, block, trees, affinities]
        gr.on([upload.change, network.input], choose, [network, upload], everything, **alone)
        stage.input(choose_stage, [network, upload, stage, pixel], [block, trees, affinities], **alone)
        block.input(choose_block, [*place, pixel], [trees, affinities], **alone)
        picture.select(click, place, [pixel, note, affinities], **alone)
    return blocks


def offered(pairs: list[str]) -> dict[str, Network]:
    """The networks of the command line, or of the demos that have been trained."""
    if len(pairs) % 2:
        raise UserError(f'give a CHECKPOINT for every CONFIG, got {" ".join(pairs)}')
    chosen = list(zip(pairs[::2], pairs[1::2], strict=True))
    if not chosen:
        demos = [Run(config) for config in DEMOS.values()]
        made = [run for run in demos if (ROOT / run.checkpoint).exists()]
        chosen = [(ROOT / run.config, ROOT / run.checkpoint) for run in made]
    if not chosen:
        raise UserError(f'no demo has been trained: run {", ".join(DEMOS)}, or give CONFIG CHECKPOINT')
    networks = {}
    for config, checkpoint in chosen:
        print(f'loading {checkpoint}', flush=True)
        name = f'{Path(config).stem}, {Path(checkpoint).stem}'
        networks[f'{name}, {checkpoint}' if name in networks else name] = load(config, checkpoint)
    return networks


def listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ':' in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f'--host {host} --port {port} cannot be used ({error}): choose another') from error


def hosts(address: str) -> list[str]:
    """Names that the page answers to: on loopback its own alone, because any name may lead there."""
    loopback = ['localhost', '127.0.0.1', '::1']
    return loopback if address in loopback else ['*']


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'networks', nargs='*', metavar='CONFIG CHECKPOINT', help='networks to offer, by default the demos'
    )
    parser.add_argument(
        '--host', default='127.0.0.1', help='address to listen on, by default of this machine only'
    )
    parser.add_argument('--port', type=int, default=7860, help='0 takes a free one; default 7860')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if gr is None:
        raise UserError('the page needs the packages of the extra app: pip install -e ".[app]", or make app')
    install_safe_loader()
    with listen(args.host, args.port) as door, tempfile.TemporaryDirectory() as uploads:
        os.environ['GRADIO_TEMP_DIR'] = uploads
        blocks = page(Viewer(offered(args.networks)))
        guard(blocks)
        outer = fastapi.FastAPI(openapi_url=None)
        outer.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts(args.host), www_redirect=False)
        app = gr.mount_gradio_app(
            outer,
            blocks,
            path='/',
            footer_links=[],
            run_history=False,
            max_file_size=MOST_BYTES,
            ssr_mode=False,
            theme=gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['monospace']),
            css=STYLE,
        )
        host, port = door.getsockname()[:2]
        print(f'open http://{f"[{host}]" if ":" in host else host}:{port}', flush=True)
        settings = dict(log_level='warning', timeout_graceful_shutdown=1)
        headers = [('Content-Security-Policy', POLICY), ('X-Content-Type-Options', 'nosniff')]
        uvicorn.Server(uvicorn.Config(app, headers=headers, **settings)).run(sockets=[door])


if __name__ == '__main__':
    cli.run(main)
