"Several processes make what one makes"
import json
import os
import signal
import socket
import sys

import pytest
from conftest import as_json, contents, refused, sets, shell

def two(start, *args, stop=None):
    "Start a command in two processes, as torch's launcher does; `stop` is for the second"
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = dict(WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), ACCELERATE_USE_CPU='true')
    return [start(*args, env=dict(env, RANK=str(k), LOCAL_RANK=str(k)), stop=stop if k else None) for k in range(2)]

@pytest.fixture
def generate(finished):
    return ['generate', '--generator', finished.path/'generator', '--inquiries', finished.path/'inquiries', '--identities', 5, '--per-identity', 4, '--steps', 2,
        '--batch', 3, '--threshold', .9999, '--control', 'sphere', '--m', .9, '--seed', 3, '--json', '--out']

def made(folder):
    "Faces and manifest of a set"
    return {k: v.replace(folder.name.encode(), b'') for k, v in contents(folder).items() if k.endswith(('.png', '.jsonl'))}

@pytest.fixture
def whole(cemiface, generate, tmp_path):
    "The set as one process makes it"
    r = cemiface(*generate, 'whole')
    assert r.code==0, r.err
    return made(tmp_path/'whole')

# Loaded by every Python process that finds it: notes which faces this one writes
NOTE = '''import os, sys
def note(event, args):
    if event=='os.rename' and str(args[1]).endswith('.png') and 'inquiries' not in str(args[1]): open('rank'+os.environ.get('RANK', '?'), 'a').write(str(args[1])+'\\n')
sys.addaudithook(note)
'''

def test_launched(generate, whole, tmp_path):
    (tmp_path/'sitecustomize.py').write_text(NOTE)
    r = shell('--standalone', '--nproc_per_node=2', '-m', '--', 'cemiface.cli', *generate, 'set', cwd=tmp_path, module='torch.distributed.run',
        ACCELERATE_USE_CPU='true', PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ['PYTHONPATH']]))
    assert r.code==0 and 'terminate' not in r.err and 'Traceback' not in r.err, r.err
    assert as_json(r.out)['images']==20
    one, other = (set((tmp_path/f'rank{k}').read_text().split()) for k in range(2))
    assert len(one) > 4 and len(other) > 4 and not one & other and len(one|other)==20
    assert made(tmp_path/'set')==whole

def test_slow_second(start, generate, whole, tmp_path):
    "The first is far ahead when the second looks at what is there"
    a, b = (c.wait() for c in two(start, *generate, 'set', stop=dict(event='pathlib.Path.glob', pattern='manifest', sig=None, delay=3)))
    assert a.code==b.code==0 and as_json(a.out)['images']==20 and b.out=='', (a, b)
    assert made(tmp_path/'set')==whole

def test_one_dies(start, cemiface, generate, whole, tmp_path):
    "What both have done until then is taken over, by two again or by one"
    for again in (1, 2):
        one, other = two(start, *generate, f'set{again}', stop=dict(event='os.rename', pattern=r'/000[1-4]/00\d\.png$|manifest|/00000[2-4]/', nth=4))
        assert other.wait().code==-signal.SIGKILL
        one.wait(60)
    for again in (1, 2):
        assert {'run.json', 'manifest-0.jsonl', 'manifest-1.jsonl'} <= set(contents(tmp_path/f'set{again}'))
        ends = [c.wait() for c in (two(start, *generate, f'set{again}') if again==2 else [start(*generate, f'set{again}')])]
        assert {c.code for c in ends}=={0}, ends
        assert made(tmp_path/f'set{again}')==whole

def test_mistake_is_told_by_both(start, generate, tmp_path):
    for c in two(start, *generate, 'set', '--steps', 2000): refused(c.wait(), '2000')
    assert not (tmp_path/'set').exists()

def test_train_generator(start, cemiface, finished, faces, tmp_path):
    args = ['train-generator', '--faces', faces, '--recogniser', finished.path/'encoder', '-r', 'toy', *sets(), '-s', 'training.epochs=16.67', '-s', 'training.batch=6', '-s',
        'training.lr=0.001', '-s', 'training.precision="no"', '-s', 'training.checkpoint_minutes=1', '--json', '--out']
    single = cemiface(*args, 'single')
    a, b = (c.wait() for c in two(start, *args, 'double'))
    assert single.code==a.code==b.code==0, (single, a, b)
    one, both = as_json(single.out), as_json(a.out)
    assert b.out=='' and one['views']==both['views']==300 and list(contents(tmp_path/'single'))==list(contents(tmp_path/'double'))
    for k in ('loss', 'mse'): assert abs(both['last'][k]/one['last'][k]-1) < .1, (one, both)      # other noise, the same task
    for c in two(start, *args, 'odd', '-s', 'training.batch=5'): refused(c.wait(), 'training.batch')
