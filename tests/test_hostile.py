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
from conftest import HANG, contents, fork, in_process, refused, root, sets
from hypothesis import given, settings
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
    args = ['demo', *sets(small), '--out', str(d/'out'), '--device', 'cpu']
    experiment.hardware = lambda: 'here'
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

# A run of seconds, one set only
small = dict(toy=dict(identities=20, per_identity=4, candidates=30, test_identities=40, test_pairs=200), study=dict(scalar=[1], sphere=[]),
    recogniser=dict(epochs=1, batch=16), inquiries=dict(identities=3, threshold=.99), generation=dict(per_identity=2, copies=1),
    sampling=dict(steps=2, batch=6))

KINDS = {k[8:]: v for k, v in list(globals().items()) if k.startswith('hostile_')}
SHARE = dict(generator=.78, set=.2, run=.02)                  # of the cases; what takes longer is done less often

def hunt(name, cases, folder):
    "All cases of a kind; writes what is wrong to folder/NAME.json"
    from cemiface.cli import main
    from cemiface.data.faces import save_image
    from cemiface.data.toy import toy_faces
    d, codes, bad, slowest = folder/name, {}, [], 0
    d.mkdir()
    os.environ['CEMIFACE_QUIET'], tempfile.tempdir = '1', str(d)
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
        signal.alarm(HANG//6)               # names the case that hangs
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
    facts = dict(codes=codes, seconds=round(time.process_time()-begun, 1), bad=[*bad[:20], *seen[:5]], count=len(bad))
    (folder/f'{name}.json').write_text(json.dumps(facts|dict(slowest=round(slowest, 1), gigabytes=round(grown, 2))))

@pytest.mark.parametrize('name', KINDS)
def test_folders(name, tmp_path, request):
    cases = max(1, round(request.config.getoption('--fuzz')/10*SHARE[name]))
    in_process(hunt, name, cases, tmp_path)
    facts = json.loads((tmp_path/f'{name}.json').read_text())
    print(name, facts)
    assert not facts['bad'] and facts['gigabytes'] < 2

# Recipes: 2,000 texts, and every setting with what it must not be

def hunt_recipes(cases, folder):
    "Recipes whose values are odd: a sentence, or a recipe whose name is a plain one, and whose room was planned before anything is taken"
    from cemiface.core import CemiFaceError
    from cemiface.experiment.planning import check_room
    from cemiface.recipe import Inputs, load_recipe, recipe_keys, Recipe
    resource.setrlimit(resource.RLIMIT_DATA, (3_000_000_000, 3_000_000_000))
    keys, bad, planned, before = recipe_keys(Recipe), [], 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = [*(str(o) for o in HUGE), '2020-01-01', '07:32:00', '1979-05-27T07:32:00Z', 'nan', 'inf', '-inf', '[]', '[nan]', '[1000000000]', '[[1]]', '{}',
        '{a=1}', '""', '"../x"', '"/x"', '"a\\u0000"', 'true', '0x'+'f'*5000, '1'*400, '[2020-01-01]', 'none', '"'+'x'*300+'"']
    for k in range(cases):
        r = random.Random(f'recipe {k}')
        chosen = [f'{r.choice(keys)}={r.choice(values)}' for _ in range(r.choice([1, 1, 2]))]
        try:
            recipe = load_recipe(r.choice(['toy', 'lfw', 'paper']), chosen)
            assert (Path('runs')/recipe.name).resolve().parent == Path('runs').resolve() and '/' not in recipe.name
            if recipe.faces.source == 'toy' and planned < cases/200:
                planned += 1
                check_room(recipe, Inputs(assets=r.choice([None, str(ASSETS)])), 'nowhere', cpu=True)
        except CemiFaceError as e:
            if '\n' in str(e): bad.append(f'case {k}: {chosen} {str(e)[:200]!r}')
        except BaseException as e: bad.append(f'case {k}: {[o[:80] for o in chosen]} {type(e).__name__} {str(e)[:200]}')
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)/2**20
    (folder/'recipes.json').write_text(json.dumps(dict(bad=bad[:20], planned=planned, gigabytes=round(grown, 2))))

