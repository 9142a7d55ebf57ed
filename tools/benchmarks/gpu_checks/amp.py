"""Mixed precision: a pico network learns under float16 and bfloat16 autocast."""

import math

import torch
import torch.nn.functional as F

from .compare import LOSS_LIMIT
from .environment import Options
from .networks import PICO, classifier, seeded
from .operators import dtype_name
from .report import Report, sentence

CLASSES = 10


def run(options: Options, report: Report) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        name = f'loss under {dtype_name(dtype)}, last over first'
        try:
            losses, skipped, made_of = train(options, dtype)
        except Exception as error:
            report.missing(name, 'ratio', sentence(error), LOSS_LIMIT, failed=True)
            continue
        count = max(len(losses) // 6, 1)
        ratio = sum(losses[-count:]) / sum(losses[:count])
        finite = all(map(math.isfinite, losses))
        note = f'{len(losses)} steps, {losses[0]:.3f} to {losses[-1]:.3f}, {skipped} skipped; {made_of}'
        report.check(name, ratio if finite else math.nan, 'ratio', LOSS_LIMIT, note)


def train(options: Options, dtype: torch.dtype) -> tuple[list[float], int, str]:
    """Losses of some steps on images that differ by class, and how many steps the scaler skipped."""
    batch, size, steps = (8, 32, 12) if options.dry_run else (64, 64, 30)
    model, made_of = seeded(options.seed, lambda: classifier(PICO, CLASSES))
    model = model.to(options.device).train()
    random = torch.Generator().manual_seed(options.seed)
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=random)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler(options.device, enabled=dtype == torch.float16)
    losses, skipped = [], 0
    for _ in range(steps):
        labels = torch.randint(CLASSES, (batch,), generator=random)
        images = F.interpolate(patterns[labels], size=size) + torch.randn(
            batch, 3, size, size, generator=random
        )
        with torch.autocast(options.device, dtype):
            loss = F.cross_entropy(model(images.to(options.device)), labels.to(options.device))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        skipped += scaler.get_scale() < scale
        losses.append(loss.item())
    return losses, skipped, made_of
