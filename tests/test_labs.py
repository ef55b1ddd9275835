"The folder of a study is what was written, or is made again; names of anybody are shown as they are; nothing stale is taken for new"
import csv
import html
import io
import os
import shlex
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cemiface.analysis.variety import read_groups
from cemiface.core import CemiFaceError, csv_text, RunFolder
from cemiface.data.faces import FaceSet, save_image
from cemiface.experiment import arms, practice, study
from cemiface.experiment.report import markdown_text
from cemiface.recipe import changed, Inputs, load_recipe, recipes

few = settings(max_examples=30, deadline=None, derandomize=True, database=None)
words = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\r'), min_size=1, max_size=30)      # text files know one end of a line
HOSTILE = ['<b>g</b>', 'a|b', 'l1\nl2', '\u202eg', 'y'*200, '![x](http://e/x.png)', '[a](b)', '=1+1', '$\\frac{$',
    '../x', '`c`', '{{< include x >}}', '@who', '\udcff']

@few
@given(words | st.sampled_from(HOSTILE) | st.lists(st.sampled_from(HOSTILE)).map(''.join))
def test_text_in_markdown(text):
    shown = markdown_text(text)
    assert not set(shown) & set('<>|`*\\$@!{}\n\r~^"') and '](' not in shown and shown.isprintable() and '][' not in shown
    assert html.unescape(shown) == ''.join(o if o.isprintable() else ascii(o)[1:-1] for o in text)

@few
@given(words | st.sampled_from(HOSTILE) | st.binary(min_size=1).map(os.fsdecode))
def test_any_name_fits_into_a_table(name):
    text = csv_text([dict(file=name, cosine=.5)])
    (_, (shown, number)), lines = csv.reader(io.StringIO(text.encode().decode(), newline='')), text.count('\n')
    assert number == '0.5' and lines == 2+name.count('\n') and (shown == name or not name.isprintable())

@few
@given(st.dictionaries(words, words, min_size=1), st.randoms())
def test_groups_are_kept_apart(groups, random):
    "Whoever may write a name into CSV gets it back, whatever is in it"
    with tempfile.TemporaryDirectory() as d:
        with open(Path(d)/'g.csv', 'w', newline='', encoding='utf-8') as f: csv.writer(f).writerows([('identity', 'group'), *groups.items()])
        names = random.sample(sorted(groups), len(groups))
        assert read_groups(Path(d)/'g.csv', names).tolist() == [groups[o] for o in names]

def test_a_long_name_of_a_group_takes_no_memory():
    with tempfile.TemporaryDirectory() as d:
        lines = ['identity,group', 'a,'+'x'*100_000, *(f'{k},y' for k in range(2000))]
        (Path(d)/'g.csv').write_text('\n'.join(lines))
        assert read_groups(Path(d)/'g.csv', ['a', *map(str, range(2000))]).nbytes < 100_000

@few
@given(st.sampled_from(sorted(recipes())), words, st.sampled_from([None, 0., .5]), st.lists(st.sampled_from([1., .5, -1.])), st.integers(0, 9))
def test_command_of_a_page_gives_the_recipe_back(name, about, late, levels, seed):
    recipe = load_recipe(name, [f'seed={seed}', f'loss.lam_late={"none" if late is None else late}'])
    recipe.about, recipe.study.scalar = about.replace('\0', ''), levels
    said = shlex.split(study.command_of('fid', recipe, 2, 3).replace('\\\n', ' '))
    sets = [b for a, b in zip(said, said[1:]) if a == '-s']
    assert asdict(load_recipe(said[said.index('-r')+1], sets)) == asdict(recipe)

def lab_in(folder, **more):
    "What a study without arms looks at, without any network"
    part = SimpleNamespace(fingerprint='x', config=SimpleNamespace(arch='toy'))
    facts = dict(train=part, native_pairs=part, identity=part, judge=part, pairs=FaceSet(np.zeros((3, 3, 8, 8), np.uint8)),
        autoencoder=None, inputs=None, seeds=1)
    return SimpleNamespace(out=Path(folder), folder=RunFolder(folder), recipe=load_recipe('toy'), memory={}, generator_seeds=1, device='cpu',
        judge_name='judge', **facts | more)

DAMAGE = ['unlink', b'', b'{}', b'[1]', b'{"study": "other"}', b'\xff', 'cut', 'folder']

