"The explorer as its users meet it: a JupyterLab, a notebook, a browser, a slider that is dragged"
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

sync_api = pytest.importorskip('playwright.sync_api', reason='needs Playwright: pip install playwright')
browser_path = next(filter(None, map(shutil.which, ['chromium', 'chromium-browser', 'google-chrome'])), None)
pytestmark = pytest.mark.skipif(not browser_path, reason='needs a browser: apt-get install chromium')

ARGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
        '--disable-sync']

CELLS = ['''from cemiface.all import *
from cemiface.generator.calibration import calibrate
from pathlib import Path
pipe = load_generator(ASSETS/'generator')
judge, some = load_encoder(ASSETS/'judge'), toy_faces(8, 1, pipe.size, first=600_000).images
pipe.keep(calibrate(pipe, some, judge, 'sphere', [0, .5, .8, 1], 1))
w = explore(pipe, toy_faces(3, 1, pipe.size, first=900_000), m=.95, n=4)
w''', '''w.wait(); exec(w.code())                      # by m, for the folder has no calibration
Path('again.txt').write_text(repr((w.settings.similarity, out.similarity.tolist() == w.history[0].similarity)))''']

def notebook(cells):
    code = [dict(cell_type='code', id=f'c{i}', metadata={}, execution_count=None, outputs=[], source=o) for i, o in enumerate(cells)]
    kernel = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    return json.dumps(dict(cells=code, metadata=kernel, nbformat=4, nbformat_minor=5))

def wait_for(what, seconds, name):
    "The first true value of what()"
    end = time.monotonic()+seconds
    while time.monotonic() < end:
        if (found := what()): return found
        time.sleep(.05)
    pytest.fail(f'no {name} after {seconds} s')

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A JupyterLab of our own, in a folder of our own, with a notebook"
    d, token = tmp_path_factory.mktemp('lab'), secrets.token_hex(16)
    places = {f'JUPYTER_{k.upper()}_DIR': str(d/k) for k in ('config', 'data', 'runtime')} | dict(HOME=str(d), IPYTHONDIR=str(d/'ipython'))
    settings = d/'config'/'labconfig'/'page_config.json'                                # no question about news, which would lie over the notebook
    settings.parent.mkdir(parents=True); settings.write_text(json.dumps(dict(disabledExtensions={'@jupyterlab/apputils-extension:announcements': True})))
    (d/'work').mkdir(); (d/'work'/'explore.ipynb').write_text(notebook(CELLS))
    cmd = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', '--port=0', f'--IdentityProvider.token={token}',
           f'--ServerApp.root_dir={d/"work"}']
    with open(d/'log', 'w') as log: server = subprocess.Popen(cmd, env=os.environ | places, stdout=log, stderr=log, cwd=d)
    try:
        at = wait_for(lambda: server.poll() is not None or next((d/'runtime').glob('jpserver-*.json'), None), 40, 'JupyterLab')
        assert server.poll() is None, (d/'log').read_text()
        url = wait_for(lambda: (text := at.read_text()) and json.loads(text)['url'], 5, 'address')
        yield SimpleNamespace(url=f'{url}lab/tree/explore.ipynb?token={token}', work=d/'work')
    finally:
        server.terminate()                                                              # it ends its kernels
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill(); server.wait()

@pytest.fixture(scope='module')
def page(lab, tmp_path_factory):
    "The notebook in a browser, its first cell run"
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch_persistent_context(tmp_path_factory.mktemp('profile'), executable_path=browser_path, args=ARGS, chromium_sandbox=False,
            viewport=dict(width=1280, height=900))
        try:
            page = browser.pages[0]
            page.set_default_timeout(90_000)
            page.goto(lab.url)
            page.locator('.jp-Notebook .jp-Cell').first.click()
            page.get_by_text('Idle').first.wait_for(state='attached')                                   # the kernel
            page.keyboard.press('Shift+Enter')
            page.locator('.jp-OutputArea img').first.wait_for()
            yield page
        finally: browser.close()

def caption(page): return page.locator('.jp-OutputArea .widget-html-content', has_text='Under each face').inner_text()

