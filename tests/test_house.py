"What no notebook can hold: the package as it is built and installed, and the links of the pages outside `nbs/`"
import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

root = Path(__file__).parents[1]
lib = root/'cemiface'

def settings():
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']

def tracked():
    "The checkout's files, without what git ignores"
    r = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=root, capture_output=True, text=True, check=True)
    return [o for o in r.stdout.splitlines() if (root/o).is_file()]

@pytest.fixture(scope='session')
def dist(tmp_path_factory):
    "sdist, and the wheel made from it, of a clean copy of the checkout"
    src, out = tmp_path_factory.mktemp('src'), tmp_path_factory.mktemp('dist')
    for o in tracked():
        if o.startswith(('nbs/', 'data/')): continue
        (src/o).parent.mkdir(parents=True, exist_ok=True); shutil.copy(root/o, src/o)
    cmd = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(out), str(src)]
    r = subprocess.run(cmd, capture_output=True, text=True)
    assert r.returncode==0, r.stdout[-2000:]+r.stderr[-2000:]
    return out

def packaged(): return {o for o in tracked() if o.startswith('cemiface/') and '__pycache__' not in o}

def test_wheel_holds_the_package_and_nothing_else(dist):
    with zipfile.ZipFile(*dist.glob('*.whl')) as z: names = [o for o in z.namelist() if '.dist-info/' not in o]
    assert set(names)==packaged()

def test_recipes_and_assets_are_packaged():
    assert {'toy', 'lfw', 'paper-latent'} <= {o.stem for o in (lib/'recipes').glob('*.toml')}
    assert any(o.endswith('.safetensors') for o in packaged())

def test_assets_stay_small():
    assert sum((root/o).stat().st_size for o in packaged() if o.startswith('cemiface/assets/')) <= 10e6

def test_sdist_can_build_and_explain_itself(dist):
    with tarfile.open(*dist.glob('*.tar.gz')) as t: names = {o.split('/', 1)[1] for o in t.getnames() if '/' in o}
    pages = {'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'CHANGELOG.md', 'CONTRIBUTING.md'}
    assert pages|packaged() <= names

def test_wheel_metadata_comes_from_settings(dist):
    cfg = settings()
    with zipfile.ZipFile(*dist.glob('*.whl')) as z:
        read = lambda f: z.read(next(o for o in z.namelist() if o.endswith(f'.dist-info/{f}'))).decode()
        meta, entry = read('METADATA'), read('entry_points.txt')
    assert f"Version: {cfg['version']}\n" in meta and 'License: Apache-2.0\n' in meta.replace('License-Expression', 'License')
    assert 'cemiface = cemiface.cli:main' in entry and 'cemiface = cemiface._modidx:d' in entry

def test_import_is_light():
    code = 'import cemiface, sys; print(*sys.modules)'
    mods = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=True).stdout.split()
    assert not {'torch', 'fastai', 'diffusers', 'numpy', 'matplotlib'} & set(mods)

def test_every_import_is_a_declared_requirement():
    dist_of = dict(PIL='pillow', sklearn='scikit_learn', tomllib='')
    declared = {re.split(r'[<>=!~\[]', o)[0].replace('-', '_').lower() for o in settings()['requirements'].split()}
    found = set()
    for f in lib.rglob('*.py'):
        for n in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
            if isinstance(n, ast.Import): found |= {a.name.split('.')[0] for a in n.names}
            elif isinstance(n, ast.ImportFrom) and n.level==0: found.add(n.module.split('.')[0])
    found -= {'cemiface', 'facenet_pytorch', *sys.stdlib_module_names}      # a detector that users may add, whose pins clash with ours
    assert {dist_of.get(o, o).lower() for o in found} <= declared

def modules():
    "Each module of the house by its dotted name: the number of its notebook, and its file"
    found = {}
    for p in sorted((root/'nbs').glob('[0-9][0-9]_*.ipynb')):
        number, name = p.stem.split('_', 1)
        found[name] = int(number), lib/(name.replace('.', '/')+'.py')
    return found

def imported(name, file):
    "The modules of this package that a module imports, by their dotted names"
    package = name.split('.')[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if not isinstance(node, ast.ImportFrom): continue
        if node.level: parts = [*package[:len(package)+1-node.level], *filter(None, [node.module])]
        elif node.module.startswith('cemiface.'): parts = node.module.split('.')[1:]
        else: continue
        inside = lib.joinpath(*parts).is_dir()                  # `from cemiface.experiment import beyond`
        yield from ('.'.join([*parts, o.name]) for o in node.names if o.name != '__version__') if inside else ['.'.join(parts)]

def test_every_module_has_a_notebook_and_the_other_way_round():
    files = {file for _, file in modules().values()}
    assert files == {o for o in lib.rglob('*.py') if o.name not in ('__init__.py', '_modidx.py')} and len(files) > 30

def test_modules_import_only_earlier_ones():
    order, checked = modules(), 0
    for name, (number, file) in order.items():
        for other in imported(name, file):
            assert other in order, f'{name} imports {other}, which is no module'
            assert order[other][0] < number, f'{name} imports {other}, which comes later'
            checked += 1
    assert checked > 100, checked

def test_modules_are_small():
    assert not [name for name, (_, file) in modules().items() if len(file.read_text().splitlines()) > 600]

def test_every_notebook_is_in_the_sidebar():
    def pages(o):
        if isinstance(o, dict) and 'auto' in o: return [p.relative_to(nbs).as_posix() for p in nbs.glob(o['auto'])]
        return [o] if isinstance(o, str) else [o['href']] if 'href' in o else [p for c in o['contents'] for p in pages(c)]
    site = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))['website']
    nbs = root/'nbs'
    shown = [p for part in site['sidebar'] for p in pages(part)]
    assert sorted(shown)==sorted(p.relative_to(nbs).as_posix() for p in nbs.rglob('*.ipynb') if not any(d[0] in '._' for d in p.relative_to(nbs).parts))
    assert {o['href'] for o in site['navbar']['left']} <= set(shown)

