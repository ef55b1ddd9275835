"""The docs without Quarto: nbdev's processing, plain pages by pandoc in _site/ that carry the site's own style sheet and navigation,
and a check of every internal link, anchor and picture. Beside them `llms.txt` and `api.json`, which Quarto takes along."""
import ast
import base64
import html
import importlib
import inspect
import json
import os
import pkgutil
import posixpath
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import nbformat
import yaml
from fastcore.docments import docments
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs

import cemiface

CFG = get_config()
HOME = CFG['doc_host']+CFG['doc_baseurl'].rstrip('/')+'/'
SITE = yaml.safe_load((CFG.config_path/'_quarto.yml').read_text(encoding='utf-8'))['website']
FENCE = '`'*8
FEWEST = 25   # words of a page that is not empty
GLOSSARY = 'guide/glossary.ipynb'
EVERYDAY = set('photo face identity pair step accuracy similarity study pipeline within between'.split())   # a link would only disturb
UNLINKED = re.compile(r'(```.*?```|^(?: {4}|[#|>:<])[^\n]*|`[^`]*`|!?\[(?:[^][]|\[[^]]*\])*\]\([^)]*\)|\$[^$]*\$|<[^>]*>)', re.S|re.M)

def process():
    "What `nbdev_docs` does before it calls Quarto, and a little more"
    refresh_quarto_yml()
    _build_modidx()
    nbdev_sidebar.__wrapped__()
    cache = proc_nbs(force=True, n_workers=2)
    named = {to: text for side in SITE['sidebar'] for _, text, to in entries(side['contents']) if to and text}
    terms = mark_terms(cache/GLOSSARY)
    for file in cache.rglob('*.ipynb'):
        page = file.relative_to(cache).as_posix()
        polish(file, named.get(page), {} if page == GLOSSARY else terms, posixpath.relpath(GLOSSARY, posixpath.dirname(page) or '.'))
    return cache

def mark_terms(file):
    "Give each row of the glossary an anchor; the terms that are linked, and their anchors"
    nb, terms = nbformat.read(file, 4), {}
    def marked(row):
        names = re.sub(r'\[(.*?)\]\(.*?\)|`', r'\1', row[1]).split(', ')
        anchor = re.sub(r'\W+', '-', names[0].lower())
        terms.update({o.lower(): anchor for o in names if len(o) > 3 and o not in EVERYDAY})
        return f'| [{row[1]}]{{#{anchor}}} |'
    for cell in nb.cells:
        if cell.cell_type == 'markdown': cell.source = re.sub(r'^\| (?!word \|)([^|-][^|]*?) \|', marked, cell.source, flags=re.M)
    nbformat.write(nb, file)
    return terms

def link_terms(cells, terms, glossary):
    "Link the first use of each term in running text to the glossary: not in headings, tables, code or other links"
    if not terms: return
    left, forms = dict(terms), sorted((re.sub('y$', '(?:y|ies)', re.escape(o)) for o in terms), key=len, reverse=True)
    term = re.compile(rf'(?<![\w-])(?:{"|".join(forms)})s?(?![\w-])', re.I)
    def linked(o):
        name = o[0].lower()
        name = next((k for k in (name, name.removesuffix('s'), re.sub('ies$', 'y', name)) if k in left), None)
        return f'[{o[0]}]({glossary}#{left.pop(name)}){{.term}}' if name else o[0]
    for cell in cells:
        if cell.cell_type != 'markdown': continue
        parts = UNLINKED.split(cell.source)
        parts[::2] = [term.sub(linked, o) for o in parts[::2]]
        cell.source = ''.join(parts)

def only_imports(source):
    "Whether a cell is a list of imports"
    try: body = ast.parse(source).body
    except SyntaxError: return False   # magics
    return len(body) > 1 and all(isinstance(o, ast.Import|ast.ImportFrom) for o in body)

def polish(file, title, terms, glossary):
    "Give a page its title in the sidebar; link terms; fold imports; take backticks out of the comments of a signature, which would show them"
    nb = nbformat.read(file, 4)
    link_terms(nb.cells, terms, glossary)
    if title: nb.cells[0].source = re.sub(r'^title: .*$', f'title: {json.dumps(title)}', nb.cells[0].source, flags=re.M)
    for cell in nb.cells:
        if cell.cell_type != 'code': continue
        if only_imports(cell.source): cell.source = f'#| code-fold: true\n#| code-summary: Imports\n{cell.source}'
        for data in [o.data for o in cell.outputs if 'text/markdown' in o.get('data', {})]:
            signature = r'(?<=```python\n).*?(?=\n```)'
            data['text/markdown'] = re.sub(signature, lambda o: o[0].replace('`', ''), data['text/markdown'], flags=re.S)
    nbformat.write(nb, file)

