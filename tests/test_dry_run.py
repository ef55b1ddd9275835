"A dry run plans a run and tries every stage, and leaves nothing behind"
import json
import os

import pytest
from conftest import as_json, contents, in_process, refused, shell

def big_faces():
    "Six toy people with five photos each at the paper's size, and an untrained E_id of its kind"
    from cemiface.data.faces import save_image
    from cemiface.encoders.pretrained import FaceEncoder
    from cemiface.data.toy import toy_faces
    people = toy_faces(6, 5, size=112)
    for k, (face, who) in enumerate(zip(people.images, people.labels)): save_image(face, f'photos/{who:03d}/{k:03d}.png')
    FaceEncoder.of('ir50').save_pretrained('eid')

def test_plan(cemiface, finished, tmp_path):
    args = ['run', '-r', 'toy', '-s', 'faces.source=folder', '--dry-run', '--faces', finished.faces, '--identity-encoder', finished.encoder]
    before = contents(finished.path)
    rates = dict(rows=[dict(work=k, size=24, rate=50., steps=10) for k in ('train', 'generate', 'recogniser', 'embed')])
    (tmp_path/'bench.json').write_text(json.dumps(rates))
    r = cemiface(*args, '--rates', 'bench.json', '--processes', 2, '--json')
    assert r.code==0, r.err
    p = as_json(r.out)
    assert p['faces']==dict(images=18, identities=6) and p['processes']==2
    train = next(o for o in p['stages'] if o['work']=='train')
    assert train['steps']==round(18*18/64) and abs(train['hours']-train['amount']/50/3600/2) < 1e-9
    assert p['memory']['generator']['total'] > p['memory']['generator']['weights'] > 0 and p['disk']['sets'] > 0
    assert {'generator', 'inquiries', 'total'} < set(p['trial']['seconds']) and p['trial']['peak_memory_bytes'] > 1e8
    assert list(contents(tmp_path))==['bench.json'] and contents(finished.path)==before

def test_mistakes_are_told_before_the_work(cemiface, finished, tmp_path):
    args = ['run', '-r', 'toy', '-s', 'faces.source=folder', '--dry-run', '--faces', finished.faces]
    (tmp_path/'bench.json').write_text('{"rows": []}')
    refused(cemiface(*args, '--rates', 'bench.json'), 'at 24 pixels')
    refused(cemiface(*args, '--rates', 'none.json'), 'none.json')
    refused(cemiface(*args, '--pairs', 'none.txt'), '--pairs none.txt')
    refused(cemiface('run', '-r', 'toy', '-s', 'faces.source=folder', '--dry-run', '--faces', 'nowhere'), 'nowhere')
    refused(cemiface('run', '-r', 'toy', '--dry-run', '--faces', finished.faces), 'its own faces')

@pytest.mark.skipif(not os.environ.get('CEMIFACE_LONG'), reason='set CEMIFACE_LONG=1: two minutes of a free core, and 5 GB')
def test_paper_at_full_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    in_process(big_faces)
    before = contents(tmp_path)
    r = shell('run', '-r', 'paper', '--dry-run', '--faces', 'photos', '--identity-encoder', 'eid', '--device', 'cpu', '--json', cwd=tmp_path)
    assert r.code==0, r.err
    p = as_json(r.out)
    assert p['trial']['peak_memory_bytes'] < 16e9 and p['memory']['generator']['weights']==4*87_525_507
    assert next(o for o in p['stages'] if o['work']=='generate')['amount']==500_000 and contents(tmp_path)==before
