"""The configs of detection and segmentation with a small model, on small scenes of digits."""

from pathlib import Path

from mmengine.config import Config

from . import parts

WIDTH = 32
LIMITS = dict(
    num=16, nms_pre=50, max_per_img=20, num_queries=10, num_dn_queries=6, num_layers=2, num_points=64
)
LIMITS |= dict(embed_dims=WIDTH, feedforward_channels=WIDTH, num_feats=WIDTH // 2, channels=WIDTH)
LIMITS |= dict.fromkeys(
    ['in_channels', 'out_channels', 'feat_channels', 'conv_out_channels', 'fc_out_channels'], WIDTH
)


def narrow(node) -> None:
    """Necks and heads ``WIDTH`` channels wide, and as few boxes and points as such small images need."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in LIMITS and isinstance(value, int) and value > 4:
            node[key] = LIMITS[key]
        elif key == 'in_channels' and value[0] != value[-1]:  # the maps of the backbone
            node[key] = [8 * 2**stage for stage in range(4 - len(value), 4)]
        elif key == 'in_channels':
            node[key] = [WIDTH] * len(value)
        elif key == 'score_thr':
            node[key] = 0.0  # an untrained head is sure of nothing
        elif key == 'auxiliary_head':
            narrow(value)
            value.in_channels = 32
        elif isinstance(value, (dict, list)):
            narrow(value)


def divide(node) -> None:
    """Divide the sizes of images in a pipeline by eight."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in ('scale', 'crop_size'):
            node[key] = tuple(pixels // 8 for pixels in value)
        elif key == 'scales':
            node[key] = [tuple(pixels // 8 for pixels in scale) for scale in value]
        elif isinstance(value, (dict, list)):
            divide(value)


def small(scenes: Path, name: str) -> Config:
    """The config on scenes, with a small model and small images."""
    config = parts.on(scenes, parts.load(name))
    narrow(config.model)
    for pipeline in parts.pipelines(config):
        divide(pipeline)
    config.model.backbone.update(arch=dict(embed_dims=8, depths=[1, 1, 1, 1]), init_cfg=None)
    if name == parts.DINO:
        config.model.bbox_head.embed_dims = config.model.neck.out_channels
    if name in parts.SEGMENTORS:
        config.model.data_preprocessor.size = (64, 64)
        config.train_dataloader.batch_size = 2
    return config