def raw(text): return f'\n{FENCE}{{=html}}\n{text}\n{FENCE}\n'

def options(source):
    "A cell's `#| key: value` lines, and what it does"
    found = re.findall(r'^#\|\s*([\w-]+):\s*(.*)$', source, re.M)
    return {k: yaml.safe_load(v) for k, v in found}, re.sub(r'^#\|.*\n?', '', source, flags=re.M)

def output(out, alt, save):
    "An output as Markdown; a picture becomes a file"
    data = out.get('data', {})
    if 'text/markdown' in data: return f"\n\n{data['text/markdown']}\n\n"
    if 'text/html' in data: return raw(data['text/html'])
    if 'image/png' in data: return raw(f'<p><img src="{save(data["image/png"])}" alt="{html.escape(alt or "")}"></p>')
    if any('widget' in o for o in data): return ''
    text = out.get('text', data.get('text/plain', ''))
    return raw(f'<div class="cell-output"><pre><code>{html.escape(text)}</code></pre></div>')

def code(cell, fold, save):
    "A code cell as Markdown, as Quarto would show it"
    opts, source = options(cell.source)
    if source.strip() and opts.get('echo', True):
        shown = f'\n{FENCE}{{.python .cell-code}}\n{source.strip()}\n{FENCE}\n'
        folded = opts.get('code-fold', fold) is True
        yield raw(f'<details><summary>{opts.get("code-summary", "Code")}</summary>')+shown+raw('</details>') if folded else shown
    alts = opts.get('fig-alt')
    alts = list(alts) if isinstance(alts, list) else [alts]
    for o in cell.outputs:
        picture = 'image/png' in o.get('data', {})
        yield output(o, alts.pop(0) if picture and alts else None, save)

def read(file, cache, out):
    "A processed notebook as a page: its path in the site, front matter and Markdown"
    nb = nbformat.read(file, 4)
    front = yaml.safe_load(nb.cells.pop(0).source.strip().strip('-')) if nb.cells and nb.cells[0].cell_type == 'raw' else {}
    path = (file.relative_to(cache).parent/front.get('output-file', file.stem+'.html')).as_posix()
    pictures = out/path.replace('.html', '_files')
    def save(png):
        pictures.mkdir(parents=True, exist_ok=True)
        name = f'{len(list(pictures.iterdir()))}.png'
        (pictures/name).write_bytes(base64.b64decode(png))
        return f'{pictures.name}/{name}'
    parts = [c.source if c.cell_type == 'markdown' else ''.join(code(c, front.get('code-fold'), save)) for c in nb.cells if c.cell_type != 'raw']
    return SimpleNamespace(notebook=file.relative_to(cache).as_posix(), path=path, title=front.get('title', ''),
        description=front.get('description', ''), text='\n\n'.join(parts))

def entries(contents, level=0):
    "A sidebar as (level, text, notebook), a section without a notebook"
    for o in contents:
        if isinstance(o, str): yield level, None, o
        elif 'section' in o: yield level, o['section'], None; yield from entries(o['contents'], level+1)
        else: yield level, o['text'], o['href']

def navigation(page, pages):
    "The bar at the top, and the sidebar to which the page belongs"
    up = '../'*page.path.count('/')
    def link(text, to, active):
        href = up+pages[to].path if to in pages else to
        return f'<a href="{href}"{" class=active" if active else ""}>{html.escape(text or pages[to].title)}</a>'
    side = next((s for s in SITE['sidebar'] if page.notebook in [o[2] for o in entries(s['contents'])]), None)
    held = [o[2] for o in entries(side['contents'])] if side else []
    left, right = SITE['navbar']['left'], SITE['navbar']['right']
    bar = ' '.join(link(o['text'], o['href'], o['href'] in held) for o in left)+' &nbsp; '
    bar += ' '.join(link(o['text'], o['href'], False) for o in right)
    rows = [f'<li class="l{n}">{link(text, to, to == page.notebook) if to else f"<b>{html.escape(text)}</b>"}</li>'
            for n, text, to in (entries(side['contents']) if side else [])]
    return bar, '\n'.join(rows), up

