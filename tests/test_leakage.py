"A set that keeps away from the training photos: who comes too near is dropped, others are drawn instead, and a kill loses nothing"
import json
import shutil
import signal

import pytest
from conftest import as_json, contents, refused, root

toy, samples = root/'cemiface'/'assets'/'toy', root/'data'/'samples'

@pytest.fixture
def args(tmp_path):
    "Six drawn people, of whom two were trained on"
    for k in ('001', '003'): shutil.copytree(samples/k, tmp_path/'photos'/k)
    return ['generate', '--generator', toy/'generator', '--inquiries', samples, '--identities', 3, '--per-identity', 2, '--m', .9, '--control', 'sphere',
        '--steps', 3, '--batch', 4, '--threshold', .9, '--judge', toy/'judge', '--against', 'photos', '--max-leakage', .2, '--json', '--device', 'cpu', '--out']

def test_who_is_dropped(cemiface, tmp_path, args):
    r = cemiface(*args, 'set')
    assert (r.code, r.err)==(0, ''), r
    d, lines = as_json(r.out), [json.loads(o) for o in (tmp_path/'set'/'manifest.jsonl').read_text().splitlines()]
    assert (d['images'], d['identities'], d['max_leakage'])==(6, 3, .2) and {o['what'] for o in d['dropped']}=={'inquiry', 'face'}
    gone, kept = [o['identity'] for o in d['dropped']], sorted({o['identity'] for o in lines})
    assert sorted(gone+kept)==list(range(max(kept)+1)) and len(kept)==3 and all(o['cosine'] > .2 and o['nearest'] for o in d['dropped'])
    for o in ('set', 'set.inquiries'): assert [p.name for p in sorted((tmp_path/o).glob('0*'))]==[f'{i:06d}' for i in kept]
    assert json.loads((tmp_path/'set'/'dropped.json').read_text())['dropped']==d['dropped']
    plain = args[:args.index('--judge')]
    assert cemiface(*plain, '--identities', max(kept)+1, '--out', 'plain', '--device', 'cpu').code==0
    for o in lines: assert (tmp_path/'set'/o['file']).read_bytes()==(tmp_path/'plain'/o['file']).read_bytes()

def test_killed_and_resumed(cemiface, tmp_path, args):
    assert cemiface(*args, 'whole').code==0
    moments = [('os.rename', r'000001/001\.png$'), ('os.rename', r'set/dropped\.json$'), ('os.rename', r'set/manifest\.jsonl$'), ('shutil.rmtree', r'\bset/'),
        ('shutil.rmtree', r'set\.inquiries/'), ('os.rename', r'set/stages/faces\.json$')]
    killed = [cemiface(*args, 'set', stop=dict(event=event, pattern=pattern)).code for event, pattern in moments]
    assert killed==[-signal.SIGKILL]*len(moments)
    assert cemiface(*args, 'set').code==0 and cemiface(*args, 'set').code==0
    assert not [k for k in contents(tmp_path) if '.cemiface' in k]
    for o in ('', '.inquiries'): assert contents(tmp_path/f'set{o}')==contents(tmp_path/f'whole{o}')

def test_mistakes(cemiface, tmp_path, args):
    refused(cemiface(*args[:-1], '--identities', 15, '--out', 'many'), 'ran out', 'a leakage of 0.2')
    assert not (tmp_path/'many').exists()
    refused(cemiface(*[o for o in args if o not in ('--judge', toy/'judge')], 'x'), '--judge')
    refused(cemiface(*args, 'x', '--max-leakage', 2), 'outside [-1, 1]')
    assert cemiface(*args, 'set').code==0
    refused(cemiface(*args, 'set', '--max-leakage', .3), 'set was screened in another way', 'max_leakage = 0.2 where 0.3 is asked for')

def test_analyse(cemiface, tmp_path, args):
    ask = ['analyse', '--faces', samples, '--judge', toy/'judge', '--against']
    d = as_json(cemiface(*ask, 'photos', '--json').out)
    assert {'threshold', 'above', 'nearer', 'ci95', 'nonmembers', 'judge', 'who'} <= set(d['leakage']) and d['leakage']['max'] > .999
    assert d['leakage']['inquiries'] is None
    text = cemiface(*ask, 'photos').out
    assert 'The non-members are 8 photos of the other training people' in text and 'What this promises' in text
    (tmp_path/'flat').mkdir(); shutil.copy(samples/'001'/'000.png', tmp_path/'flat')
    assert set(as_json(cemiface(*ask, 'flat', '--json').out)['leakage'])=={'max', 'mean', 'judge', 'who'}
