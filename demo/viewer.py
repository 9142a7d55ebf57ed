"""What the page asks for: a checked picture, a network's blocks and prediction for it, drawings of trees."""

import copy
import io
import tempfile
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image, ImageOps
from torch import nn

from grootv import cli
from grootv.checkpoint import check_keys, load_checkpoint_file
from grootv.datasets.images import eight_bits
from grootv.errors import UserError
from grootv.models.backbones import GrootV
from grootv.visualization.blocks import BlockTree, recorded
from grootv.visualization.network import network_input
from grootv.visualization.tree import draw, draw_affinities, empty_panels

FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP')
MOST_BYTES = 10 * 2**20
MOST_PIXELS = 25_000_000
LONGEST = 1024  # larger pictures are scaled down to this side
TIME_LIMIT = 120  # seconds for a network and a picture
SURE = 0.5  # score from which on an object is drawn

# Scores by class, or a picture with what was found.
Prediction = dict[str, float] | np.ndarray
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

    def predict(path: str) -> dict[str, float]:
        (result,) = inferencer(path)
        scores = result['pred_scores'].tolist()
        return dict(zip(map(str, inferencer.classes or range(len(scores))), scores, strict=True))

    return inferencer.model, predict


def detector(cfg: Config, checkpoint: str) -> tuple[nn.Module, Predict]:
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(cfg, checkpoint, device='cpu', show_progress=False)
    options = dict(return_vis=True, no_save_vis=True, pred_score_thr=SURE)
    return inferencer.model, lambda path: inferencer(path, **options)['visualization'][0]


def segmenter(cfg: Config, checkpoint: str) -> tuple[nn.Module, Predict]:
    from mmseg.apis import MMSegInferencer

    cfg.test_dataloader.dataset.pipeline[0].type = 'LoadImageFromFile'  # mmseg looks for this name only
    inferencer = MMSegInferencer(cfg, checkpoint, device='cpu', show_progress=False)
    options = dict(return_vis=True, opacity=0.6)
    return inferencer.model, lambda path: np.asarray(inferencer(path, **options)['visualization'])


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
    """An uploaded picture in RGB, upright, no side longer than ``LONGEST``; UserError if it is not one."""
    try:
        large = Path(path).stat().st_size > MOST_BYTES
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if not large and width * height <= MOST_PIXELS:
                upright = ImageOps.exif_transpose(eight_bits(image)).convert('RGB')
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
    """Networks by their name on the page, and what each makes of a picture."""

    def __init__(self, networks: dict[str, Network]):
        self.networks = networks
        self._cached = lru_cache(maxsize=2)(self._analyse)  # a picture, and the one before
        self._worker = futures.ThreadPoolExecutor(1)

    def analyse(self, name: str, upload: str) -> Analysis:
        """What a network makes of an uploaded picture; UserError if it takes too long."""
        try:
            return self._worker.submit(self._cached, name, upload).result(TIME_LIMIT)
        except futures.TimeoutError:  # another class than the built-in one before Python 3.11
            raise UserError(
                f'This takes longer than {TIME_LIMIT} seconds: try again, or a smaller picture.'
            ) from None

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
        """What a pixel (row, column) contributes along the tree and along a raster scan."""
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
