"""A page to try checkpoints on: what they predict, the trees of their blocks, what a clicked pixel hears.

python demo/app.py [CONFIG CHECKPOINT ...] [--host 127.0.0.1] [--port 7860]

Without arguments it offers the last checkpoints of the demos. Runs on a CPU.
"""

import argparse
import copy
import io
import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image, ImageOps
from steps import ROOT, Run
from torch import nn

from grootv import cli
from grootv.checkpoint import check_keys, install_safe_loader, load_checkpoint_file
from grootv.errors import UserError
from grootv.models.backbones import GrootV
from grootv.visualization.blocks import BlockTree, recorded, scans
from grootv.visualization.network import network_input
from grootv.visualization.tree import draw, draw_affinities, empty_panels

try:
    import fastapi
    import gradio as gr
    import uvicorn
except ImportError:
    gr = None

DEMOS = {
    'make demo': 'configs/demo/grootv-pico_digits.py',
    'make demo-detection': 'configs/demo/mask-rcnn_grootv-pico_fpn_digit-scenes.py',
    'make demo-segmentation': 'configs/demo/grootv-pico_upernet_digit-scenes.py',
}
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP')
ENDINGS = ['.png', '.jpg', '.jpeg', '.webp', '.bmp']
MOST_BYTES = 10 * 2**20
MOST_PIXELS = 25_000_000
LONGEST = 1024  # larger pictures are scaled down to this side
SURE = 0.5  # score from which on an object is drawn
SHOWN = 512  # a small network input is enlarged to about this side, pixel by pixel
# The page may load nothing from elsewhere, and no other page may frame it.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)
TITLE = 'GrootV: a scan along the tree of a picture'
ABOUT = r"""
Every block joins neighbouring pixels where their features agree, by a minimum spanning tree, and lets each of
them hear all others along it. The **affinity** of two pixels,
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


@dataclass
class Prediction:
    """Scores by class, or a picture with what was found."""

    scores: dict[str, float] | None = None
    drawn: np.ndarray | None = None


Predict = Callable[[str], Prediction]


@dataclass
class Network:
    """A network and its library's inferencer."""

    cfg: Config
    model: nn.Module
    predict: Predict

    @property
    def scope(self) -> str:
        return self.cfg.get('default_scope', 'mmpretrain')


@dataclass
class Analysis:
    """What a network makes of a picture: its input (H, W, 3) uint8, its blocks, its prediction."""

    picture: np.ndarray
    blocks: dict[tuple[int, int], BlockTree]
    prediction: Prediction


def classifier(cfg: Config, checkpoint: str) -> tuple[nn.Module, Predict]:
    from mmpretrain import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(cfg, checkpoint, device='cpu')

    def predict(path: str) -> Prediction:
        (result,) = inferencer(path)
        scores = result['pred_scores'].tolist()
        return Prediction(
            scores=dict(zip(map(str, inferencer.classes or range(len(scores))), scores, strict=True))
        )

    return inferencer.model, predict


def detector(cfg: Config, checkpoint: str) -> tuple[nn.Module, Predict]:
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(cfg, checkpoint, device='cpu', show_progress=False)

    def predict(path: str) -> Prediction:
        result = inferencer(path, return_vis=True, no_save_vis=True, pred_score_thr=SURE)
        return Prediction(drawn=result['visualization'][0])

    return inferencer.model, predict


def segmenter(cfg: Config, checkpoint: str) -> tuple[nn.Module, Predict]:
    from mmseg.apis import MMSegInferencer

    cfg.test_dataloader.dataset.pipeline[0].type = 'LoadImageFromFile'  # mmseg looks for this name only
    inferencer = MMSegInferencer(cfg, checkpoint, device='cpu', show_progress=False)

    def predict(path: str) -> Prediction:
        drawn = inferencer(path, return_vis=True, opacity=0.6)['visualization']
        return Prediction(drawn=np.asarray(drawn))

    return inferencer.model, predict


TASKS = dict(mmpretrain=classifier, mmdet=detector, mmseg=segmenter)


def load(config: str | Path, checkpoint: str | Path) -> Network:
    """A network for the page; executes no code of the checkpoint."""
    cfg = cli.load_config(config)
    scope = cfg.get('default_scope', 'mmpretrain')
    if scope not in TASKS:
        raise UserError(f'{config}: its default_scope must be one of {", ".join(TASKS)}, got {scope}')
    weights = load_checkpoint_file(checkpoint)
    model, predict = TASKS[scope](copy.deepcopy(cfg), str(checkpoint))
    if not isinstance(getattr(model, 'backbone', None), GrootV):
        raise UserError(f'{config} has no GrootV backbone: only that one builds trees')
    check_keys(model, weights)
    return Network(cfg, model.eval(), predict)


