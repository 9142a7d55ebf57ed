"""What the command lines of the benchmarks have in common."""

import argparse
import json
from pathlib import Path

import torch

from grootv.cli import positive
from grootv.errors import UserError


def add_common_arguments(parser: argparse.ArgumentParser, rounds: int, budget: int) -> None:
    """Arguments that every benchmark takes.

    Args:
        parser: Where they are added.
        rounds: Default of ``--rounds``.
        budget: Default of ``--budget``.
    """
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--threads', type=positive, help="default: PyTorch's own choice")
    parser.add_argument('--rounds', type=positive, default=rounds, help='fewest timed calls of each')
    parser.add_argument(
        '--budget', type=float, default=budget, help='seconds for each table, unless --rounds take longer'
    )
    parser.add_argument('--quick', action='store_true', help='two timed calls of each; no target is judged')
    parser.add_argument('--out', type=Path, help='JSON file to write, with its tables and picture beside it')


def apply_common_arguments(args: argparse.Namespace) -> None:
    """Check the device and the folder of ``--out``, and set the number of threads."""
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError(f'--device cuda: torch {torch.__version__} sees no CUDA device')
    if args.out is not None and args.out.suffix != '.json':
        raise UserError(f'--out takes a file that ends in .json, got {args.out}')
    if args.threads:
        torch.set_num_threads(args.threads)


def limits(args: argparse.Namespace, most: int) -> dict:
    """How long ``take_turns`` goes on."""
    return (
        dict(budget=0, least=2, most=2)
        if args.quick
        else dict(budget=args.budget, least=args.rounds, most=most)
    )


def save(found: dict, out: Path | None) -> None:
    """Write what there is so far: a measurement takes long."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + '\n')
