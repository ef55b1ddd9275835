"Identities that are nobody: sampled points keep apart, their faces are the same in every process and after every kill, and cards say so"
import json
import shutil
import signal

import numpy as np
import pytest
from conftest import as_json, contents, pictures, refused, root, several
from hypothesis import given, settings, strategies as st

from cemiface.analysis.similarity import capacity
from cemiface.encoders.backbones import unit
from cemiface.sets.inquiries import nearest_direction, push_apart, sample_embeddings, select_inquiries

toy, samples = root/'cemiface'/'assets'/'toy', root/'data'/'samples'

def points(rng, n, dim): return rng.normal(size=(n, dim))*rng.uniform(.1, 20, (n, 1))

@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32-1), n=st.integers(1, 40), k=st.integers(0, 30), j=st.integers(0, 60), dim=st.integers(2, 48),
    limit=st.floats(-.2, 1), avoid=st.floats(-.2, 1))
def test_pushed_apart(seed, n, k, j, dim, limit, avoid):
    "Those that found room keep to both limits and to their length, whatever they are put among"
    rng = np.random.default_rng(seed)
    e, there, photos = points(rng, n, dim), points(rng, k, dim), points(rng, j, dim)
    if n > 2: e[1] = e[0]                                          # a copy has no direction to turn to
    x, room = push_apart(e, limit, there, photos, avoid)
    assert x.shape == e.shape and x.dtype == np.float32 and np.isfinite(x).all()
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), np.linalg.norm(e, axis=1), rtol=1e-5)
    kept = unit(x[room].astype(float))
    among = kept@kept.T - 3*np.eye(len(kept))
    assert among.max(initial=-1) < limit+1e-6
    if limit < 1: assert (kept@unit(there).T).max(initial=-1) < limit+1e-6
    if avoid < 1: assert (kept@unit(photos).T).max(initial=-1) < avoid+1e-6
    if n > 2 and limit < .99: assert not room[:2].all()

@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32-1), n=st.integers(1, 20), k=st.integers(1, 9000), dim=st.integers(1, 4))
def test_nearest_in_blocks(seed, n, k, dim):
    rng = np.random.default_rng(seed)
    x, others = unit(points(rng, n, dim)), points(rng, k, dim)
    cosine, direction = nearest_direction(x, others)
    np.testing.assert_allclose(cosine, (x@unit(others).T).max(1), atol=1e-9)
    np.testing.assert_allclose((x*direction).sum(1), cosine, atol=1e-9)

@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32-1), n=st.integers(0, 30), k=st.integers(2, 200), dim=st.integers(2, 24))
def test_sampled_points(seed, n, k, dim):
    "Numbers, as long as embeddings are, the first of them whatever comes after"
    e = points(np.random.default_rng(seed), k, dim)
    if len(select_inquiries(e, .5)) < 2: return
    x = sample_embeddings(e, n, seed)
    assert x.shape == (n, dim) and np.isfinite(x).all() and (np.linalg.norm(x, axis=1) > 0).all()
    np.testing.assert_allclose(sample_embeddings(e, n+3, seed)[:n], x, rtol=1e-4, atol=1e-6)

@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32-1), n=st.integers(3, 60), dim=st.integers(2, 16), threshold=st.floats(-.9, .9),
    collisions=st.floats(.01, .9))
def test_capacity(seed, n, dim, threshold, collisions):
    "Within its intervals, as counted pair by pair; more people have more doubles"
    e = points(np.random.default_rng(seed), n, dim)
    found, cosines = capacity(e, threshold, collisions), unit(e)@unit(e).T
    assert found['rate'] == pytest.approx((cosines[np.triu_indices(n, 1)] >= threshold).mean(), abs=2/n/(n-1)+1e-9)
    low, high = found['ci95']
    assert 0 <= low <= found['rate'] <= high <= 1
    numbers = [np.inf if v is None else v for v in (found['capacity_ci95'][0], found['capacity'], found['capacity_ci95'][1])]
    assert 1 <= numbers[0] <= numbers[1] <= numbers[2]
    if low: assert found['capacity'] == pytest.approx(1+np.log1p(-collisions)/np.log1p(-min(found['rate'], 1-1e-9)), abs=.06)

