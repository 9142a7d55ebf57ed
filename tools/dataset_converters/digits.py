"""Export scikit-learn's handwritten digits as an ImageNet-style folder.

python tools/dataset_converters/digits.py data/digits

The 1,797 images of 8x8 pixels (grey levels 0 to 16, from the UCI test set of handwritten digits) ship
inside scikit-learn, so nothing is downloaded. Each one becomes OUT/{train,val}/CLASS/INDEX.png, 32x32
pixels by bicubic interpolation, about 80 % of each class in train. The split is fixed, and images that
are equal share a side of it.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import hashlib
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from grootv import cli
from grootv.errors import UserError
from grootv.files import write_atomically

SIZE = 32
TRAIN_SHARE = 0.8
MAX_LEVEL = 16


def split(images: np.ndarray, labels: np.ndarray) -> dict[str, list[int]]:
    """Indices of the train and val images, each index once.

    Depends on the images (N, 8, 8) and their labels (N,) alone: within a class the images are ordered by a
    hash of their pixels, so equal ones stay together.
    """
    sides: dict[str, list[int]] = {'train': [], 'val': []}
    for label in np.unique(labels):
        equal = defaultdict(list)
        for index in np.flatnonzero(labels == label):
            equal[hashlib.sha256(images[index].astype(np.uint8).tobytes()).hexdigest()].append(int(index))
        wanted, taken = round(TRAIN_SHARE * int((labels == label).sum())), 0
        for _, same in sorted(equal.items()):
            sides['train' if taken < wanted else 'val'] += same
            taken += len(same)
    return {side: sorted(indices) for side, indices in sides.items()}


def enlarge(image: np.ndarray) -> Image.Image:
    """An 8x8 image of levels 0 to 16 as a grey 32x32 one of levels 0 to 255."""
    grey = np.rint(image * (255 / MAX_LEVEL)).astype(np.uint8)
    return Image.fromarray(grey).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def export(out: Path) -> dict[str, int]:
    """Write the folder, or find it complete; the number of images of each side.

    Raises:
        UserError: If the folder holds anything that is not of an earlier export.
    """
    data = load_digits()
    sides = split(data.images, data.target)
    names = {
        f'{side}/{data.target[index]}/{index:04d}.png': index
        for side, indices in sides.items()
        for index in indices
    }
    present = {str(path.relative_to(out)) for path in out.rglob('*') if not path.is_dir()}
    foreign = sorted(present - names.keys())
    if foreign:
        raise UserError(
            f'{out} holds files that are not of this data set ({foreign[0]}): '
            'remove them, or give another folder'
        )
    if present != names.keys():
        with write_atomically(out) as draft:
            for name, index in names.items():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                enlarge(data.images[index]).save(draft / name)
            shutil.rmtree(out, ignore_errors=True)
    return {side: len(indices) for side, indices in sides.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder to create, for example data/digits')
    out = parser.parse_args().out
    counts = export(out.absolute())
    print(f'{out}: {counts["train"]} images to train, {counts["val"]} to validate')


if __name__ == '__main__':
    cli.run(main)
