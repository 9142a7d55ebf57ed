"""demo/app.py as a process, and a headless Chromium that looks at its page."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import which

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.system import waiting
from tests.tools.tiny_run import ROOT

PROGRAMS = ('chromium', 'chromedriver')
SIZE = (1280, 800)
SWITCHES = ['headless=new', 'no-sandbox', 'disable-gpu', 'disable-dev-shm-usage', 'no-first-run']
SWITCHES += ['disable-background-networking', 'disable-component-update', 'disable-sync']
# Elements may be replaced while a condition looks.
wait_for = partial(waiting.wait_for, ignored=(StaleElementReferenceException,))


@contextmanager
def served(*args: object) -> Iterator[str]:
    """The address of a running app."""
    command = [sys.executable, 'demo/app.py', *map(str, args), '--port', '0']
    with tempfile.TemporaryFile('w+') as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
        try:
            for line in process.stdout:
                if line.startswith('open '):
                    yield line.split()[1]
                    break
            else:
                log.seek(0)
                raise AssertionError(f'the app ended: {log.read()[-2000:]}')
        finally:
            process.terminate()
            process.communicate(timeout=30)


class Page:
    """The app in a browser.

    Args:
        driver: The browser.
        address: Where the app is.
    """

    def __init__(self, driver: webdriver.Chrome, address: str):
        self.driver, self.address = driver, address
        driver.get(address)
        wait_for(lambda: self.all('#upload input[type=file]'), 'the page')

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return wait_for(lambda: self.all(selector), selector)[0]

    def clear(self) -> None:
        """Take the file away, also from below a message."""
        for button in self.all('#upload button[aria-label="Clear"]'):
            self.driver.execute_script('arguments[0].click()', button)
        wait_for(lambda: not self.all('#upload button[aria-label="Clear"]'), 'the end of the file')

    def upload(self, path: Path) -> None:
        """Choose a file, instead of the one that is there."""
        self.clear()
        self.one('#upload input[type=file]').send_keys(str(path))

    def choose_network(self, part: str) -> None:
        field = self.one('#network input')
        if part in field.get_attribute('value'):
            return
        field.click()
        options = f'[role=option][aria-label*="{part}"]'
        wait_for(lambda: self.all(options), 'the checkpoints')[0].click()
        wait_for(lambda: not self.all('[role=option]'), 'the end of the choice')

    def choose(self, name: str, number: int) -> None:
        """A stage or a block."""
        self.one(f'#{name} input[value="{number}"], #{name} label:nth-of-type({number + 1}) input').click()

    def click_picture(self, x: float, y: float) -> None:
        """Click where a share of the picture's width lies to the left, and of its height above."""
        picture = self.one('#picture img')
        loaded = 'return arguments[0].complete && arguments[0].naturalWidth > 0'
        wait_for(lambda: self.driver.execute_script(loaded, picture), 'the loaded picture')
        width, height = picture.size['width'], picture.size['height']
        offset = round((x - 0.5) * width), round((y - 0.5) * height)
        ActionChains(self.driver).move_to_element_with_offset(picture, *offset).click().perform()

    def picture(self, name: str) -> str:
        """Address of the picture in a place; it names the content. Empty without one."""
        return ''.join(element.get_attribute('src') for element in self.all(f'#{name} img'))

    def message(self) -> str:
        return ''.join(element.text for element in self.all('#message p'))

    def requested(self) -> set[str]:
        """Addresses that the page has asked for since the last call, those inside itself left out."""
        events = [json.loads(entry['message'])['message'] for entry in self.driver.get_log('performance')]
        sent = [event['params'] for event in events if event['method'] == 'Network.requestWillBeSent']
        urls = {params['request']['url'] for params in sent if params['documentURL'].startswith(self.address)}
        return {url for url in urls if not url.startswith(('data:', 'blob:'))}


@contextmanager
def opened(address: str) -> Iterator[Page]:
    """The page of an app in a fresh browser."""
    options = webdriver.ChromeOptions()
    options.binary_location = which(PROGRAMS[0])
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL'})
    # Chromium's last processes may outlive it and write once more.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for switch in [*SWITCHES, f'user-data-dir={profile}']:
            options.add_argument(f'--{switch}')
        driver = webdriver.Chrome(options, webdriver.ChromeService(which(PROGRAMS[1])))
        try:
            screen = dict(width=SIZE[0], height=SIZE[1], deviceScaleFactor=1, mobile=False)
            driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)
            yield Page(driver, address)
        finally:
            driver.quit()