def test_citation_and_issue_forms():
    cite, cfg = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8')), settings()
    assert (cite['title'], cite['version'], cite['license'])==(cfg['title'], cfg['version'], 'Apache-2.0')
    assert cite['repository-code']==f"https://github.com/{cfg['user']}/{cfg['repo']}"
    for f in (root/'.github'/'ISSUE_TEMPLATE').glob('*.yml'):
        form = yaml.safe_load(f.read_text(encoding='utf-8'))
        assert f.stem=='config' or {'name', 'description', 'body'} <= set(form), f.name

@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md', 'data/README.md'])
def test_links_of_a_page_lead_somewhere(page):
    text = re.sub(r'```.*?```', '', (root/page).read_text(encoding='utf-8'), flags=re.S)
    links = [o.split('#')[0] for o in re.findall(r'\]\((?!\w+:|#)([^)\s]+)', text)]
    assert not [o for o in links if not ((root/page).parent/o).exists()]

def _signature(fn, lines, ours):
    "Parameters and the return that no comment explains, and arrays without a shape"
    note = lambda node: lines[node.end_lineno-1].partition('#')[2]
    array = lambda node: node is not None and re.search(r'\b(Tensor|ndarray)\b', ast.unparse(node))
    shaped = lambda words: re.search(r'\(|\bas \w+|\bsame shape|\bthat shape', words)
    a = fn.args
    for o in [*a.posonlyargs, *a.args, *a.kwonlyargs]:
        if o.arg in ('self', 'cls') or (o.annotation is not None and ast.unparse(o.annotation) in ours): continue      # a class that says itself what it is
        if not note(o): yield f'{fn.name}: parameter {o.arg} has no comment'
        elif array(o.annotation) and not shaped(note(o)): yield f'{fn.name}: parameter {o.arg} has no shape'
    if array(fn.returns) and not shaped(note(fn.returns)): yield f'{fn.name}: what it returns has no shape'

@pytest.mark.parametrize('module', [file for _, file in modules().values()], ids=lambda o: o.stem)
def test_every_public_symbol_is_documented(module):
    "Functions, classes and methods have a docstring, parameters a comment, arrays a shape"
    text = module.read_text(); tree, lines = ast.parse(text), text.splitlines()
    ours = {'Lab', 'Arm', 'Run', 'FaceEncoder', 'FaceSet', 'PairSet', 'Templates', 'Calibration', 'Evidence', 'Context'}
    listed = re.search(r'__all__ = \[(.*?)\]', text, re.S)
    public = set(re.findall(r"'(\w+)'", listed[1])) if listed else set()
    known = {f'{c.name}.{m.name}' for c in tree.body if isinstance(c, ast.ClassDef) for m in c.body if isinstance(m, ast.FunctionDef)}
    wrong = []
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in public: continue
        if not ast.get_docstring(node): wrong.append(f'{node.name} has no docstring')
        if isinstance(node, ast.FunctionDef):
            if not any(getattr(getattr(d, 'func', None), 'id', '') == 'study' for d in node.decorator_list): wrong += _signature(node, lines, ours)
            continue
        for m in node.body:
            if not isinstance(m, ast.FunctionDef) or (m.name.startswith('_') and m.name != '__init__') or re.match('before_|after_', m.name): continue
            if any(f'{ast.unparse(b)}.{m.name}' in known for b in node.bases): continue                # as the base class says
            if m.name not in ('__init__', 'forward') and not ast.get_docstring(m): wrong.append(f'{node.name}.{m.name} has no docstring')
            wrong += _signature(m, lines, ours)
    assert not wrong, '\n'.join(wrong)

def test_every_notebook_says_where_it_stands():
    "The same small diagram heads the second cell: where in the flow, after and before which notebook"
    flow = 'photos ──> faces ──> embeddings ──> generator ──> labelled set ──> recogniser ──> figures'
    books = sorted((root/'nbs').glob('[0-9]*.ipynb'))
    names = [o.stem.replace('_', ' ', 1) for o in books]
    for book in [*books, *(root/'nbs').glob('tutorials/*.ipynb'), *(root/'nbs').glob('guide/*.ipynb')]:
        lines = ''.join(json.loads(book.read_text())['cells'][1]['source']).split('\n')
        assert lines[:2] == ['```', flow] and lines[2].strip() and not lines[2].strip('═ '), book.name
        if book not in books: assert lines[3] == '```', book.name; continue
        i = books.index(book)
        around = [*([f'after {names[i-1]}'] if i else []), *([f'before {names[i+1]}'] if i+1 < len(names) else [])]
        assert lines[3] == f'{names[i]}: {", ".join(around)}', (book.name, lines[3])
