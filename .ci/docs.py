"The docs without Quarto: nbdev's processing, plain HTML by nbconvert in _site/, then a check of every internal link, anchor and picture"
import html
import posixpath
import re
import shutil
import sys
from urllib.parse import unquote, urlparse

import nbformat
from nbconvert import HTMLExporter
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs
from traitlets.config import Config

def process():
    "What `nbdev_docs` does before it calls Quarto"
    refresh_quarto_yml(); _build_modidx(); nbdev_sidebar.__wrapped__()
    return proc_nbs(force=True, n_workers=2)

def exporter():
    tags = dict(enabled=True, remove_input_tags=['noecho'])
    pre = ['nbconvert.preprocessors.TagRemovePreprocessor']
    return HTMLExporter(config=Config(TagRemovePreprocessor=tags, HTMLExporter=dict(preprocessors=pre)), template_name='lab')

def header(nb):
    "Take the front matter off, put title and description in its place; the page's file name"
    fm = nb.cells.pop(0).source if nb.cells and nb.cells[0].cell_type=='raw' else ''
    get = lambda k: (re.search(rf'^{k}:\s*(.+)$', fm, re.M) or ['',''])[1]
    if get('title'): nb.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {get('title')}\n\n> {get('description')}"))
    return get('output-file')

def plain(cell):
    "Drop what only Quarto understands"
    if cell.cell_type=='code':
        if re.search(r'^#\|\s*echo:\s*false', cell.source, re.M): cell.metadata.tags = ['noecho']
        cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
    for o in cell.get('outputs', []):
        d = o.get('data', {})
        if 'text/markdown' in d: d['text/markdown'] = re.sub(r'\)\{target="_blank"[^}]*\}', ')', ''.join(d['text/markdown']))

def render(cache, out):
    "HTML pages by their path in the site"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(cache, out, ignore=shutil.ignore_patterns('*.ipynb', '*.yml'))
    exp,pages = exporter(),{}
    for f in sorted(cache.rglob('*.ipynb')):
        nb = nbformat.read(f, 4)
        nb.metadata['language_info'] = dict(name='python')
        name = header(nb) or f.with_suffix('.html').name
        for c in nb.cells: plain(c)
        body,_ = exp.from_notebook_node(nb, resources={'metadata':{'name':name}})
        body = re.sub(r'(<h\d id="|href="#)([^"]+)', lambda o: o[1]+o[2].lower(), body)   # as Quarto does, and as `_modidx` expects
        p = out/f.relative_to(cache).parent/name
        p.parent.mkdir(parents=True, exist_ok=True); p.write_text(body, encoding='utf-8')
        pages[p.relative_to(out).as_posix()] = body
    return pages

def broken(pages, out, base):
    "Each internal reference as page, target and whether it leads anywhere"
    ids = {k:{unquote(i) for i in re.findall(r'\bid="([^"]+)"', b)} for k,b in pages.items()}
    for k,b in pages.items():
        for h in re.findall(r'<(?:a|img) [^>]*?(?:href|src)="([^"]+)"', b):
            h = html.unescape(h)
            u = urlparse(h.removeprefix(base))
            if u.scheme or u.netloc or h=='#': continue
            to = posixpath.normpath(posixpath.join('' if h.startswith(base) else posixpath.dirname(k), unquote(u.path))) if u.path else k
            to = re.sub(r'(^|/)(?:\d+[a-zA-Z]?_)?([^/]+)\.ipynb$', r'\1\2.html', to)   # as Quarto does for links between notebooks
            yield k, h, (unquote(u.fragment) in ids[to] or not u.fragment) if to in pages else (out/to).is_file()

def main():
    cfg = get_config(); out = cfg.config_path/'_site'
    pages = render(process(), out)
    links = list(broken(pages, out, cfg['doc_host']+cfg['doc_baseurl'].rstrip('/')+'/'))
    bad = [(k,h) for k,h,ok in links if not ok]
    print(f'{len(pages)} pages, {len(links)} internal links, {len(bad)} broken')
    for o in bad: print('BROKEN', *o)
    sys.exit(bool(bad))

if __name__=='__main__': main()