def rendered(page, pages):
    "The whole page as HTML"
    cmd = ['pandoc', '-f', 'markdown', '-t', 'html', '--mathml', '--wrap=none']
    body = subprocess.run(cmd, input=page.text, capture_output=True, text=True, check=True).stdout
    bar, side, up = navigation(page, pages)
    def local(o):
        to = posixpath.normpath(posixpath.join(posixpath.dirname(page.notebook), unquote(o[2])))
        return f'{o[1]}{up}{pages[to].path}' if to in pages else o[0]
    body = re.sub(r'(href=")([^":#]+\.ipynb)', local, body).replace(f'href="{HOME}', f'href="{up}')
    frame = (CFG.config_path/'.ci'/'page.html').read_text(encoding='utf-8')
    parts = dict(title=html.escape(page.title), description=html.escape(page.description), up=up, bar=bar, side=side, body=body)
    return re.sub(r'\$(\w+)\$', lambda o: parts[o[1]], frame)

def render(cache, out):
    "The pages, and their HTML by their path in the site"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(cache, out, ignore=shutil.ignore_patterns('*.ipynb', '*.yml'))
    found = [read(f, cache, out) for f in sorted(cache.rglob('*.ipynb'))]
    pages = {o.notebook: o for o in found}
    with ThreadPoolExecutor(os.cpu_count()) as pool: texts = list(pool.map(lambda o: rendered(o, pages), found))
    for page, text in zip(found, texts):
        (out/page.path).parent.mkdir(parents=True, exist_ok=True)
        (out/page.path).write_text(text, encoding='utf-8')
    return pages, {page.path: text for page, text in zip(found, texts)}

def broken(texts, out):
    "Each internal reference as page, target and whether it leads anywhere"
    ids = {k: {unquote(i) for i in re.findall(r'\bid="([^"]+)"', b)} for k, b in texts.items()}
    for page, body in texts.items():
        for target in re.findall(r'<(?:a|img|link) [^>]*?(?:href|src)="([^"]+)"', body):
            target = html.unescape(target)
            u = urlparse(target)
            if u.scheme or u.netloc or target == '#': continue
            to = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(u.path))) if u.path else page
            yield page, target, (unquote(u.fragment) in ids[to] or not u.fragment) if to in texts else (out/to).is_file()

def api():
    "The public symbols by module: kind, signature, what it does, what its parameters mean"
    found = {}
    for info in pkgutil.walk_packages(cemiface.__path__, 'cemiface.'):
        module = importlib.import_module(info.name)
        if info.ispkg or info.name.endswith(('_modidx', '.all')): continue
        found[info.name] = {name: described(getattr(module, name)) for name in getattr(module, '__all__', [])}
    return found

def described(symbol):
    "What `api.json` says of a symbol"
    if not callable(symbol): return dict(kind='value', type=type(symbol).__name__)
    said = dict(kind='class' if inspect.isclass(symbol) else 'function', doc=inspect.getdoc(symbol) or '')
    try: said['signature'] = re.sub(r' at 0x\w+', '', str(inspect.signature(symbol)))
    except (TypeError, ValueError): return said
    return said | dict(parameters={k: v for k, v in docments(symbol).items() if v})

def llms(pages):
    "The site in one page of Markdown, for assistants (llmstxt.org)"
    yield f"# {CFG['title']}\n\n> {CFG['description']}\n\nEvery public function with its parameters: [api.json]({HOME}api.json)"
    for side in SITE['sidebar']:
        held = [pages[o[2]] for o in entries(side['contents']) if o[2]]
        yield f"## {side['title']}\n\n"+'\n'.join(f'- [{o.title}]({HOME}{o.path}): {o.description}' for o in held)

def main():
    cache, out = process(), CFG.config_path/'_site'
    pages, texts = render(cache, out)
    links = list(broken(texts, out))
    bad = [f'BROKEN {page}: {target}' for page, target, ok in links if not ok]
    bad += [f'EMPTY {o.path}: its body has hardly a word' for o in pages.values() if len(o.text.split()) < FEWEST]
    titles = Counter(o.title for o in pages.values())
    bad += [f'TWICE {o.path}: another page is called {o.title}, too' for o in pages.values() if titles[o.title] > 1]
    extra = {'llms.txt': '\n\n'.join(llms(pages)), 'api.json': json.dumps(api(), indent=1, sort_keys=True)}
    for folder in (cache, out):
        for name, text in extra.items(): (folder/name).write_text(text+'\n', encoding='utf-8')
    print(f'{len(pages)} pages, {len(links)} internal links')
    for o in bad: print(o)
    sys.exit(bool(bad))

if __name__ == '__main__': main()
