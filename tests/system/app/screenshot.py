"""The picture of the page in docs/app.md: the demo's detector and a clicked digit.

python -m tests.system.app.screenshot
"""

import io
import time

from PIL import Image

from tests.system.app.browser import opened, served, wait_for
from tests.tools.tiny_run import ROOT

SCENE = ROOT / 'data/digit_scenes/images/validation/00001.jpg'
CLICK = 0.455, 0.7  # shares of width and height: inside a digit

if __name__ == '__main__':
    with served() as address, opened(address) as page:
        page.choose_network('mask-rcnn')
        page.upload(SCENE)
        before = wait_for(lambda: page.picture('affinities'), 'the pictures')
        page.click_picture(*CLICK)
        wait_for(lambda: page.picture('affinities') != before, 'the clicked pixel')
        time.sleep(1)  # until everything has faded in
        shown = page.driver.get_screenshot_as_png()
    image = Image.open(io.BytesIO(shown)).convert('RGB')
    palette = image.quantize(256, Image.Quantize.MAXCOVERAGE)  # half the size; white stays white
    image.quantize(palette=palette).save(ROOT / 'experiments/results/app.png', optimize=True)
