"Killed at any moment and started again, a command goes on, and ends as if nothing had happened"
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import HANG, as_json, contents, in_process, pictures, refused, sets
from hypothesis import given, settings
from hypothesis import strategies as st

run = ['run', '-r', 'toy', *sets(), '--json', '--out', 'run', '--device', 'cpu']

# Where the run is killed, in the order in which it comes by: just before a file or folder is renamed into place, when its
# temporary one lies beside it, or before one is opened. `stage` is what the next start has to begin with
MOMENTS = [
    ('identity_encoder', 'os.rename', r'/identity_encoder\.state$', 3),
    ('judge', 'os.rename', '/judge$', 1),
    ('generator', 'os.rename', r'/checkpoint\.pt$', 4),
    ('generator', 'open', r'generator/.*condition/config\.json', 1),
    ('inquiries', 'os.rename', '/inquiries$', 1),
    ('inquiries', 'os.rename', r'/stages/inquiries\.json$', 1),
    ('set scalar_+0.00', 'os.rename', r'/scalar_\+0.00/000003/001\.png$', 1),
    ('set sphere_+0.90', 'open', r'sphere_\+0.90/manifest-0.jsonl a', 2),
    ('set sphere_+0.50', 'os.rename', r'/sphere_\+0.50/manifest\.jsonl$', 1),
    ('set sphere_+0.50', 'os.rename', r'/sphere_\+0.50/stages/faces\.json$', 1),
    ('recogniser scalar_+1.00 0', 'os.rename', r'/scalar_\+1.00-0\.state$', 1),
    ('recogniser real 0', 'os.rename', r'/verification/real-0\.npy$', 1),
    ('analysis real', 'os.rename', r'/stages/analysis real\.json$', 1),
    ('verification of E_id', 'os.rename', r'/verification/E_id-0\.npy$', 1),
    ('', 'os.rename', '/results.json$', 1),
    ('', 'os.rename', '/report.html$', 1)]

def without_times(d):
    "Results but for how long they took"
    return {k: without_times(v) for k, v in d.items() if k!='seconds'} if isinstance(d, dict) else d

def alike(run, whole):
    """Two run folders hold the same files, and in them the same, times apart; the last line of a training log begins anew.
    Faces are shown with every checkpoint, and when one is made depends on the time"""
    one, other = ({k: v for k, v in contents(o).items() if 'figures/training/' not in k} for o in (run, whole))
    assert list(one)==list(other)
    timed = ('stages/', 'training.json', 'results.json', 'report.html', 'log.jsonl', 'model_index.json')
    assert [k for k in one if one[k]!=other[k] and not any(o in k for o in timed)]==[]
    assert without_times(json.loads(one['results.json']))==without_times(json.loads(other['results.json']))

@pytest.mark.slow
def test_killed_in_every_stage(cemiface, tmp_path, finished):
    begins = 'identity_encoder'
    for stage, event, pattern, nth in MOMENTS:
        r = cemiface(*run, stop=dict(event=event, pattern=pattern, nth=nth))
        assert r.code==-signal.SIGKILL and 'Traceback' not in r.err, (pattern, r)
        assert r.err.startswith(f'{begins} ...\n' if begins else ''), (begins, r.err)
        assert any('.cemiface-new' in k for k in contents(tmp_path/'run')) or event!='os.rename', pattern
        begins = stage
        for p in (tmp_path/'run'/'sets').glob('*/manifest-0.jsonl'):          # killed in the middle of a line
            if p.stat().st_size: p.write_bytes(p.read_bytes()[:-20])
    r = cemiface(*run)
    assert r.code==0 and ' ...\n' not in r.err, r.err
    assert as_json(r.out)==json.loads((tmp_path/'run'/'results.json').read_text())
    alike(tmp_path/'run', finished.path)

