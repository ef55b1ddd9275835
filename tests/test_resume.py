"Killed at any moment and started again, a command goes on, and ends as if nothing had happened"
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import HANG, as_json, contents, sets

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
    ('recogniser scalar_+1.00 0', 'os.rename', r'/scalar_\+1.00-0\.state$', 2),
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