def test_recipes(tmp_path, request):
    in_process(hunt_recipes, request.config.getoption('--fuzz'), tmp_path)
    facts = json.loads((tmp_path/'recipes.json').read_text())
    print(facts)
    assert not facts['bad'] and facts['gigabytes'] < 1.5

# Names

@pytest.fixture(scope='module')
def toy():
    from cemiface.recipe import load_recipe
    return load_recipe('toy')

@settings(max_examples=300, deadline=None)
@given(st.text(max_size=90) | st.sampled_from(['..', '.', '/', 'a/b', 'C:\\x', '../../x', '~', '-x', 'CON', 'a\0b']))
def test_names_are_names(toy, name):
    from cemiface.core import CemiFaceError
    from cemiface.recipe import changed, in_toml
    with tempfile.TemporaryDirectory() as d:
        try: recipe = changed(toy, [f'name={in_toml(name)}'])
        except CemiFaceError as e: assert '\n' not in str(e); return
        at = Path(d)/recipe.name
        at.mkdir()
        assert [p.name for p in Path(d).iterdir()] == [recipe.name] and not recipe.name.startswith('.')

# Arguments: every option of every verb

def odd_values(option):
    "Values that an option must survive"
    return ['', ' ', '\0', 'nan', 'inf', '-1', '0', '1e400', '9'*30, '9'*5000, '../x', 'x'*300, '\udcff', 'é']

def hunt_arguments(cases, folder):
    "Call every verb with one odd value; what it needs besides is not there, so that nothing begins"
    import argparse
    from cemiface.cli import build_parser, main
    verbs = next(o for o in build_parser()._actions if isinstance(o, argparse._SubParsersAction)).choices
    bad, count = [], 0
    os.chdir(folder)
    quick = {'doctor', 'recipes', 'completion'}
    for verb, parser in verbs.items():
        needed = []
        for o in parser._actions:
            if o.required and o.option_strings: needed += [o.option_strings[0], '3' if 'number' in o.type.__name__ else 'nowhere']
        for option in parser._actions:
            if not option.option_strings or option.nargs == 0: continue
            values = odd_values(option)
            if cases < 20000: values = random.Random(f'{verb} {option.dest}').sample(values, 4)
            for value in values:
                args, err, out = [verb, *needed, option.option_strings[-1], value], io.StringIO(), io.StringIO()
                if verb in ('demo', 'bench', 'study', 'suggest-m'): args += ['-s', 'no.such=1'] if verb in ('demo', 'bench') else ['-r', 'nowhere']
                count += 1
                try:
                    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): code = main(args)
                    last = (err.getvalue().splitlines() or [''])[-1]
                    if code != 2 and verb not in quick or code == 2 and not last.startswith('cemiface: '): bad.append(f'{args}: {code} {last[:200]}'[:400])
                except BaseException as e: bad.append(f'{args}: {type(e).__name__} {str(e)[:200]}'[:400])
    left = [p.name for p in folder.iterdir()]
    (folder/'arguments.json').write_text(json.dumps(dict(bad=bad[:20], wrong=len(bad), count=count, left=left)))

def test_arguments(tmp_path, request):
    in_process(hunt_arguments, request.config.getoption('--fuzz'), tmp_path)
    facts = json.loads((tmp_path/'arguments.json').read_text())
    print(facts)
    assert not facts['bad'] and not facts['left'] and facts['count'] > 500

# Sizes of networks, of any setting that decides one