def test_generate_killed(cemiface, finished, tmp_path):
    args = ['generate', '--generator', finished.generator, '--inquiries', 'synthetic', '--identities', 4, '--per-identity', 2,
        '--steps', 2, '--batch', 3, '--threshold', .9999, '--m', 0, '--out']
    assert cemiface(*args, 'whole').code==0
    for place in (r'/run\.json', r'\.inquiries', r'/000002/000\.png', r'/manifest\.jsonl', r'/stages/faces\.json'):
        assert cemiface(*args, 'set', stop=dict(event='os.rename', pattern=rf'\bset{place}$')).code==-signal.SIGKILL, place
    assert cemiface(*args, 'set').code==0
    assert not [k for k in contents(tmp_path) if '.cemiface' in k]
    for o in ('', '.inquiries'): assert contents(tmp_path/f'set{o}')==contents(tmp_path/f'whole{o}')

SIGNALS = [(signal.SIGINT, 130, 'interrupted'), (signal.SIGTERM, 143, 'terminated')]

def told(err, word): return err.splitlines()[-1]==f'cemiface: {word}; start the same command again' and 'Traceback' not in err

@pytest.mark.parametrize('sig, code, word', SIGNALS)
def test_interrupted(cemiface, tmp_path, finished, sig, code, word):
    for pattern, nth in ((r'/judge\.state$', 2), (r'000002/001\.png$', 1), (r'/real-0\.state$', 1)):
        r = cemiface(*run, stop=dict(event='os.rename', pattern=pattern, nth=nth, sig=sig))
        assert (r.code, r.out)==(code, '') and told(r.err, word), r
        assert not [k for k in contents(tmp_path/'run') if '.cemiface' in k]
    assert cemiface(*run).code==0
    alike(tmp_path/'run', finished.path)

def test_signals_from_outside(start, tmp_path, finished):
    "They hit where they hit"
    for sig, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        c = start(*run)
        while not (tmp_path/'run'/'generator'/'training'/'checkpoint.pt').exists(): time.sleep(.01)
        time.sleep(.3); c.kill(sig)
        assert c.wait().code==code
    assert start(*run).wait().code==0
    alike(tmp_path/'run', finished.path)

@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='sees by /proc what a process has loaded')
@pytest.mark.parametrize('sig, code, word', SIGNALS)
def test_interrupted_while_importing(tmp_path, sig, code, word):
    p = subprocess.Popen([sys.executable, '-m', 'cemiface.cli', *run], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while 'libtorch' not in Path(f'/proc/{p.pid}/maps').read_text(): time.sleep(.05)
    p.send_signal(sig)
    out, err = p.communicate(timeout=HANG)
    assert (p.returncode, out)==(code, '') and told(err, word), err
    assert not (tmp_path/'run').exists()

# Settings bind a folder from the first work under them

CALLS = st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.booleans(), st.booleans()), min_size=2, max_size=8)

@settings(max_examples=200, deadline=None)
@given(CALLS)
def test_settings_bind_from_the_first_work(calls):
    "Calls with a setting, with force or without, that do some work or fail before: the folder has the settings of its work"
    from cemiface.core import CemiFaceError, fingerprint, read_json, RunFolder
    bound = None
    with tempfile.TemporaryDirectory() as d:
        for lr, force, works in calls:
            try: folder = RunFolder.open(Path(d)/'run', fingerprint(lr), 'run', dict(lr=lr), ['lr'] if force else ())
            except CemiFaceError as e:
                assert bound not in (None, lr) and not force and f'lr = {bound} where {lr} is asked for' in str(e)
                continue
            assert bound in (None, lr) or force
            if works:
                folder.finish('training', 'k')
                bound = lr
            if bound: assert read_json(Path(d)/'run'/'run.json')['settings'] == dict(lr=bound)

def train(finished, *values):
    return ['train-generator', '--faces', finished.faces, '--identity-encoder', finished.encoder, '-r', 'toy', *sets(),
        *sets(dict(training=dict(epochs=4, batch=6))), *values, '--json', '--out', 'out']                     # 12 steps

