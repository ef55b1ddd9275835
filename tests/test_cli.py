"Every verb as a script would call it: results on standard output, all else on standard error"
import json
import shlex

import pytest
from conftest import as_json, contents, pictures, refused, sets, shell, tiny

# Whole runs

RUN = {'format_version', 'sets', 'seconds', 'versions', 'hardware', 'recipe', 'seed'}
SET = {'name', 'control', 'kind', 'm', 'identities', 'images', 'similarity_to_inquiry', 'within_identity', 'between_identity', 'leakage',
    'verification', 'gap_to_real', 'gap_ci95'}

def check_results(d, folder):
    "results.json as it is promised"
    assert RUN <= set(d) and d['format_version']==1 and d==json.loads((folder/'results.json').read_text())
    real = next(r['verification']['accuracy'] for r in d['sets'] if r['kind']=='real')
    for r in d['sets']:
        v, made = r['verification'], r['kind']=='generated'
        assert SET <= set(r) and r['kind'] in ('generated', 'real', 'inquiry_copies', 'recogniser')
        assert (r['control'] in ('scalar', 'sphere') and r['m'] is not None) if made else r['control'] is r['m'] is None
        assert {'accuracy', 'std', 'ci95', 'tar_at_far', 'seeds'} <= set(v) and v['seeds']
        assert 0 <= v['ci95'][0] <= v['accuracy'] <= v['ci95'][1] <= 1
        assert not made or {'mean', 'std', 'judge'} <= set(r['similarity_to_inquiry']) and {'max', 'mean', 'judge', 'above', 'nearer'} <= set(r['leakage'])
        assert r['gap_to_real'] is None if r['kind']=='recogniser' else abs(r['gap_to_real']-100*(real-v['accuracy'])) < 1e-6

def test_run(finished):
    assert finished.code==0 and 'Traceback' not in finished.err, finished.err
    assert 'generator ...' in finished.err.splitlines() and '%|' not in finished.err       # no bar where nobody looks
    d = as_json(finished.out)
    check_results(d, finished.path)
    assert [r['name'] for r in d['sets']]==['scalar_+1.00', 'scalar_+0.00', 'sphere_+0.90', 'sphere_+0.50', 'real', 'inquiry_copies', 'E_id']
    for o in ('report.html', 'recipe.toml', 'figures/faces.png', 'figures/roc.csv', 'sets/sphere_+0.50/README.md', 'analysis/sphere_+0.50.csv'):
        assert (finished.path/o).stat().st_size
    assert 'cosine to the nearest training face' in (finished.path/'generator'/'README.md').read_text()
    page = (finished.path/'report.html').read_text()
    assert page.count('<img')==5 and 'gap to real' in page and 'http' not in page

def test_run_of_photos(cemiface, finished, dev, tmp_path):
    small = dict(training=dict(epochs=1, batch=6), inquiries=dict(identities=4, threshold=.999), study=dict(scalar=[1], sphere=[.9]),
        sampling=dict(steps=2, batch=8), generation=dict(per_identity=2, copies=1), recogniser=dict(epochs=1, batch=4))
    args = ['run', '-r', 'toy', '-s', 'faces.source=folder', *sets(small), '--faces', finished.faces, '--identity-encoder', finished.encoder,
        '--pairs', dev/'pairs.txt', '--images', dev/'images', '--out', 'run']
    assert cemiface(*args, stop=dict(event='os.rename', pattern=r'/cache/faces\.json$')).code==-9     # between the two files of the cache
    r = cemiface(*args, '--json')
    assert r.code==0, r.err
    d = as_json(r.out)
    check_results(d, tmp_path/'run')
    assert {x['similarity_to_inquiry']['judge'] for x in d['sets'] if x['kind']=='generated'}=={'by E_id'}
    r = cemiface(*args)
    assert r.code==0 and 'accuracy' in r.out.splitlines()[0] and r.out.rstrip().endswith('report: run/report.html') and r.err=='', r