def hunt_sizes(name):
    "Networks for bench: built where there is room, else a sentence, in 3 GB of data"
    from cemiface.core import CemiFaceError
    from cemiface.experiment.bench import Setting, sized
    from cemiface.recipe import changed, load_recipe, recipe_keys, Recipe
    toy = sized(changed(load_recipe('toy'), ['denoiser=transformer']), batch=8, precision='no')
    keys = [k for k in recipe_keys(Recipe) if k.split('.')[0] in ('unet', 'transformer', 'condition', 'faces')] + ['recogniser.dim', 'toy.identities']
    values = st.sampled_from([1, 2, 48, 1000, *(o for o in HUGE if o > 0)]) | st.integers(1, 2**40)
    resource.setrlimit(resource.RLIMIT_DATA, (3_000_000_000, 3_000_000_000))
    Setting(toy)
    before, built = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    @settings(deadline=None, max_examples=60, database=None)
    @given(st.dictionaries(st.sampled_from(keys), values, min_size=1, max_size=2), st.sampled_from(['unet', 'transformer']))
    def sizes(chosen, denoiser):
        pairs = [f'{k}={[v] if k == "unet.channels" else v}' for k, v in chosen.items()]
        try: built.append(Setting(changed(toy, [f'denoiser={denoiser}', *pairs])))
        except CemiFaceError as e: assert '\n' not in str(e)
        built.clear()
    sizes()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**21       # kilobytes
    Path(name).touch()

def test_sizes(tmp_path):
    in_process(hunt_sizes, tmp_path/'done')
    assert (tmp_path/'done').exists()

# Variables of launchers

LAUNCHER = 'WORLD_SIZE', 'RANK', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'
sensible = dict(WORLD_SIZE='2', RANK='1', LOCAL_RANK='1', MASTER_ADDR='127.0.0.1', MASTER_PORT='29500')

@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(LAUNCHER), st.sampled_from(['0', '1', '2', '-1', '', 'abc', '1.5', '\u0661', '9'*30])),
    st.sets(st.sampled_from(LAUNCHER)))
def test_launcher(odd, absent):
    "One sentence that names a variable; or it is clear how many processes there are"
    from unittest.mock import patch
    from cemiface.core import CemiFaceError
    from cemiface.runtime import check_launch
    clean = {k: v for k, v in os.environ.items() if k not in LAUNCHER}
    env = {k: v for k, v in (sensible|odd).items() if k not in absent}
    with patch.dict(os.environ, clean|env, clear=True):
        try: together = check_launch()
        except CemiFaceError as e:
            assert any(k in str(e) for k in LAUNCHER) and '\n' not in str(e)
            return
    there = {k: v for k, v in env.items() if v != '-1'}
    if together: assert there.keys() == set(LAUNCHER) and int(there['RANK']) < int(there['WORLD_SIZE'])
    else: assert 'LOCAL_RANK' not in there and int(there.get('WORLD_SIZE', 1)) < 2

# Sentences that name what to do

drawn = ['generate', '--generator', 'toy', '--inquiries', 'synthetic', '--identities', 2, '--per-identity', 1, '--steps', 2, '--batch', 2, '--threshold', 1,
    '--device', 'cpu', '--out', 'out']
bench = ['bench', '-s', 'denoiser=transformer', '--work', 'embed', '--device', 'cpu']

@pytest.mark.parametrize('args, env, words', [(['study', 'nosuch'], {}, ['nosuch', 'cemiface study --list']),
    (['study', 'nosuch', '-r', 'toy'], {}, ['nosuch', 'cemiface study --list']),
    ([*drawn, '--m', 0, '--guidance-interval', 0, 1.5], {}, ['--guidance-interval', '1.5']),
    ([*drawn, '--m', 0, '--guidance-interval', .8, .2], {}, ['--guidance-interval', 'exchange']),
    ([*drawn, '--similarity', .9, '--guidance-interval', .2, .8], {}, ['--guidance-interval', 'calibrated']),
    ([*drawn, '--m', 0, '--generator', 'no/such'], dict(HF_HUB_OFFLINE='1'), ['no/such', 'check the name']),
    ([*drawn, '--m', 0], dict(WORLD_SIZE='2'), ['MASTER_ADDR']), ([*drawn, '--m', 0], dict(LOCAL_RANK='abc'), ['LOCAL_RANK']),
    ([*bench, '-s', 'transformer.depth=1000000'], {}, ['transformer.depth']),
    ([*bench, '-s', 'transformer.width=1200000'], {}, ['transformer and condition']),
    (['doctor', '--autoencoder', 'x.safetensors'], {}, ['x.safetensors', 'no network'])])