def test_forced_call_that_fails_changes_nothing(cemiface, finished, tmp_path):
    "The call that was begun goes on after it, and so does one whose mistake was corrected"
    assert cemiface(*train(finished), stop=dict(event='os.rename', pattern=r'checkpoint\.pt$', nth=9)).code == -signal.SIGKILL
    for p in (tmp_path/'out').rglob('.cemiface-*'): p.unlink()
    before = contents(tmp_path/'out')
    refused(cemiface(*train(finished, '-s', 'training.epochs=1', '--force')), 'training.epochs = 1 are 3 steps', 'raise it to 2.67 or more')
    assert contents(tmp_path/'out') == before
    for checkpoint in (tmp_path/'out'/'training').glob('checkpoint.*'): checkpoint.write_bytes(b'PK no checkpoint')
    damaged = contents(tmp_path/'out')
    refused(cemiface(*train(finished, '-s', 'training.lr=0.001', '--force')), 'checkpoint', 'delete')
    assert contents(tmp_path/'out') == damaged
    for name, content in before.items():
        if 'checkpoint.' in name: (tmp_path/'out'/name).write_bytes(content)
    assert cemiface(*train(finished)).code == 0
    refused(cemiface(*train(finished, '-s', 'training.lr=0.001', '--force')), 'training.lr')                  # it is finished

def test_first_call_that_fails_binds_nothing(cemiface, finished, tmp_path):
    args = ['generate', '--generator', finished.generator, '--inquiries', finished.inquiries, '--identities', 2, '--per-identity', 2, '--m', 0,
        '--steps', 2, '--batch', 2, '--threshold', 1, '--out', 'set']
    refused(cemiface(*args, '--guidance', '1e30'), 'the generator drew NaN or infinity')
    assert not pictures(tmp_path/'set')
    assert cemiface(*args).code == 0
    refused(cemiface(*args, '--guidance', 2), 'guidance = 1.0 where 2.0 is asked for')

# Sets that are packed into several files

@pytest.mark.parametrize('to, names', [('x.rec', ['dropped.txt', 'property', 'x.lst', 'x.idx', 'x.rec']),
    ('x.tar', ['dropped.txt', 'x.tar']), ('shards', ['shards'])])
def test_pack_killed_before_every_name(cemiface, finished, tmp_path, to, names):
    shutil.copytree(finished.faces, tmp_path/'set')
    (tmp_path/'set'/'000000'/'000.png').write_bytes(b'no image')
    args = ['pack', '--from', 'set', '--to', f'new/{to}']
    for name in names:
        assert cemiface(*args, stop=dict(event='os.rename', pattern=rf'\bnew/{name}$')).code == -signal.SIGKILL, name
    assert cemiface(*args).code == 0
    killed = contents(tmp_path/'new')
    shutil.rmtree(tmp_path/'new')
    assert cemiface(*args).code == 0 and contents(tmp_path/'new') == killed
    assert sorted(o.name for o in (tmp_path/'new').iterdir()) == sorted(names)

# Muon, and latents

MUON = ['denoiser=transformer', 'transformer.width=32', 'transformer.depth=2', 'transformer.heads=2', 'condition.width=32', 'condition.tokens=2',
    'training.optimiser=muon', 'training.batch=8', 'training.epochs=1', 'training.checkpoint_minutes=0', 'training.precision=no']

def train_twice(folder, latent):
    "Muon on pixels or latents, in one go and stopped in the middle: the same weights, bit for bit"
    from functools import partial
    from cemiface.data.toy import toy_faces
    from cemiface.encoders.pretrained import load_encoder
    from cemiface.generator.autoencoder import encode_set, small_autoencoder
    from cemiface.generator.training import train_denoiser
    from cemiface.recipe import changed, load_recipe
    faces = learned = toy_faces(12, 4, 24)
    if latent: learned = encode_set(small_autoencoder(faces, steps=3), faces, folder/'cache', 'cpu')
    make = partial(train_denoiser, learned, load_encoder('toy'), changed(load_recipe('toy'), MUON).parts, cpu=True)      # 6 steps
    left = [3]
    def stop():
        left[0] -= 1
        if not left[0]: raise KeyboardInterrupt
    try: make(out=folder/'cut', begin=stop)
    except KeyboardInterrupt: pass
    one, other = (make(out=folder/name)[0].state_dict() for name in ('cut', 'whole'))
    assert all(one[k].equal(other[k]) for k in other), [k for k in other if not one[k].equal(other[k])]

@pytest.mark.parametrize('latent', [False, True])
def test_muon_resumed(tmp_path, latent): in_process(train_twice, tmp_path, latent)
