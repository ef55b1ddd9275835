"A recogniser that two processes train is as good as one process's, and is written once"
import json
import statistics

import pytest
from conftest import as_json, contents, in_process, refused, sets, several, shell

TRAIN = ['train-recogniser', '-r', 'toy', *sets(dict(recogniser=dict(epochs=4, batch=128))), '--faces', 'people', '--json', '--out']

def draw():
    "Fifty toy people with eight faces each, as a folder"
    from cemiface.data.faces import save_image
    from cemiface.data.toy import toy_faces
    people = toy_faces(50, 8)
    for k, (face, who) in enumerate(zip(people.images, people.labels)): save_image(face, f'people/{who:03d}/{k:03d}.png')

def examine(*folders):
    "Accuracy of each recogniser on other people"
    from cemiface.data.faces import PairSet
    from cemiface.encoders.pretrained import load_encoder
    from cemiface.data.toy import toy_faces
    from cemiface.recognition.verification import verify
    pairs = PairSet.from_faces(toy_faces(60, 6, first=5000), 1000, folds=5)
    with open('accuracy.json', 'w') as f: json.dump([verify(load_encoder(o), pairs).accuracy for o in folders], f)

@pytest.fixture
def people(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    in_process(draw)

def test_launched_training_is_as_good(cemiface, people, tmp_path):
    "Three seeds of one process show the spread; torch's launcher starts two"
    singles = ['one0', 'one1', 'one2']
    for k, name in enumerate(singles):
        r = cemiface(*TRAIN, name, '-s', f'seed={k}')
        assert r.code==0, r.err
    r = shell('--standalone', '--nproc_per_node=2', '-m', '--', 'cemiface.cli', *TRAIN, 'two', cwd=tmp_path, module='torch.distributed.run',
        ACCELERATE_USE_CPU='true')
    assert r.code==0 and 'Traceback' not in r.err, r.err
    assert as_json(r.out)['images']==400                                # told once
    one, both = (json.loads((tmp_path/o/'training.json').read_text()) for o in ('one0', 'two'))
    assert (one['processes'], both['processes'])==(1, 2)
    assert list(contents(tmp_path/'one0'))==list(contents(tmp_path/'two')) and not list(tmp_path.glob('*.state'))
    a, b = ([e['loss'] for e in o['epochs']] for o in (one, both))
    assert a[0]!=b[0] and all(abs(y/x-1) < .15 for x, y in zip(a, b)), (a, b)               # other batch statistics, the same task
    in_process(examine, *singles, 'two')
    *alone, shared = json.loads((tmp_path/'accuracy.json').read_text())
    spread = max(3*statistics.stdev(alone), .03)
    assert statistics.mean(alone) > .7 and abs(shared-statistics.mean(alone)) < spread, (alone, shared)

def test_two_resume_what_one_began(start, cemiface, people, tmp_path):
    "A state that one process left is taken up by two, and a finished recogniser by both"
    stop = dict(event='os.rename', pattern=r'two\.state$', nth=2)                            # after each epoch
    assert start(*TRAIN, 'two', stop=stop).wait().code!=0 and (tmp_path/'two.state').is_file()
    first, second = (c.wait() for c in several(start, *TRAIN, 'two'))
    assert first.code==second.code==0 and second.out=='', (first, second)
    there = json.loads((tmp_path/'two'/'training.json').read_text())
    assert there['processes']==2 and [e['epoch'] for e in there['epochs']]==[1, 2, 3, 4] and not (tmp_path/'two.state').exists()
    before = contents(tmp_path/'two')
    assert {c.wait().code for c in several(start, *TRAIN, 'two')}=={0} and contents(tmp_path/'two')==before

def test_mistakes_are_told_by_both(start, people, tmp_path):
    for c in several(start, *TRAIN, 'odd', '-s', 'recogniser.batch=63'): refused(c.wait(), 'recogniser.batch = 63', '2 processes')
    assert not list(tmp_path.glob('odd*'))

def test_verify_in_two(start, cemiface, finished, dev):
    "The first does all of it; the second has nothing to do and says nothing"
    args = ['verify', '--encoder', finished.encoder, '--pairs', dev/'pairs.txt', '--images', dev/'images', '--json']
    first, second = (c.wait() for c in several(start, *args))
    assert first.code==second.code==0 and (second.out, second.err)==('', '')
    assert as_json(first.out)==as_json(cemiface(*args).out)