def test_words(start, tmp_path, args, env, words):
    (tmp_path/'x.safetensors').write_bytes(b'\2' + bytes(7) + b'{}')                  # without a tensor
    r = start(*args, env=env).wait()
    refused(r, *words)
    assert 'Warning' not in r.err and 'face encoder' not in r.err and not (tmp_path/'out').exists(), r.err

# Streams that are closed, full or of another encoding

def run_shell(line, cwd, **env):
    "A line of a shell in which $C is the command line"
    env = {**os.environ, 'C': f'{sys.executable} -m cemiface.cli', **env}
    r = subprocess.run(['bash', '-c', line], cwd=cwd, env=env, capture_output=True, text=True, timeout=HANG)
    return r.returncode, r.stdout, r.stderr

@pytest.mark.parametrize('line, code', [('$C recipes >/dev/full', 2), ('$C --help >/dev/full', 2), ('$C recipes >&-', 0), ('$C recipes 2>&-', 0),
    ('$C recipes nope 2>&-', 2), ('$C recipes nope 2>/dev/full', 2), ('$C recipes nope <&- >&- 2>&-', 2), ('$C recipes | true; exit ${PIPESTATUS[0]}', 141)])
@pytest.mark.parametrize('buffered', ['', '1'])
def test_streams(tmp_path, line, code, buffered):
    r = run_shell(line, tmp_path, PYTHONUNBUFFERED=buffered)
    assert r[0] == code and 'Traceback' not in r[2] and r[2].count('\n') <= 1, r

@pytest.mark.parametrize('encoding', ['ascii', 'cp1252', 'utf-16'])
def test_encodings(tmp_path, encoding):
    r = run_shell('$C recipes toy -s about="Zoł 臉" | wc -c; exit ${PIPESTATUS[0]}', tmp_path, PYTHONIOENCODING=encoding)
    assert r[0] == 0 and int(r[1]) > 500 and not r[2], r
    r = run_shell('$C recipes Zoł臉', tmp_path, PYTHONIOENCODING=encoding)
    assert r[0] == 2, r

def deaf(args, folder):
    "A verb whose standard error is closed"
    os.chdir(folder)
    os.close(2); sys.stderr = None
    from cemiface.cli import main
    sys.exit(main(args))

def test_work_is_not_lost_where_nobody_listens(tmp_path):
    args = ['generate', '--inquiries', 'synthetic', '--identities', '2', '--per-identity', '1', '--steps', '2', '--threshold', '1', '--device', 'cpu',
        '--m', '.5', '--out', 'out', '--generator', 'toy', '--batch', '0']
    in_process(deaf, args, tmp_path)
    finite_faces(tmp_path/'out')

# Interrupted at any verb

def verbs_of(finished, dev):
    "A good call of the verbs that write or compute, but for `run` and `generate`, which test_kills.py and test_resume.py stop"
    train = ['--faces', finished.faces, '-r', 'toy', *sets(), '--out', 'new']
    return dict(recogniser=['train-recogniser', *train], generator=['train-generator', '--identity-encoder', finished.encoder, *train],
        pack=['pack', '--from', finished.faces, '--to', 'new.rec'], unpack=['unpack', '--from', 'set.tar', '--to', 'new'],
        analyse=['analyse', '--faces', finished.faces, '--judge', finished.judge],
        verify=['verify', '--encoder', finished.encoder, '--pairs', dev/'pairs.txt', '--images', dev/'images'],
        calibrate=['calibrate', '--generator', 'G', '--judge', finished.judge, '--faces', finished.inquiries, '--per-face', 1, '--steps', 1, '--limit', 3])