@few
@given(st.sampled_from(['results.json', 'table.csv', 'README.md']), st.sampled_from(DAMAGE))
def test_pages_are_made_again(file, damage):
    with tempfile.TemporaryDirectory() as d, pytest.MonkeyPatch.context() as instead:
        rows = [dict(name=o, value=1.) for o in HOSTILE[:-1]]
        finding = lambda *_: study.Finding(None, 'So.', rows=[dict(o) for o in rows], columns={'set': 'name', 'value': 'value:.1f'})
        instead.setattr(study, 'find', finding)
        cost = study.load_study('cost')
        first, at = study.make_study(cost, lab_in(d)), Path(d)/'studies'/'cost'/file
        whole = at.read_bytes()
        if damage in ('unlink', 'folder'): at.unlink()
        if damage == 'folder': at.mkdir()
        if damage == 'cut': at.write_bytes(whole[:len(whole)//2])
        if isinstance(damage, bytes): at.write_bytes(damage)
        if damage == 'folder':
            with pytest.raises(CemiFaceError, match='a folder stands'): study.make_study(cost, lab_in(d))
            return
        assert study.make_study(cost, lab_in(d)) == first
        if file == 'results.json' or damage == 'unlink': assert at.read_bytes() == whole          # a page may have been edited by hand
        assert {p.name for p in at.parent.iterdir()} == {'results.json', 'table.csv', 'README.md'}

@few
@given(st.sampled_from(['other', 'shape', 'cut', 'folder', 'numbers', b'', b'\xff'*99, b'PK\x05\x06'+b'\0'*18]))
def test_kept_faces_are_refused_when_damaged_and_made_again_when_deleted(damage):
    with tempfile.TemporaryDirectory() as d:
        lab, path, faces = lab_in(d, fingerprint='x'), Path(d)/'kept.npy', np.arange(192, dtype=np.uint8).reshape(1, 3, 8, 8)
        def kept(lab): return arms.made_once(lab, path, ('decides',), lambda: np.save(path, faces), lambda at: FaceSet(np.load(at, mmap_mode='r')))
        assert (kept(lab).images == faces).all() and (kept(lab).images == faces).all()
        whole = path.read_bytes()
        path.unlink()
        if damage == 'folder': path.mkdir()
        elif damage == 'cut': path.write_bytes(whole[:-9])
        elif isinstance(damage, bytes): path.write_bytes(damage)
        else: np.save(path, dict(other=faces[..., ::-1], shape=faces[:0], numbers=faces*.5)[damage])
        with pytest.raises(CemiFaceError, match='is damaged; delete it'): kept(lab)
        path.rmdir() if damage == 'folder' else path.unlink()
        assert (kept(lab).images == faces).all()
        faces = faces+1
        assert (kept(lab).images == faces-1).all() and (kept(lab_in(d, fingerprint='y')).images == faces).all()       # another generator, for instance

def test_what_decides_a_study(tmp_path):
    "Another file of groups, other pairs or another judge: nothing is taken from before"
    other, cost = SimpleNamespace(fingerprint='y'), study.load_study('cost')
    fairness = replace(practice.FAIRNESS, arms=lambda recipe: {})
    seen = {str(study.deciding(cost, lab_in(tmp_path, **o))) for o in ({}, dict(train=other), dict(judge=other), dict(native_pairs=other), dict(seeds=2))}
    assert len(seen) == 5
    found = []
    for text in (None, 'identity,group\na,b', 'identity,group\na,c'):
        if text: (tmp_path/'groups.csv').write_text(text)
        found.append(str(study.deciding(fairness, lab_in(tmp_path))))
    assert len(set(found)) == 3

def test_groups_are_those_of_the_inquiries(tmp_path):
    "Not of whoever has the same number among the training photos"
    for who in ('Ann', 'Bo', 'Cy'):
        (tmp_path/'given'/who).mkdir(parents=True)
        save_image(np.full((3, 24, 24), len(who), np.uint8), tmp_path/'given'/who/'1.png')
    (tmp_path/'groups.csv').write_text('identity,group\nAnn,a\nBo,b\nCy,c')
    train = FaceSet(np.zeros((3, 3, 24, 24), np.uint8), [0, 1, 2], ['Cy', 'Ann', 'Bo'])
    lab = lab_in(tmp_path, train=train, inputs=Inputs(), inquiries=[0, 1])
    lab.recipe = changed(lab.recipe, ['faces.source="folder"'])
    lab.folder.finish('inquiries', 'key', found=[2, 0])
    assert practice.groups_of_people(lab)[0]['file'].tolist() == ['b', 'c']
    lab.inputs = Inputs(inquiries=str(tmp_path/'given'))
    assert practice.groups_of_people(lab)[0]['file'].tolist() == ['c', 'a']
    with pytest.raises(CemiFaceError, match='inquiries.source'):
        practice.choose_studies(['fairness'], changed(lab.recipe, ['inquiries.source="synthetic"']))

def test_names_of_groups_in_a_figure(tmp_path):
    rows = [dict(name='real', what=what, kind='file', group=group, mean=.5, lo=.4, hi=.6) for what in ('accuracy', 'similarity') for group in HOSTILE]
    practice.plot_groups(rows, 'a judge').savefig(tmp_path/'figure.png')

def test_photos_without_people(tmp_path, monkeypatch, capsys):
    "Refused before any work, and only by the studies that need to know people"
    flat = lab_in(tmp_path, train=FaceSet(np.zeros((3, 3, 24, 24), np.uint8)))
    monkeypatch.setattr(study, 'open_lab', lambda *_: flat)
    toy = flat.recipe
    chosen = practice.choose_studies(['m-sweep', 'calibration', 'another-photo'], toy)
    with pytest.raises(CemiFaceError, match='study m-sweep .* no identities.*; study another-photo .* no identities'):
        study.run_studies(toy, tmp_path, chosen)
    assert [o.name for o in study.fitting(chosen, toy, flat.train, named=False)]==['calibration']
    assert 'left out: study m-sweep cannot be made of recipe toy: the photos have no identities' in capsys.readouterr().err
    assert not [o for o in ('m-mixing', 'grid', 'cost', 'calibration', 'leakage') if study.needs_labels(practice.STUDIES[o], toy)] and not os.listdir(tmp_path)
