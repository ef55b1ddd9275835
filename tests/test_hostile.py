"""Folders, recipes, manifests and arguments that somebody has damaged, or made to do damage, given to the verbs of the command line.

Whatever they hold: exit code 0 or 2, in the latter case one sentence, no traceback, nothing outside of `--out`, nothing half-written, no more than
3 GB of memory. Whole folders are changed 200 times, texts 2,000 times; `--fuzz 20000` is the long version. Each kind has a process of its own,
forked where torch is imported, and case k of a kind is the same in every run."""
import contextlib
import io
import json
import os
import random

import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import _forks, contents, root, sets
from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st
from test_fuzz import Hang, mutate, watch

sys.path.insert(0, str(root))
ASSETS = root/'cemiface'/'assets'/'toy'
HUGE = [10**5, 10**6, 10**9, 10**12, 10**30, -1, 0, 1e308]
ODD = [None, True, '', 'x', 'nan', '../x', '/x', [], [1], {}, {'x': 1}, .5, float('nan'), float('inf'), *HUGE]

# Changes of what a file means, and not only of its bytes

def places(value, at=()):
    "Where something stands in nested JSON"
    yield at
    for k, v in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else (): yield from places(v, (*at, k))

def changed_json(r, value):
    "One place of nested JSON removed, or something odd in its place"
    at = r.choice([o for o in places(value) if o] or [()])
    if not at: return r.choice(ODD)
    home = value
    for k in at[:-1]: home = home[k]
    if r.random() < .2: del home[at[-1]]
    else: home[at[-1]] = r.choice(HUGE if type(home[at[-1]]) in (int, float) and r.random() < .5 else ODD)
    return value

def changed_weights(r, raw):
    "A file of safetensors with one tensor changed or removed"
    import torch
    from safetensors.torch import load, save
    state = load(raw)
    k = r.choice(sorted(state))
    v = state.pop(k)
    kind = r.choice(['drop', 'nan', 'inf', 'large', 'shape', 'half', 'bool', 'complex', 'more'])
    if kind in ('nan', 'inf', 'large'): v = v*dict(nan=float('nan'), inf=float('inf'), large=1e36)[kind]
    if kind == 'shape': v = v.flatten()[:-1]
    if kind in ('half', 'bool', 'complex'): v = v.to(dict(half=torch.float16, bool=torch.bool, complex=torch.complex64)[kind])
    if kind == 'more': state['more.weight'] = torch.zeros(3)
    if kind != 'drop': state[k] = v.contiguous()
    return save(state)

def change(r, file, places=None):
    "Change one file of a folder"
    raw = file.read_bytes()
    kind = r.choice(['meaning']*6+['bytes', 'bytes', 'gone', 'folder', 'empty'])
    if kind == 'gone': file.unlink()
    elif kind == 'folder': file.unlink(); file.mkdir()
    elif kind == 'empty': file.write_bytes(b'')
    elif kind == 'meaning' and file.suffix == '.json': file.write_text(json.dumps(changed_json(r, json.loads(raw))))
    elif kind == 'meaning' and file.suffix == '.jsonl':
        lines = raw.decode().splitlines()
        i = r.randrange(len(lines)); lines[i] = json.dumps(changed_json(r, json.loads(lines[i])))
        file.write_text('\n'.join(lines)+'\n')
    elif kind == 'meaning' and file.suffix == '.safetensors': file.write_bytes(changed_weights(r, raw))
    else: file.write_bytes(mutate(r, raw, raw, head=300, text=file.suffix in ('.json', '.jsonl', '.toml')))

# Kinds: each gives the files that are changed in a folder, the command, and what must hold after it

def finite_faces(out):
    "A set that was made is whole: as many faces as lines, and numbers or nothing for similarities"
    rows = [json.loads(o) for o in (out/'manifest.jsonl').read_text().splitlines()]
    files = [p.relative_to(out).as_posix() for p in sorted(out.glob('*/*.png'))]
    assert sorted(o['file'] for o in rows) == files and files, (rows, files)
    assert all(o['similarity'] is None or -1.001 <= o['similarity'] <= 1.001 for o in rows)

def generate(d, generator, identities=2):
    return [str(o) for o in ('generate', '--inquiries', d/'photos', '--identities', identities, '--per-identity', 1, '--steps', 2, '--batch', 2,
        '--threshold', 1, '--device', 'cpu', '--m', .5, '--out', d/'out', '--generator', generator)]

def hostile_generator(d):
    shutil.copytree(ASSETS/'generator', d/'G')
    return d/'G', generate(d, d/'G'), lambda: finite_faces(d/'out')

def hostile_set(d):
    from cemiface.cli import main
    assert main(generate(d, ASSETS/'generator')) == 0
    return d/'out', generate(d, ASSETS/'generator', 3), lambda: finite_faces(d/'out')