@pytest.mark.parametrize('sig, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize('verb', ['recogniser', 'generator', 'pack', 'unpack', 'analyse', 'verify', 'calibrate'])
def test_interrupted(start, finished, dev, tmp_path, request, verb, sig, code):
    often = (verb, code) in (('recogniser', 130), ('pack', 143), ('analyse', 130))
    if not often and request.config.getoption('--kills') < 50: pytest.skip('only with --kills 50')
    args = verbs_of(finished, dev)[verb]
    shutil.copytree(finished.generator, tmp_path/'G')
    if verb == 'unpack': assert start('pack', '--from', finished.faces, '--to', 'set.tar').wait().code == 0
    places = dict(analyse=('open', r'/000003/00'), verify=('open', r'/Zo'), unpack=('open', r'/000002/001'), pack=('open', r'/000002/001'))
    event, pattern = places.get(verb, ('os.rename', '.cemiface-new'))
    r = start(*args, stop=dict(event=event, pattern=pattern, nth=1, sig=sig)).wait()
    assert r.code == code and r.out == '' and 'Traceback' not in r.err and r.err.splitlines()[-1].startswith('cemiface: '), r
    assert not [k for k in contents(tmp_path) if '.cemiface-' in k] and not (tmp_path/'new.rec').exists()
    r = start(*args).wait()
    assert r.code == 0, r

# Two that write into one folder, and one who must not

@pytest.mark.slow
def test_two_runs_at_once(start, tmp_path):
    args = ['demo', *sets(small), '--device', 'cpu', '--out']
    both = [start(*args, 'out') for _ in range(2)]
    ends = [c.wait() for c in both]
    assert all(r.code in (0, 2) and 'Traceback' not in r.err for r in ends), ends
    assert start(*args, 'out').wait().code == 0 and start(*args, 'alone').wait().code == 0
    sets_of = lambda name: {k: v for k, v in contents(tmp_path/name/'sets').items() if k.endswith(('.png', '.jsonl'))}
    assert sets_of('out') == sets_of('alone')
    assert not [k for k in contents(tmp_path) if '.cemiface-' in k]

def obey_permissions():
    "Take from this process of root's what lets it write where it may not, as capset(2) says"
    import ctypes
    head, none = (ctypes.c_uint32*2)(0x20080522, 0), (ctypes.c_uint32*6)()
    if ctypes.CDLL(None).capset(head, none): raise OSError('capset')

def as_nobody(args, folder, answer):
    "A verb by somebody who may not write"
    out = open(answer, 'w')
    if os.getuid() == 0: obey_permissions()
    os.chdir(folder)
    from cemiface.cli import main
    err = io.StringIO()
    with contextlib.redirect_stderr(err): code = main(args)
    out.write(json.dumps([code, err.getvalue()])); out.close()

def test_read_only_folders(finished, tmp_path):
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        for name, at in (('faces', finished.faces), ('G', finished.generator), ('photos', finished.inquiries), ('net', finished.encoder)):
            shutil.copytree(at, d/name)
        (d/'set').mkdir()
        calls = [['pack', '--from', 'faces', '--to', 'set/x.rec'], ['train-recogniser', '--faces', 'faces', '-r', 'toy', *sets(), '--out', 'set/new'],
            ['generate', '--generator', 'G', '--inquiries', 'photos', '--identities', '2', '--m', '0', '--steps', '1', '--threshold', '1', '--out', 'set/new'],
            ['calibrate', '--generator', 'G', '--judge', 'toy-judge', '--faces', 'photos', '--per-face', '1', '--steps', '1', '--batch', '8'],
            ['demo', '--out', 'set/new', *sets(dict(toy=dict(candidates=30)))]]
        for p in [d, *d.rglob('*')]: p.chmod(0o555 if p.is_dir() else 0o444)
        try:
            before = contents(d)
            for args in calls:
                fork(as_nobody, args, d, tmp_path/'answer').join(HANG)
                code, err = json.loads((tmp_path/'answer').read_text())
                assert code == 2 and 'Traceback' not in err and 'no permission' in err.splitlines()[-1], (args, code, err)
                assert contents(d) == before
        finally:
            for p in [d, *d.rglob('*')]: p.chmod(0o755)