PIXELS = """async () => { for (let tries = 0; ; tries++) try {
    const src = document.querySelector('.jp-OutputArea img').src
    return Array.from(new Uint8Array(await (await fetch(src)).arrayBuffer()))
} catch (error) { if (tries == 20) throw error; await new Promise(o => setTimeout(o, 50)) } }"""

def pixels(page):
    "The row in the browser, as the PNG that it is; its address no longer holds once the next row takes its place"
    return bytes(page.evaluate(PIXELS))

def drag(page, name, by):
    "Drag the handle of a slider, a few pixels at a time; when the first move was made, and when it was let go"
    box = page.locator('.widget-slider', has=page.get_by_text(name, exact=True)).locator('.noUi-handle').bounding_box()
    x, y = box['x']+box['width']/2, box['y']+box['height']/2
    page.mouse.move(x, y); page.mouse.down(); begun = time.monotonic(); page.mouse.move(x+by, y, steps=10); page.mouse.up()
    return begun, time.monotonic()

def settled(page, *words):
    "Until a row with these words is there to stay, for a slider's last values may still be on their way; its caption"
    def still():
        before = caption(page)
        if not (before.endswith('average.') and all(w in before for w in words)): return
        time.sleep(.5)
        return before if caption(page) == before else None
    return wait_for(still, 20, f'row {" ".join(words)}')

def test_a_slider_that_moves_changes_the_faces(page, lab):
    text, before = settled(page), pixels(page)
    assert before.startswith(b'\x89PNG') and 'Asked for m = 0.95 (sphere)' in text
    begun, ended = drag(page, 'm', -60)
    wait_for(lambda: caption(page) != text, 10, 'answer'); first = time.monotonic()-begun
    wait_for(lambda: caption(page).endswith('average.') and 'm = 0.95' not in caption(page), 10, 'row'); last = time.monotonic()-ended
    print(f'first answer {first:.2f} s after the first move, last row {last:.2f} s after the slider was let go; {settled(page)}')
    assert pixels(page) != before

def test_it_remembers_and_goes_back(page):
    text, old = settled(page), pixels(page)
    page.get_by_role('button', name='scalar').click()
    settled(page, '(scalar)'); assert pixels(page) != old
    page.get_by_role('button', name='back').first.click()
    settled(page, text); assert pixels(page) == old

def test_one_can_ask_for_the_similarity_that_comes_out(page):
    assert not page.locator('.widget-slider', has=page.get_by_text('similarity', exact=True)).is_visible()
    page.locator('.jupyter-button', has_text='similarity').click()
    text, old = settled(page, 'Asked for similarity ='), pixels(page)
    drag(page, 'similarity', -40)
    wait_for(lambda: caption(page) != text, 10, 'answer'); settled(page); assert pixels(page) != old

def test_a_slider_follows_the_arrow_keys(page):
    settled(page); old = pixels(page)
    page.locator('.widget-slider', has=page.get_by_text('seed', exact=True)).locator('.noUi-handle').focus()
    page.keyboard.press('ArrowRight')
    wait_for(lambda: pixels(page) != old, 10, 'answer'); settled(page)

def test_it_exports(page, lab):
    page.locator('.jupyter-button', has_text='save PNG').click()
    at = wait_for(lambda: next(lab.work.glob('row_*.png'), None), 10, 'file')
    assert at.read_bytes() == pixels(page)
    page.locator('.jupyter-button', has_text='code').click()
    python, command = page.get_by_label('Python', exact=True), page.get_by_label('command', exact=True); command.wait_for()
    assert 'load_generator(' in python.input_value() and 'cemiface generate' in command.input_value()
    picture = lab.work/'explorer.png'; page.screenshot(path=picture)
    assert picture.stat().st_size > 20_000

def test_its_code_draws_the_same_faces(page, lab):
    page.locator('.jp-Notebook .jp-Cell').nth(1).locator('.jp-InputArea-editor').click(); page.keyboard.press('Shift+Enter')
    text = wait_for(lambda: (p := lab.work/'again.txt').exists() and p.read_text(), 20, 'answer')
    similarity, same = eval(text); assert similarity < .7 and same
