"""GrootV-T at 224 px beside Swin-T and ConvNeXt-T: images per second, memory, the trees' share."""

import gc
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from .environment import Options, optional
from .figures import stage_trees
from .networks import PICO, TINY, classifier, seeded
from .report import Report, sentence
from .timing import medians

PEERS = {'Swin-T': 'swin_tiny_patch4_window7_224', 'ConvNeXt-T': 'convnext_tiny'}
SHARE_LIMIT = 5  # per cent of the forward pass
COMPILE_S = {'inference': 90, 'training step': 150}  # no compilation is begun with less time left


def run(options: Options, report: Report) -> None:
    torch.backends.cudnn.benchmark = True
    batch, size = (2, 32) if options.dry_run else (128, 224)
    arch = PICO if options.dry_run else TINY
    grootv, made_of = seeded(options.seed, lambda: classifier(arch, 1000))
    print(f'  GrootV is made of {made_of}; batch {batch}, {size} px, bfloat16 autocast', flush=True)
    models = {'GrootV-T': grootv, **peers(options, report)}
    models = {
        name: model.to(options.device, memory_format=torch.channels_last) for name, model in models.items()
    }
    images = [
        torch.randn(batch, 3, size, size, device=options.device).contiguous(memory_format=torch.channels_last)
        for _ in range(3)
    ]
    labels = torch.randint(1000, (batch,), device=options.device)

    forward = inference(options, report, models, images, 'eager')
    share(options, report, forward, batch)
    training(options, report, models, images, labels, 'eager')
    compiled_rows(options, report, models, images, labels)


def peers(options: Options, report: Report) -> dict[str, nn.Module]:
    timm = optional('timm')
    if timm is None or options.dry_run:
        reason = 'dry run' if options.dry_run else 'timm is missing'
        for name in PEERS:
            report.missing(f'{name} inference', 'images/s', reason)
        return {}
    found = {}
    for name, model in PEERS.items():
        try:
            found[name] = timm.create_model(model, drop_path_rate=0.0)
        except Exception as error:
            report.missing(f'{name} inference', 'images/s', sentence(error))
    return found


def share(options: Options, report: Report, forward: float | None, batch: int) -> None:
    """The trees' part of the forward pass. The guide of a block is bfloat16 under autocast."""
    name = 'tree construction, share of the forward pass'

    def measure():
        with torch.no_grad():
            seconds = stage_trees(options, report, batch, torch.bfloat16, TINY['depths'])
        if forward is None:
            raise RuntimeError('the forward pass was not measured')
        note = f'{seconds * 1e3:.3f} of {forward * 1e3:.3f} ms'
        report.figure(name, 100 * seconds / forward, '%', SHARE_LIMIT, note)

    report.attempt(name, '%', measure, SHARE_LIMIT)


def inference(options, report, models, images, mode: str) -> float | None:
    """Images per second of all models in turn; the seconds of GrootV-T's forward pass."""
    for model in models.values():
        model.eval()

    def call(model):
        def forward(k):
            with torch.inference_mode(), torch.autocast(options.device, torch.bfloat16):
                return model(images[k])

        return forward

    calls = {}
    for name, model in models.items():
        forward = call(model)
        title = f'{name} inference {mode}'
        before = len(report.figures)
        report.attempt(title, 'images/s', partial(forward, 0), required=is_ours(name, mode))
        if len(report.figures) == before:
            calls[name] = forward
    if not calls:
        return None
    seconds = medians(options, calls, len(images), 2.0)
    for name, each in seconds.items():
        report.figure(
            f'{name} inference {mode}', len(images[0]) / each, 'images/s', note=f'{each * 1e3:.2f} ms'
        )
    return seconds.get('GrootV-T')


def training(options, report, models, images, labels, mode: str) -> None:
    """Images per second of a step with AdamW, one model in memory at a time, and its peak memory."""
    for name, model in models.items():
        title = f'{name} training step {mode}'

        def measure(name=name, model=model, title=title):
            gc.collect()
            step = training_step(options, model.train(), images, labels)
            if options.device == 'cuda':
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            seconds = medians(options, {'step': step}, len(images), 2.0)['step']
            report.figure(title, len(labels) / seconds, 'images/s', note=f'{seconds * 1e3:.2f} ms')
            if options.device == 'cuda':
                peak = torch.cuda.max_memory_allocated() / 2**20
                report.figure(f'{title}, peak memory', peak, 'MiB', note='weights of all models included')

        report.attempt(title, 'images/s', measure, required=is_ours(name, mode))
        for parameter in model.parameters():
            parameter.grad = None


def training_step(options: Options, model: nn.Module, images: list, labels: torch.Tensor) -> Callable:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=options.device == 'cuda')

    def step(k: int) -> None:
        with torch.autocast(options.device, torch.bfloat16):
            loss = F.cross_entropy(model(images[k]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def compiled_rows(options, report, models, images, labels) -> None:
    """The same under torch.compile, as far as the time goes; GrootV-T first."""
    rows = [(inference, name) for name in models] + [(training, name) for name in models]
    for measure, name in rows:
        kind = 'inference' if measure is inference else 'training step'
        title = f'{name} {kind} torch.compile'
        if options.dry_run or options.quick:
            report.missing(title, 'images/s', 'dry run' if options.dry_run else 'left out of a quick run')
            continue
        if options.left() < COMPILE_S[kind]:
            report.missing(title, 'images/s', 'no time left to compile; run --sections network')
            continue
        arguments = (labels,) if measure is training else ()
        compiled = {name: torch.compile(models[name])}

        def attempt(measure=measure, compiled=compiled, arguments=arguments):
            measure(options, report, compiled, images, *arguments, 'torch.compile')

        report.attempt(title, 'images/s', attempt, required=False)


def is_ours(name: str, mode: str) -> bool:
    """Whether a failure is GrootV's: not a peer's, nor that of a missing compiler."""
    return name == 'GrootV-T' and mode == 'eager'
