"""Train, evaluate and picture a small GrootV on real handwritten digits: what ``make demo`` runs."""

from steps import ROOT, Run, step, summary

CONFIG = 'configs/demo/grootv-pico_digits.py'
DATA = 'data/digits'
IMAGE = f'{DATA}/val/8'  # the first image of this folder is drawn with its tree


def train() -> Run:
    """The trained classifier, from which the other demos start too."""
    run = Run(CONFIG)
    step('Data', 'tools/dataset_converters/digits.py', DATA)
    run.train()
    return run


def main() -> None:
    run = train()
    metrics = run.test()
    curves, matrix = run.curves(), run.work_dir / 'confusion_matrix.png'
    plot = ('tools/analysis_tools/confusion_matrix.py', CONFIG, run.checkpoint, '--out', matrix)
    run.make('Confusion matrix', matrix, *plot, show='confusion matrix:')
    tree = run.tree(sorted((ROOT / IMAGE).iterdir())[0].relative_to(ROOT))
    summary(
        log=run.log(),
        checkpoint=run.checkpoint,
        curves=curves,
        confusion_matrix=matrix,
        tree=tree,
        accuracy=f'{metrics["accuracy/top1"]:.2f} % top-1 on the held-out digits',
    )


if __name__ == '__main__':
    main()