def test_demo(cemiface, tmp_path):
    short = {k: v for k, v in tiny.items() if k not in ('identity_encoder', 'training')}
    args = ['demo', '--out', 'demo', '--seeds', 2, *sets(short)]
    r = cemiface(*args, '--json')
    assert r.code==0 and 'Traceback' not in r.err, r.err
    d = as_json(r.out)
    check_results(d, tmp_path/'demo')
    assert all(len(x['verification']['seeds'])==2 for x in d['sets'] if x['kind']!='recogniser')
    assert not (tmp_path/'demo'/'generator').exists()                   # the shipped one serves
    r = cemiface(*args)
    assert r.code==0 and 'gap to real' in r.out and 'faces.png' in r.out and 'report: demo/report.html' in r.out.splitlines()
    assert r.err.startswith('the demo goes into demo')
    pack, generate, run = (shlex.split(o)[1:] for o in r.out.splitlines() if o.startswith('cemiface '))
    assert 'demo/packed/train.rec' in cemiface(*pack).out and 'demo/mine' in cemiface(*generate, '--steps', 2).out
    refused(cemiface(*run))                                            # the capitals are no files

def test_dry_run_and_recipes(cemiface, tmp_path):
    listed = as_json(cemiface('recipes', '--json').out)
    assert {'toy', 'lfw', 'paper-latent'} <= set(listed) and cemiface('recipes').out.count('\n')==len(listed)
    shown = cemiface('recipes', 'toy').out
    (tmp_path/'mine.toml').write_text(shown)
    r = cemiface('run', '-r', 'mine.toml', '-s', 'sampling.steps=7', '--dry-run', '--json')
    assert as_json(r.out)['sampling']['steps']==7 and r.err==''
    assert cemiface('run', '-r', 'mine.toml', '--dry-run').out==shown
    assert list(contents(tmp_path))==['mine.toml']

# One verb after the other

GENERATE = ['generate', '--identities', 4, '--per-identity', 2, '--steps', 2, '--batch', 4, '--threshold', .9999, '--seed', 3, '--json']

@pytest.mark.parametrize('control, m, ext', [('scalar', -.5, 'png'), ('sphere', .9, 'jpg')])
def test_generate(cemiface, finished, tmp_path, control, m, ext):
    args = [*GENERATE, '--generator', finished.generator, '--inquiries', finished.inquiries, '--control', control, '--m', m,
        '--image-format', ext, '--out', 'set']
    r = cemiface(*args)
    assert r.code==0 and r.err=='', r
    d = as_json(r.out)
    assert (d['images'], d['identities'], d['m'], d['control'], d['seed'])==(8, 4, m, control, 3)
    rows = [json.loads(o) for o in (tmp_path/'set'/'manifest.jsonl').read_text().splitlines()]
    assert [(o['identity'], o['index']) for o in rows]==[(i, k) for i in range(4) for k in range(2)]
    for o in rows:
        assert {'file', 'm', 'control', 'seed', 'inquiry', 'similarity', 'format_version'} <= set(o) and ('direction' in o)==(control=='sphere')
        assert o['file'].endswith(ext) and (tmp_path/'set'/o['file']).is_file() and (tmp_path/d['inquiries']/o['inquiry']['path']).is_file()
    before = contents(tmp_path)
    assert as_json(cemiface(*args).out)==d
    refused(cemiface(*args, '--seed', 4), 'set holds another run', 'another folder')
    assert contents(tmp_path)==before

def test_generate_from_nothing(cemiface, finished, tmp_path):
    args = [*GENERATE, '--generator', finished.generator, '--inquiries', 'synthetic', '--m', 0, '--out']
    assert cemiface(*args, 'one').code==cemiface(*args, 'two').code==0
    for o in ('', '.inquiries'): assert pictures(tmp_path/f'one{o}')==pictures(tmp_path/f'two{o}')
    assert len(pictures(tmp_path/'one'))==9

def test_train_generator(cemiface, finished, tmp_path):
    args = ['train-generator', '--faces', finished.faces, '--identity-encoder', finished.encoder, '-r', 'toy', *sets(), '--out', 'new/generator', '--json']
    r = cemiface(*args)
    assert r.code==0 and 'warm-up of 100' in r.err and r.err.count('\n')==1, r      # a warning
    assert as_json(r.out)['faces']==18
    before = contents(tmp_path/'new')
    assert cemiface(*args).code==0
    refused(cemiface(*args, '-s', 'training.lr=0.1'), 'new/generator holds another run')
    assert contents(tmp_path/'new')==before
    r = cemiface(*GENERATE, '--generator', 'new/generator', '--inquiries', finished.inquiries, '--m', 0, '--out', 'set')
    assert r.code==0, r.err

