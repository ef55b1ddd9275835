"""Cells that a reader and the docs can live with: exported ones are short, imports stand alone (the docs execute every cell that
has one), and stored outputs name no folder of their author's machine"""
import ast
import json
import re
import sys
from pathlib import Path

LONGEST = 45

def mixed(src):
    "Whether a cell both imports, at any depth, and does something else"
    try: tree = ast.parse(src)
    except SyntaxError: return False   # magics
    imports = ast.Import|ast.ImportFrom
    return any(isinstance(o, imports) for o in ast.walk(tree)) and not all(isinstance(o, imports) for o in tree.body)

def complaints(cells):
    "What is wrong with a notebook's cells, as sentences"
    for i,c in enumerate(cells):
        if c['cell_type'] != 'code': continue
        src = ''.join(c['source'])
        exported, n = re.search(r'^#\|\s*export', src, re.M), len(src.splitlines())
        skipped = re.search(r'nbdev_export\(|^#\|\s*eval:\s*false', src, re.M)
        if exported and n > LONGEST: yield f'cell {i}: {n} exported lines, at most {LONGEST}: split the idea'
        if mixed(src) and not (exported or skipped): yield f'cell {i}: imports and does something: two cells'
        m = re.search(r'(/home/|/root/|/Users/|/tmp/|site-packages/)[^\s"\\]+', json.dumps(c['outputs']))
        if m: yield f'cell {i}: an output shows {m[0]}'

def notebooks(): return [p for p in sorted(Path('nbs').rglob('*.ipynb')) if not any(d[0] in '._' for d in p.parts)]

if __name__ == '__main__':
    read = {p: json.loads(p.read_text(encoding='utf-8')) for p in notebooks()}
    bad = [f'{p}, {o}' for p, nb in read.items() for o in complaints(nb['cells'])]
    bad += [f'{p}: metadata hold the state of widgets; delete it' for p, nb in read.items() if 'widgets' in nb['metadata']]
    for o in bad: print(o)
    sys.exit(bool(bad))
