"""Merge the adapters of a checkpoint into their language model, as a folder that transformers loads.

python tools/language/merge_lora.py configs/language/grootl-130m_lora_alpaca.py CHECKPOINT FOLDER

The folder holds a Mamba as any other, with its tokenizer. Its config.json keeps the tree's settings for
grootv.language.load_language_model.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
from pathlib import Path

from grootv import checks, cli
from grootv.checkpoint import build_model
from grootv.errors import UserError
from grootv.files import write_atomically
from grootv.registry import class_name


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('folder', type=Path, help='folder to write, new or empty')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args.config, args.cfg_options)
    if class_name(cfg.get('model', {}).get('type')) != 'LanguageModel':
        raise UserError(f'{args.config} has no grootv.LanguageModel: give a config of configs/language')
    if args.folder.exists() and (not args.folder.is_dir() or any(args.folder.iterdir())):
        raise UserError(f'{args.folder} is there already: give a folder that is new or empty')
    checks.check_data(cfg, ['model'])
    checks.check_checkpoint(args.checkpoint)
    network = build_model(cfg, args.checkpoint, args.trust_checkpoint)
    with write_atomically(args.folder) as draft:
        network.merge().save_pretrained(draft)
        if network.tokenizer is not None:
            network.tokenizer.save_pretrained(draft)
    print(f'wrote {args.folder}')


if __name__ == '__main__':
    cli.run(main)