def read_upload(path: str) -> Image.Image:
    """An uploaded picture in RGB, upright, no side longer than ``LONGEST``; UserError if it is none."""
    try:
        large = Path(path).stat().st_size > MOST_BYTES
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if not large and width * height <= MOST_PIXELS:
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith('I'):  # 16 bits, which convert would clip
                    upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
                upright = upright.convert('RGB')
                upright.thumbnail((LONGEST, LONGEST))
                return upright
    except Exception as error:  # a decoder may raise any of them on a hostile file
        raise UserError(
            'The file is damaged or no PNG, JPEG, WebP or BMP picture: choose another.'
        ) from error
    if large:
        raise UserError(f'The file has more than {MOST_BYTES >> 20} MiB: save the picture smaller.')
    raise UserError(
        f'The picture has {width} x {height} pixels, and {MOST_PIXELS // 10**6} million are the limit: '
        'scale it down.'
    )


class Viewer:
    """What the page asks for.

    Args:
        networks: By the name on the page.
    """

    def __init__(self, networks: dict[str, Network]):
        self.networks = networks
        self.analyse = lru_cache(maxsize=2)(self._analyse)  # a picture, and the one before

    @torch.no_grad()
    def _analyse(self, name: str, upload: str) -> Analysis:
        network, image = self.networks[name], read_upload(upload)
        with tempfile.TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope(network.scope):
            path = f'{folder}/picture.png'
            image.save(path)
            picture, inputs = network_input(network.cfg, network.model, path)
            with recorded(network.model.backbone) as blocks:
                network.model.backbone(inputs)
            return Analysis(picture, dict(blocks), network.predict(path))

    def trees(self, name: str, upload: str, stage: int, block: int) -> Image.Image:
        """The tree of a block by depth and by edge weight."""
        found = self.analyse(name, upload)
        return rendered(draw(found.picture, found.blocks[stage, block], [], f'stage {stage}, block {block}'))

    @torch.no_grad()
    def affinities(
        self, name: str, upload: str, stage: int, block: int, pixel: tuple[int, int]
    ) -> Image.Image:
        """How a pixel (row, column) is heard along the tree and along a raster scan."""
        found = self.analyse(name, upload)
        one, picture = found.blocks[stage, block], found.picture
        row, column = (p * n // side for p, n, side in zip(pixel, one.grid, picture.shape[:2], strict=True))
        figure, panels = empty_panels(picture, rows=1)
        draw_affinities(panels[0], picture, one, row * one.grid[1] + column)
        figure.suptitle(f'row {pixel[0]}, column {pixel[1]}', fontsize=11)
        return rendered(figure)


def rendered(figure: Figure) -> Image.Image:
    """A figure as large as the page shows it, twice as fine."""
    figure.set_size_inches(figure.get_size_inches() * 0.72)
    file = io.BytesIO()
    figure.savefig(file, dpi=160)
    return Image.open(file)


def enlargement(picture: np.ndarray) -> int:
    return max(1, SHOWN // max(picture.shape))


def enlarged(picture: np.ndarray) -> np.ndarray:
    times = enlargement(picture)
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def message(text: str, wrong: bool = False) -> str:
    return f'<p role="status"{" class=wrong" * wrong}>{escape(text)}</p>'


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
                sentence = cli.explain(error) or 'The network failed on this picture: the server tells more.'
                return {note: message(sentence, wrong=True), **empty, **hidden}
            prediction, middle = found.prediction, tuple(side // 2 for side in found.picture.shape[:2])
            return {
                note: seen(found, middle),
                picture: enlarged(found.picture),
                pixel: middle,
                scores: gr.update(value=prediction.scores, visible=prediction.scores is not None),
                drawn: drawing(prediction.drawn),
                stage: gr.update(choices=sorted({i for i, _ in found.blocks}), value=0, visible=True),
                block: blocks_of(name, 0),
                trees: viewer.trees(name, file, 0, 0),
                affinities: viewer.affinities(name, file, 0, 0, middle),
            }

        def drawing(found: np.ndarray | None) -> dict[str, Any]:
            return gr.update(value=None if found is None else enlarged(found), visible=found is not None)

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
                min(int(p) // enlargement(found.picture), n - 1)
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


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'networks',
        nargs='*',
        metavar='CONFIG CHECKPOINT',
        help='networks to offer; default: those of the demos',
    )
    parser.add_argument(
        '--host', default='127.0.0.1', help='address to listen on; default: this machine only'
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
        app = gr.mount_gradio_app(
            fastapi.FastAPI(openapi_url=None),
            page(Viewer(offered(args.networks))),
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
