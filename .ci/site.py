"""Look at every page of a built site in headless Chromium: `python .ci/site.py [FOLDER] [--shots FOLDER]` (the folder _site of
.ci/docs.py, or Quarto's _docs). Nothing may scroll sideways, be empty, cut off, hard to read, without alternative text, or log an error."""
import argparse
import base64
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ['chromium', 'chromium-browser', 'google-chrome'])), None)
ARGS = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update',
        '--disable-sync', '--hide-scrollbars', '--remote-debugging-pipe']
PHONE, DESK = 390, 1440
CLOSELY = ['index', 'guide/faq', 'guide/glossary', 'guide/performance', 'tutorials/paper_in_one_page', 'tutorials/own_photos',
           'generator.losses', 'cli', 'recipe', 'studies/sphere']   # at both widths and in both themes
SECONDS = 60   # for one answer of the browser

class Browser:
    "Chromium and one tab of it, driven through a pipe (Chrome DevTools Protocol)"
    def __enter__(self):
        read, self.to = os.pipe()
        self.back, write = os.pipe()
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        cmd = ['bash', '-c', f'exec "$0" "$@" 3<&{read} 4>&{write}', BROWSER, *ARGS, f'--user-data-dir={self.profile.name}', 'about:blank']
        self.process = subprocess.Popen(cmd, pass_fds=(read, write), stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        self.count, self.rest, self.session, self.events = 0, b'', None, []
        tab = self('Target.createTarget', url='about:blank')['targetId']
        self.session = self('Target.attachToTarget', targetId=tab, flatten=True)['sessionId']
        for o in ('Page', 'Runtime', 'Log'): self(f'{o}.enable')
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        self.profile.cleanup()

    def message(self):
        "The next message of the browser"
        while b'\0' not in self.rest:
            more = os.read(self.back, 1 << 20)
            if not more: raise RuntimeError('the browser ended')
            self.rest += more
        one, self.rest = self.rest.split(b'\0', 1)
        return json.loads(one)

    def __call__(self, method, **params):
        "Send a command and return its answer; what happens meanwhile is kept in `events`"
        self.count += 1
        text = dict(id=self.count, method=method, params=params)
        if self.session: text['sessionId'] = self.session
        os.write(self.to, json.dumps(text).encode()+b'\0')
        timer = threading.Timer(SECONDS, self.process.kill)
        timer.start()
        while (got := self.message()).get('id') != self.count: self.events.append(got)
        timer.cancel()
        if 'error' in got: raise RuntimeError(f'{method}: {got["error"]["message"]}')
        return got['result']

    def open(self, url, width, dark):
        "Open a page as on a screen of that width, and wait until it has loaded"
        theme = dict(name='prefers-color-scheme', value='dark' if dark else 'light')
        self('Emulation.setDeviceMetricsOverride', width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        self('Emulation.setEmulatedMedia', features=[theme])
        self.events = []
        self('Page.navigate', url=url)
        while not any(o.get('method') == 'Page.loadEventFired' for o in self.events): self.events.append(self.message())

    def errors(self):
        "What the page logged as an error"
        for o in self.events:
            said = o.get('params', {})
            if o.get('method') == 'Runtime.exceptionThrown': yield said['exceptionDetails']['text']
            if o.get('method') == 'Log.entryAdded' and said['entry']['level'] == 'error': yield said['entry']['text']
            if o.get('method') == 'Runtime.consoleAPICalled' and said['type'] == 'error': yield str(said['args'])

    def look(self, script):
        "What the script finds wrong, and errors"
        return [*self('Runtime.evaluate', expression=script, returnByValue=True)['result']['value'], *self.errors()]

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass

def looks(pages):
    "Each page at the width of a phone; at that of a desk, too; and some in dark"
    for page in pages:
        for width in (PHONE, DESK):
            yield page, width, False
            if page.removesuffix('.html') in CLOSELY: yield page, width, True

def keep(browser, folder, page, width, dark):
    "A picture of the page, as it opens"
    folder.mkdir(parents=True, exist_ok=True)
    name = f'{page.removesuffix(".html").replace("/", "_")}_{width}{"_dark" if dark else ""}.png'
    (folder/name).write_bytes(base64.b64decode(browser('Page.captureScreenshot', format='png')['data']))

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('site', nargs='?', default='_site', type=Path)
    parser.add_argument('--shots', type=Path, help='a folder for pictures of some pages')
    args = parser.parse_args()
    if not BROWSER: sys.exit('there is no Chromium: apt-get install chromium')
    pages = sorted(o.relative_to(args.site).as_posix() for o in args.site.rglob('*.html') if 'site_libs' not in o.parts)
    missing = [o for o in CLOSELY if f'{o}.html' not in pages]
    if missing: sys.exit(f'{args.site} lacks {missing[0]}.html')
    script = Path(__file__).with_name('look.js').read_text(encoding='utf-8')
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=args.site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    begun, bad, done = time.monotonic(), 0, 0
    with Browser() as browser:
        for page, width, dark in looks(pages):
            browser.open(f'http://127.0.0.1:{server.server_port}/{page}', width, dark)
            if args.shots and page.removesuffix('.html') in CLOSELY: keep(browser, args.shots, page, width, dark)
            wrong = browser.look(script)
            for o in wrong: print(f'{page} at {width} pixels{", dark" if dark else ""}: {o}')
            bad, done = bad+len(wrong), done+1
    print(f'{len(pages)} pages looked at, {done} times in all, {time.monotonic()-begun:.0f} s: {bad} faults')
    sys.exit(bool(bad))

if __name__ == '__main__': main()
