"""Killed at random moments, again and again: the end is that of a run that nobody disturbed.

`--kills 50` for the long version; the moments follow from `--kills-seed`."""
import random
import shutil
import signal
import time

import pytest
from conftest import as_json, contents, pictures, sets

def killed_at_random(start, args, compare, folder, request, name):
    "Start a command over and over, kill it at random moments of its life, and compare each finished folder with the undisturbed one"
    kills, seed = request.config.getoption('--kills'), request.config.getoption('--kills-seed')
    draw, left, since = random.Random(f'{seed} {name}'), kills, 0
    begun = time.monotonic()
    assert (c := start(*args, 'whole').wait()).code==0, c.err
    life, whole = time.monotonic()-begun, compare(folder/'whole')
    while left:
        c, wait = start(*args, 'out'), draw.uniform(0, life)
        c.process.join(wait)
        if c.process.exitcode is None: c.kill(signal.SIGKILL); left -= 1; since += 1
        r = c.wait()
        assert r.code in (-signal.SIGKILL, 0), r.err
        if r.code and left: continue
        if r.code: assert (r := start(*args, 'out').wait()).code==0, r.err
        end = compare(folder/'out')
        assert list(end)==list(whole) and all(end[k]==whole[k] for k in whole)
        print(f'{name}: {kills-left} kills, the last {since} in a run of {life:.1f} s, then as undisturbed')
        shutil.rmtree(folder/'out'); shutil.rmtree(folder/'out.inquiries', ignore_errors=True); since = 0

def weights(folder):
    "The networks of a generator, byte for byte, which is closer than 1e-6, and its log but for times"
    return {k: v for k, v in contents(folder).items() if k.endswith(('.safetensors', 'log.jsonl'))}

@pytest.mark.parametrize('every', [0, 1])                  # minutes between checkpoints: after every step, or only at the end
def test_training(start, finished, tmp_path, request, every):
    if every and request.config.getoption('--kills')<50: pytest.skip('without checkpoints each start begins anew: only with --kills 50')
    args = ['train-generator', '--faces', finished.faces, '--identity-encoder', finished.encoder, '-r', 'toy', *sets(),
        *sets(dict(training=dict(epochs=15, batch=6, checkpoint_minutes=every))), '--json', '--out']                    # 45 steps
    killed_at_random(start, args, weights, tmp_path, request, f'training, checkpoints every {every} minutes')

def test_generation(start, finished, tmp_path, request):
    args = ['generate', '--generator', finished.generator, '--inquiries', finished.inquiries, '--identities', 6, '--per-identity', 12,
        '--steps', 4, '--batch', 4, '--threshold', .9999, '--control', 'sphere', '--m', .9, '--json', '--out']
    killed_at_random(start, args, pictures, tmp_path, request, 'generation')

def test_damaged_checkpoint(start, finished, tmp_path):
    "The newest checkpoint is damaged: the one before is used, with a warning"
    args = ['train-generator', '--faces', finished.faces, '--identity-encoder', finished.encoder, '-r', 'toy', *sets(),
        *sets(dict(training=dict(epochs=4, batch=6))),
        '--json', '--out']                                                                                              # 12 steps
    assert start(*args, 'whole').wait().code==0
    c = start(*args, 'out', stop=dict(event='os.rename', pattern=r'checkpoint\.pt$', nth=9)).wait()
    assert c.code==-signal.SIGKILL
    newest = tmp_path/'out'/'training'/'checkpoint.old'                                     # killed between its renaming and that of the newest
    assert newest.exists() and not newest.with_suffix('.pt').exists()
    c = start(*args, 'out', stop=dict(event='os.rename', pattern=r'checkpoint\.pt$', nth=2)).wait()
    assert c.code==-signal.SIGKILL
    newest = newest if newest.exists() else newest.with_suffix('.pt')
    shutil.copy(newest, newest.with_suffix('.pt')); raw = bytearray(newest.read_bytes()); raw[len(raw)//2] ^= 1; newest.with_suffix('.pt').write_bytes(raw)
    c = start(*args, 'out').wait()
    assert c.code==0 and 'checkpoint.pt is damaged' in c.err and as_json(c.out)['views']==72, c
    assert weights(tmp_path/'out')==weights(tmp_path/'whole')

def test_force(start, finished, tmp_path):
    "Other settings are refused by name, or accepted where that makes sense and is asked for"
    args = ['train-generator', '--faces', finished.faces, '--identity-encoder', finished.encoder, '-r', 'toy', *sets(),
        *sets(dict(training=dict(epochs=4, batch=6))),
        '--json', '--out', 'out']
    assert start(*args, stop=dict(event='os.rename', pattern=r'checkpoint\.pt$', nth=2)).wait().code==-signal.SIGKILL
    lower, other = (['-s', f'{k}'] for k in ('training.lr=0.001', 'unet.layers=2'))
    c = start(*args, *lower).wait()
    assert c.code==2 and 'training.lr = 0.003 where 0.001 is asked for' in c.err, c
    c = start(*args, *lower, *other, '--force').wait()
    assert c.code==2 and 'unet.layers = 1 where 2 is asked for' in c.err, c
    assert start(*args, *lower, '--force').wait().code==0
    assert start(*args, *lower).wait().code==0                                              # it has become that training

def test_preempted(start, finished, tmp_path):
    "A cluster takes its machine back: SIGTERM makes a checkpoint, although none is due for an hour"
    args = ['train-generator', '--faces', finished.faces, '--identity-encoder', finished.encoder, '-r', 'toy', *sets(),
        *sets(dict(training=dict(epochs=200, batch=6, checkpoint_minutes=60))), '--json', '--out', 'out']                # 600 steps
    c = start(*args)
    while not (tmp_path/'out'/'training'/'log.jsonl').exists() or not (tmp_path/'out'/'training'/'log.jsonl').stat().st_size: time.sleep(.05)
    c.kill(signal.SIGTERM)
    assert c.wait().code==143
    assert (tmp_path/'out'/'training'/'checkpoint.pt').exists()
    log = (tmp_path/'out'/'training'/'log.jsonl').read_text()
    c = start(*args, stop=dict(event='os.rename', pattern='log.jsonl')).wait()                # written anew when training goes on: without what is beyond
    assert c.code==-signal.SIGKILL and (tmp_path/'out'/'training'/'log.jsonl').read_text()==log
