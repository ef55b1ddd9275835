"Several processes make what one makes"
import io
import json
import os
import signal

import numpy as np
import pytest
from conftest import as_json, contents, fork, pictures, ranks, refused, sets, several, shell
from PIL import Image

@pytest.fixture
def generate(finished):
    return ['generate', '--generator', finished.generator, '--inquiries', finished.inquiries, '--identities', 5, '--per-identity', 4,
        '--steps', 2, '--batch', 3, '--threshold', .9999, '--control', 'sphere', '--m', .9, '--seed', 3, '--json', '--out']

@pytest.fixture
def whole(cemiface, generate, tmp_path):
    "The set as one process makes it"
    r = cemiface(*generate, 'whole')
    assert r.code==0, r.err
    return pictures(tmp_path/'whole')

# Loaded by every Python process that finds it: notes which faces this one writes
NOTE = r'''import os, sys
def note(event, args):
    if event!='os.rename' or not str(args[1]).endswith('.png') or 'inquiries' in str(args[1]): return
    with open('rank'+os.environ['RANK'], 'a') as f: f.write(f'{args[1]}\n')
sys.addaudithook(note)
'''

def test_launched(generate, whole, tmp_path):
    "By torch's launcher; the -- keeps it from taking --m for its own"
    (tmp_path/'sitecustomize.py').write_text(NOTE)
    r = shell('--standalone', '--nproc_per_node=2', '-m', '--', 'cemiface.cli', *generate, 'set', cwd=tmp_path, module='torch.distributed.run',
        ACCELERATE_USE_CPU='true', PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ['PYTHONPATH']]))
    assert r.code==0 and 'terminate' not in r.err and 'Traceback' not in r.err, r.err
    assert as_json(r.out)['images']==20
    one, other = (set((tmp_path/f'rank{k}').read_text().split()) for k in range(2))
    assert len(one) > 4 and len(other) > 4 and not one & other and len(one|other)==20       # there were two, and they shared
    assert pictures(tmp_path/'set')==whole

def test_slow_second(start, generate, whole, tmp_path):
    "The first could be far ahead when the second looks at what is there"
    a, b = (c.wait() for c in several(start, *generate, 'set', stop=dict(event='pathlib.Path.glob', pattern='manifest', sig=None, delay=3)))
    assert a.code==b.code==0 and as_json(a.out)['images']==20 and b.out=='', (a, b)
    assert pictures(tmp_path/'set')==whole

@pytest.mark.parametrize('then', [1, 2])
def test_one_dies(start, generate, whole, tmp_path, then):
    "What both have done until then is taken over, by one or by two"
    first, second = several(start, *generate, 'set', stop=dict(event='os.rename', pattern=r'\bset/\d{6}/\d{3}\.png$', nth=4))
    assert second.wait().code==-signal.SIGKILL
    assert first.wait().code!=0
    assert {'run.json', 'manifest-0.jsonl', 'manifest-1.jsonl'} <= set(contents(tmp_path/'set'))
    ends = [c.wait() for c in (several(start, *generate, 'set') if then==2 else [start(*generate, 'set')])]
    assert {c.code for c in ends}=={0}, ends
    assert pictures(tmp_path/'set')==whole

def test_three(start, generate, whole, tmp_path):
    assert [c.wait().code for c in several(start, *generate, 'set', n=3)]==[0]*3
    assert pictures(tmp_path/'set')==whole

def test_another_compute_batch(cemiface, generate, whole, tmp_path):
    "Faces of another compute batch are equal but for rounding: at most two of 255 levels, and hardly anywhere"
    assert cemiface(*generate, 'set', '--batch', 7).code==0
    one, other = (np.stack([np.asarray(Image.open(io.BytesIO(v))) for k, v in d.items() if k.endswith('.png')]).astype(int)
        for d in (whole, pictures(tmp_path/'set')))
    assert one.shape==(20, 24, 24, 3) and abs(one-other).max() <= 2 and (one!=other).mean() < .01

def losses(env, out):
    "In a process of its own: the losses of 20 steps, one by one"
    os.environ.update(env)
    from functools import partial
    from cemiface.data import toy as toyfaces
    from cemiface.generator import training
    from cemiface.recipe import TrainingConfig, load_recipe
    from cemiface.encoders.pretrained import FaceEncoder
    import torch
    torch.manual_seed(0)
    parts, eid, n = load_recipe('toy').parts, FaceEncoder.of('toy'), training.processes(cpu=True).num_processes
    assert n==int(env.get('WORLD_SIZE', 1))                    # a launcher may silently start a single one
    parts.training = TrainingConfig(epochs=1, batch=12, similarity_fraction=.5)
    training.TrainingLog = partial(training.TrainingLog, every=1)
    rows = training.train_denoiser(toyfaces.toy_faces(30, 8), eid, parts, out/'state', cpu=True)[1]
    (out/f'losses-{n}-{env.get("RANK", 0)}.json').write_text(json.dumps([[r[k] for k in ('loss', 'mse', 'match', 's')] for r in rows]))

def test_same_losses(tmp_path):
    "Loss curves over 20 steps: the global batch and the seed decide them, not the number of processes"
    for n in (1, 2, 3):
        envs = ranks(n) if n>1 else [{}]
        (tmp_path/str(n)).mkdir()
        for p in [fork(losses, env, tmp_path/str(n)) for env in envs]: p.join(100); assert p.exitcode==0
    curves = {p.name: np.array(json.loads(p.read_text())) for p in tmp_path.glob('*/losses-*.json')}
    assert len(curves)==6 and all(c.shape==(20, 4) for c in curves.values())
    one = curves['losses-1-0.json']
    assert np.ptp(one[:, 0]) > .01                             # they do change from step to step
    for name, c in curves.items(): assert abs(c-one)[:, 0].max() < 1e-4, (name, abs(c-one).max(0))

def test_mistakes_are_told_by_both(start, generate, finished, tmp_path):
    for c in several(start, *generate, 'set', '--steps', 2000): refused(c.wait(), '2000')
    assert not (tmp_path/'set').exists()

def test_train_generator(start, cemiface, finished, tmp_path):
    values = dict(epochs=16.67, batch=6, lr=1e-3, precision='no', checkpoint_minutes=1)         # 50 steps
    args = ['train-generator', '--faces', finished.faces, '--identity-encoder', finished.encoder, '-r', 'toy', *sets(),
        *sets(dict(training=values)), '--json', '--out']
    single, *both = cemiface(*args, 'single'), *(c.wait() for c in several(start, *args, 'double'))
    assert [r.code for r in (single, *both)]==[0, 0, 0], both
    one, other = as_json(single.out), as_json(both[0].out)
    assert both[1].out=='' and one['views']==other['views']==300
    assert list(contents(tmp_path/'single'))==list(contents(tmp_path/'double'))
    for k in ('loss', 'mse'): assert abs(other['last'][k]/one['last'][k]-1) < .001, (one, other)
    for c in several(start, *args, 'odd', '-s', 'training.batch=5'): refused(c.wait(), 'training.batch = 5')