def hostile_run(d):
    from cemiface.cli import main
    import cemiface.experiment.run as experiment
    args = ['demo', *sets(dict(study=dict(scalar=[1], sphere=[]), toy=dict(candidates=30, test_identities=40, test_pairs=200, identities=20, per_identity=4), recogniser=dict(epochs=1, batch=16),
        inquiries=dict(identities=3, threshold=.99), generation=dict(per_identity=2, copies=1), sampling=dict(steps=2, batch=6))), '--out', str(d/'out'), '--device', 'cpu']
    experiment.write_figures = lambda *args: {}                  # seconds of every case
    experiment.toy_people = cached(experiment.toy_people)
    experiment.toy_pairs = cached(experiment.toy_pairs)
    assert main(args) == 0
    return d/'out', args, lambda: json.loads((d/'out'/'results.json').read_text())

def cached(f):
    "A function that remembers what it made"
    known = {}
    def remembered(*args):
        if args not in known: known[args] = f(*args)
        return known[args]
    return remembered

KINDS = {k[8:]: v for k, v in list(globals().items()) if k.startswith('hostile_')}
SHARE = dict(generator=1., set=.7, run=.3)                     # of the cases; what takes longer is done less often

def hunt(name, cases, folder):
    "All cases of a kind; writes what is wrong to folder/NAME.json"
    from cemiface.cli import main
    from cemiface.data.faces import save_image
    from cemiface.data.toy import toy_faces
    d, codes, bad, slowest = folder/name, {}, [], 0
    d.mkdir()
    os.environ['CEMIFACE_QUIET'] = '1'
    os.fsync = lambda fd: None
    for k, face in enumerate(toy_faces(3, 1).images): save_image(face, d/'photos'/f'{k:06d}'/'000.png')
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()): target, args, whole = KINDS[name](d)
    os.chdir(d)
    files = sorted(p for p in target.rglob('*') if p.suffix in ('.json', '.jsonl', '.safetensors', '.npy', '.toml', '.png') and p.is_file())
    keep = folder/f'{name}.keep'
    shutil.copytree(target, keep)
    inquiries = folder/f'{name}.inquiries'
    if (d/'out.inquiries').exists(): shutil.copytree(d/'out.inquiries', inquiries)
    def late(*_): raise Hang('more than 20 s')
    signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_DATA, (3_000_000_000, 3_000_000_000))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()): assert main(args) == 0     # imports what is late
    for o in (d/'out', d/'out.inquiries'): shutil.rmtree(o, ignore_errors=True)
    for o, there in ((target, keep), (d/'out.inquiries', inquiries)):
        if there.exists(): shutil.copytree(there, o, dirs_exist_ok=True)
    seen = watch(folder)
    begun = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for k in range(cases):
        r = random.Random(f'{name} {k}')
        text = [p for p in files if p.suffix.startswith('.json')]
        change(r, r.choice(text if text and r.random() < .7 else files))
        before, out, err, t = set(d.iterdir()), io.StringIO(), io.StringIO(), time.monotonic()
        signal.alarm(20)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): code = main(args)
            signal.alarm(0)
            codes[code] = codes.get(code, 0)+1
            last = (err.getvalue().splitlines() or [''])[-1]
            if code == 0: whole()
            elif code != 2 or not last.startswith('cemiface: ') or out.getvalue(): bad.append(f'case {k}: {code} {out.getvalue()[:100]} {last[:200]}')
            if code == 2 and name == 'generator' and (d/'out').exists(): assert not list((d/'out').glob('*/*.png')), 'faces of a bad generator'
        except BaseException as e: bad.append(f'case {k}: {type(e).__name__} {str(e)[:300]}')
        finally: signal.alarm(0)
        slowest = max(slowest, time.monotonic()-t)
        strays = {p.name for p in d.iterdir()}-{p.name for p in before}-{'out', 'out.inquiries'}
        half = [p.name for p in d.rglob('.cemiface-*')]
        if strays or half: bad.append(f'case {k}: left behind {strays} {half}')
        for o in (target, d/'out', d/'out.inquiries'): shutil.rmtree(o, ignore_errors=True)
        shutil.copytree(keep, target)
        if inquiries.exists(): shutil.copytree(inquiries, d/'out.inquiries')
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-peak)/2**20
    (folder/f'{name}.json').write_text(json.dumps(dict(codes=codes, seconds=round(time.process_time()-begun, 1), bad=[*bad[:20], *seen[:5]], count=len(bad), slowest=round(slowest, 1), gigabytes=round(grown, 2))))

@pytest.mark.parametrize('name', KINDS)
def test_folders(name, tmp_path, request):
    cases = max(1, round(request.config.getoption('--fuzz')/20*SHARE[name]))
    p = _forks.Process(target=hunt, args=(name, cases, tmp_path))
    p.start(); p.join(200+5*cases)
    if p.exitcode is None: p.kill(); pytest.fail('hangs')
    assert p.exitcode == 0
    facts = json.loads((tmp_path/f'{name}.json').read_text())
    print(name, facts)
    assert not facts['bad'] and facts['gigabytes'] < 2
