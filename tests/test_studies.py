"Every study in miniature, as a command: killed in the middle, resumed, and on a folder of photos"
import csv
import json

import pytest
from conftest import as_json, refused, sets, tiny

small = {k: v for k, v in tiny.items() if k not in ('identity_encoder', 'training')} | dict(study=dict(scalar=[1, 0], sphere=[.9, .5], tune_epochs=.2))

# The work is killed just before these get their names
MOMENTS = [r'stages/inquiries\.json$', r'stages/faces\.json$', r'stages/analysis [^/]+\.json$', r'/recognisers/[^/]+$', r'stages/recogniser [^/]+\.json$',
    r'/figure\.png$', r'/results\.json$', r'stages/study [^/]+\.json$', r'studies/map/table\.csv$']

@pytest.mark.slow
def test_all(cemiface, tmp_path):
    args = ['study', '--all', '-r', 'toy', *sets(small), '--out', 'lab']
    for moment in MOMENTS: assert cemiface(*args, stop=dict(event='os.rename', pattern=moment)).code==-9, moment
    done = {p: p.stat().st_mtime_ns for p in (tmp_path/'lab').glob('s*/**/*.png')}         # sets, and figures of studies
    assert done
    r = cemiface(*args, '--json')
    assert r.code==0 and 'Traceback' not in r.err, r.err
    assert all(p.stat().st_mtime_ns==t for p, t in done.items())                            # nothing of that was made again
    unfit = {'autoencoder', 'photos'}                                                      # the toy draws pixels, of few faces here
    listed = {o['name'] for o in as_json(cemiface('study', '--list', '--json').out)['studies']}-unfit
    d = as_json(r.out)
    assert {o['study'] for o in d['studies']}==listed and len(listed)>25
    for o in d['studies']:
        home = tmp_path/'lab'/'studies'/o['study']
        assert o==json.loads((home/'results.json').read_text()) and o['held'] in (True, False, None) and o['rows'] and o['says'].endswith('.')
        page, (head, *lines) = (home/'README.md').read_text(), csv.reader((home/'table.csv').open())
        assert page.startswith(f'# {o["study"]}\n') and f'cemiface study {o["study"]} -r toy' in page and o['says'] in page
        assert len(lines)==len(o['rows']) and all(len(l)==len(head) for l in lines)
        for c in o['comparisons']: assert c['lo'] <= c['difference'] <= c['hi'] or c['lo']==c['hi'], c
    first = next(l for l in r.err.splitlines() if ' studies: ' in l)
    assert first.startswith(f'{len(listed)} studies: ') and 'minutes' in r.err             # the plan comes before the work

def test_of_photos(cemiface, finished, dev, tmp_path):
    few = dict(training=dict(epochs=1, batch=6), inquiries=dict(identities=4, threshold=.999), study=dict(scalar=[1], sphere=[.9, .5]),
        sampling=dict(steps=2, batch=8), generation=dict(per_identity=2, copies=1), recogniser=dict(epochs=1, batch=4))
    args = ['-r', 'toy', '-s', 'faces.source=folder', *sets(few), '--faces', finished.faces, '--identity-encoder', finished.encoder, '--judge',
        finished.judge, '--pairs', dev/'pairs.txt', '--images', dev/'images', '--out', 'lab']
    r = cemiface('study', 'm-sweep', 'leakage', 'calibration', *args, '--seeds', 2, '--json')
    assert r.code==0, r.err
    d = {o['study']: o for o in as_json(r.out)['studies']}
    assert {len(o['seeds'][0]) for o in d['m-sweep']['rows']}=={2} and all(o['judge'].startswith('judge ') for o in d.values())
    r = cemiface('suggest-m', *args)
    assert r.code==0 and r.out.startswith('m = '), r
    refused(cemiface('study', 'identity-encoder', *args), 'identity-encoder', 'E_id is given')

def test_mistakes(cemiface, tmp_path):
    refused(cemiface('study', 'm-swep', '-r', 'toy', '--out', 'new'), 'did you mean "m-sweep"')
    refused(cemiface('study', '-r', 'toy', '--out', 'new'), '--all', '--list')
    refused(cemiface('study', 'grid', '--all', '-r', 'toy', '--out', 'new'), '--all')
    refused(cemiface('study', 'grid'), '-r RECIPE')
    assert not (tmp_path/'new').exists()