def test_train_recogniser_and_verify(cemiface, finished, dev, tmp_path):
    args = ['train-recogniser', '--faces', finished.faces, '-r', 'toy', *sets(), '--out', 'net', '--json']
    r = cemiface(*args)
    assert r.code==0 and r.err=='', r
    d = as_json(r.out)
    assert (d['identities'], d['images'], d['dim'])==(6, 18, 64)
    before = contents(tmp_path)
    assert cemiface(*args).code==0
    refused(cemiface(*args, '-s', 'recogniser.lr=0.1'), 'net holds another run')
    assert contents(tmp_path)==before
    ask = ['verify', '--encoder', 'net', '--pairs', dev/'pairs.txt', dev/'pairs.txt', '--images', dev/'images']
    r = cemiface(*ask, '--json')
    assert r.code==0 and r.err=='', r
    d = as_json(r.out)
    assert set(d)=={'results', 'average'} and len(d['results'])==2
    for o in d['results']: assert {'name', 'accuracy', 'std', 'folds', 'threshold', 'tar_at_far'} <= set(o) and o['folds']==2
    assert d['average']==d['results'][0]['accuracy'] and as_json(cemiface(*ask, '--json', '--folds', 4).out)['results'][0]['folds']==4
    names, figures = (o.split() for o in cemiface(*ask).out.splitlines()[-2:])
    assert names==['pairs', 'pairs', 'average'] and figures[-1]==f'{100*d["average"]:.2f}'

def test_analyse(cemiface, finished):
    asked = finished.inquiries
    r = cemiface('analyse', '--faces', finished.faces, '--judge', finished.judge, '--inquiries', asked, '--against', asked, '--json')
    assert r.code==0 and r.err=='', r
    d = as_json(r.out)
    assert (d['images'], d['identities'])==(18, 6) and {'max', 'mean', 'judge'} <= set(d['leakage'])
    mine = next(o for o in json.loads(finished.out)['sets'] if o['name']=='scalar_+1.00')
    for k in ('similarity_to_inquiry', 'within_identity', 'between_identity'): assert abs(d[k]['mean']-mine[k]['mean']) < 1e-5

def test_bench(cemiface, tmp_path):
    small = ['bench', '-r', 'toy', '-s', 'sampling.steps=2', '--batch', 4, '--repeats', 1]
    r = cemiface(*small, '--size', 16, '--compare', 'naive', '--json')
    assert r.code==0 and r.err=='', r
    d = as_json(r.out)
    assert {'format_version', 'rows', 'hardware', 'ceiling_tflops'} <= set(d) and d['ceiling_tflops'] > 0
    assert [o['work'] for o in d['rows']]==['train', 'sample', 'generate', 'recogniser', 'embed']
    for o in d['rows']:
        assert o['unit'] in ('img/s', 'eval/s') and (o['size'], o['batch'])==(16, 4) and o['precision'] in ('no', 'bf16')
        assert all(o[k] > 0 for k in ('rate', 'ratio_to_naive', 'share_of_ceiling', 'peak_memory_bytes'))
    assert d['rows'][2]['rate_with_writing'] > 0
    shown = cemiface(*small, '--size', 16, '--eid', 'toy', '--work', 'embed,sample', '--plots', 'plots')
    assert shown.code==0 and [o.split()[0] for o in shown.out.splitlines()[3:]]==['embed', 'sample', 'costs:'], shown
    assert list(contents(tmp_path))==['plots', *(f'plots/toy{o}' for o in ('', '/costs.csv', '/costs.png'))]
    refused(cemiface('bench', '--work', 'sing'), 'sing', 'train')
    refused(cemiface('bench', '-r', 'toy', '--size', 25), 'faces.size = 25')

def test_from_scratch(tmp_path):
    r = shell('--help', cwd=tmp_path)
    assert r.code==0 and 'train-generator' in r.out
    refused(shell('demo', '--seeds', 0, cwd=tmp_path), '--seeds', 'outside')
    refused(shell('sing', cwd=tmp_path), 'sing')
    refused(shell(cwd=tmp_path), 'VERB')