@pytest.fixture
def generate(tmp_path):
    for k in range(6): shutil.copytree(samples/f'{k:03d}', tmp_path/('photos' if k < 3 else 'others')/f'{k:03d}')
    return ['generate', '--generator', toy/'generator', '--inquiries', 'sampled', '--against', 'photos', '--held-out', 'others', '--identities', 3,
        '--per-identity', 2, '--m', .9, '--control', 'sphere', '--steps', 3, '--batch', 8, '--threshold', .9, '--json', '--device', 'cpu', '--out']

def test_sampled_set(cemiface, generate, tmp_path):
    "Killed anywhere, it becomes the same set; a larger one begins with it; it says that no photo served"
    r = cemiface(*generate, 'whole')
    assert r.code == 0, r.err
    assert 'no photo served as inquiry' in as_json(r.out)['source'] and 'sampled points' in r.err
    for place in (r'\.inquiries', r'/manifest\.jsonl'):
        assert cemiface(*generate, 'set', stop=dict(event='os.rename', pattern=rf'\bset{place}$')).code == -signal.SIGKILL, place
    assert cemiface(*generate, 'set').code == 0
    for o in ('', '.inquiries'): assert contents(tmp_path/f'set{o}') == contents(tmp_path/f'whole{o}')
    larger = cemiface(*generate, 'set', '--identities', 4)
    assert larger.code == 0, larger.err
    before, after = ({k: v for k, v in pictures(tmp_path/o).items() if k.endswith('.png')} for o in ('whole', 'set'))
    assert before.items() <= after.items() and (len(before), len(after)) == (6, 8)

def test_two_processes(start, cemiface, generate, tmp_path):
    assert cemiface(*generate, 'whole').code == 0
    ends = [c.wait() for c in several(start, *generate, 'set')]
    assert [c.code for c in ends] == [0, 0], ends
    assert pictures(tmp_path/'set') == pictures(tmp_path/'whole')

def test_mistakes(cemiface, generate, tmp_path):
    for option in ('--against', '--held-out'):
        at = generate.index(option)
        refused(cemiface(*generate[:at], *generate[at+2:], 'x'), '--inquiries sampled needs --against', '--held-out')
    full = cemiface(*generate, 'x', '--threshold', -.9, '--batch', 128)
    assert full.code == 2 and 'lower --identities, raise --threshold' in full.err and 'bring more' not in full.err
    assert not (tmp_path/'x').exists()

def test_analyse_tells_the_capacity(cemiface):
    ask = ['analyse', '--faces', samples, '--judge', toy/'judge']
    found = json.loads(cemiface(*ask, '--json').out)['capacity']
    assert found['people'] > 2 and found['threshold'] == .3 and {'rate', 'ci95', 'capacity', 'capacity_ci95', 'judge'} <= set(found)
    assert 'room for' in cemiface(*ask).out

def test_run_says_that_no_photo_served(cemiface, tmp_path):
    few = ['inquiries.source=sampled', 'inquiries.identities=6', 'inquiries.threshold=0.9', 'inquiries.drawn=64', 'generation.per_identity=2',
        'generation.copies=1', 'study.scalar=[1.0]', 'study.sphere=[]', 'recogniser.epochs=1', 'recogniser.batch=8', 'toy.identities=40',
        'toy.per_identity=4', 'toy.test_pairs=60', 'toy.test_identities=20', 'sampling.steps=3', 'sampling.batch=16']
    r = cemiface('demo', '--out', 'run', '--device', 'cpu', '--json', *(o for f in few for o in ('-s', f)))
    assert r.code == 0, r.err
    row = as_json(r.out)['sets'][0]
    assert row['capacity']['people'] == row['identities'] == 6 and row['leakage']['nonmembers']['capacity']['people'] > 2
    card, report = (tmp_path/'run'/o for o in ('sets/scalar_+1.00/README.md', 'report.html'))
    for page in (card, report): assert 'no photo served as inquiry' in page.read_text()
    assert 'how separate' in card.read_text() and 'id="capacity"' in report.read_text()
