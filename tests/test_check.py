"What `cemiface check` finds of each fault in copies of a set of toy faces, and that good sets give no alarm"
import json

import pytest
from conftest import as_json, refused, root, sets
from faults import EXPECTED, spoil

judge = root/'cemiface'/'assets'/'toy'/'judge'

@pytest.fixture(scope='module')
def people(tmp_path_factory):
    from cemiface.data.toy import toy_faces
    return toy_faces(60, 6, first=800_000).save(tmp_path_factory.mktemp('people')/'set')

def states(r):
    assert (r.code, r.err) == (0, ''), r
    return {o['check']: o['state'] for o in as_json(r.out)['findings']}

def check(cemiface, folder, *more): return cemiface('check', '--faces', folder, '--judge', judge, '--json', '--quiet', *more)

def test_a_good_set_gives_no_alarm(cemiface, people):
    assert set(states(check(cemiface, people)).values()) <= {'ok', 'not checked'}

@pytest.mark.parametrize('fault', ['unreadable', 'sizes', 'bgr', 'turned', 'mixed', 'duplicates'])
@pytest.mark.parametrize('part', [.3, 1])
def test_a_fault_is_found_and_its_files_are_named(cemiface, people, tmp_path, fault, part):
    changed = spoil(people, tmp_path/'set', fault, part)
    r = check(cemiface, tmp_path/'set')
    assert states(r)[EXPECTED[fault]] == 'FOUND', r.out
    named = {name for o in as_json(r.out)['findings'] if o['check'] == EXPECTED[fault] for name in o['files']}
    if isinstance(changed, list) and fault != 'sizes': assert len(named & set(changed)) > .5*len(changed), (len(named), len(changed))

def test_what_is_written(cemiface, people, tmp_path):
    spoil(people, tmp_path/'set', 'unreadable', .05)
    r = cemiface('check', '--faces', 'set', '--judge', judge, '--out', 'checked', '--quiet')
    assert r.code == 0 and 'FOUND        unreadable files     18 of 360' in r.out and len(r.out.splitlines()) < 40
    facts = json.loads((tmp_path/'checked'/'check.json').read_text())
    lines = (tmp_path/'checked'/'dropped.txt').read_text().splitlines()
    assert facts['findings'][0]['check'] == 'unreadable files' and sum(o.startswith('unreadable files\t') for o in lines) == 18

def test_mistakes(cemiface, people):
    refused(cemiface('check', '--judge', judge), '--faces', '--pairs')
    refused(cemiface('check', '--faces', 'absent'), 'absent')

def test_a_training_warns_and_goes_on(cemiface, people, tmp_path):
    spoil(people, tmp_path/'set', 'bgr', 1)
    r = cemiface('train-recogniser', '--faces', 'set', '-r', 'toy', *sets(), '--out', 'net', '--quiet')
    assert r.code == 0 and 'more blue than red' in r.err and 'cemiface check' in r.err
