"""Other people's networks, protocols and photos from the command line: recognisers by import path, IJB templates, alignment."""
import shutil

import numpy as np
import pytest
from conftest import as_json, contents, refused, root, sets, tiny
from PIL import Image

places = np.array([(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)])      # of an aligned face of 112 pixels
samples, encoder = root/'data'/'samples', root/'cemiface'/'assets'/'toy'/'identity_encoder'
nets = '''from torch import nn
import torch
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3*36, 16)), dict(height=24, width=24, colour='bgr')
'''

def line(*parts): return ' '.join(map(str, parts))+'\n'
def marks(points): return ' '.join(f'{v:.3f}' for v in np.ravel(points))

@pytest.fixture
def photos(tmp_path):
    "Aligned faces on larger photos, and where their landmarks are"
    rows = []
    for k, p in enumerate(sorted(samples.glob('*/*.png'))[:6]):
        photo, face = Image.new('RGB', (300, 240)), Image.open(p).resize((112, 112))
        photo.paste(face, (40+9*k, 30)); rows.append((f'p{k//2}/{k}.png', places+[40+9*k, 30], face))
        (tmp_path/'photos'/f'p{k//2}').mkdir(parents=True, exist_ok=True); photo.save(tmp_path/'photos'/rows[-1][0])
    return rows

def test_align(cemiface, photos, tmp_path):
    (tmp_path/'marks.txt').write_text(''.join(line(o, marks(p)) for o, p, _ in photos[:5])+line(photos[1][0], marks(photos[1][1]+20), 1))
    ask = ['align', '--from', 'photos', '--to', 'faces', '--landmarks', 'marks.txt', '--json']
    facts = as_json(cemiface(*ask).out)
    assert facts==dict(out='faces', images=6, aligned=4, dropped={'no face': 1, 'several faces': 1})
    assert (tmp_path/'faces'/'dropped.txt').read_text()=='several faces\tp0/1.png\nno face\tp2/5.png\n'
    for k in (0, 2, 3, 4): np.testing.assert_allclose(*(np.array(o, int) for o in (Image.open(tmp_path/'faces'/photos[k][0]), photos[k][2])), atol=1)
    before = contents(tmp_path/'faces')
    (tmp_path/'faces'/photos[0][0]).unlink()
    assert as_json(cemiface(*ask).out)==facts and contents(tmp_path/'faces')==before         # a second run mends the first
    refused(cemiface(*ask, '--min-side', 20), 'faces', 'another run', 'another folder')
    (tmp_path/'own.py').write_text('def build(): return lambda image: []\ndef bad(): return lambda image: 3\n')
    assert as_json(cemiface('align', '--from', 'photos', '--to', 'none', '--detector', 'own:build', '--json').out)['dropped']=={'no face': 6}
    refused(cemiface('align', '--from', 'photos', '--to', 'bad', '--detector', 'own:bad'), 'own:bad', 'five points')
    refused(cemiface('align', '--from', 'photos', '--to', 'bad', '--detector', 'own:absent'), 'own', 'absent')

def ijb(d, photos):
    "A small set of the form of IJB-B: six templates of one image, and all pairs of them"
    (d/'meta').mkdir(parents=True); shutil.copytree(d.parent/'photos', d/'loose_crop')
    (d/'meta/ijbb_face_tid_mid.txt').write_text(''.join(line(o, k, k) for k, (o, *_) in enumerate(photos)))
    (d/'meta/ijbb_name_5pts_score.txt').write_text(''.join(line(o, marks(p), .9) for o, p, _ in photos))
    (d/'meta/ijbb_template_pair_label.txt').write_text(''.join(line(a, b, int(a//2==b//2)) for a in range(6) for b in range(a)))
    return d/'meta'

def test_ijb(cemiface, photos, tmp_path):
    meta = ijb(tmp_path/'ijb', photos)
    ask = ['verify', '--encoder', encoder, '--ijb', 'ijb']
    table = as_json(cemiface(*ask, '--json').out); r, = table['results']
    assert table['average'] is None and (r['name'], r['accuracy'], r['pairs'], r['templates'])==('ijbb', None, 15, 6)
    assert list(r['tar_at_far'])==['1e-06', '1e-05', '0.0001', '0.001', '0.01', '0.1'] and all(0<=v<=1 for v in r['tar_at_far'].values())
    assert 'TAR' in cemiface(*ask).out
    with open(meta/'ijbb_template_pair_label.txt', 'a') as f: f.write('5 99 0\n')
    refused(cemiface(*ask), 'ijbb_template_pair_label.txt', 'line 16')
    (meta/'ijbb_face_tid_mid.txt').write_text(line('../../x.png', 0, 0)); refused(cemiface(*ask), 'line 1', '../../x.png')
    refused(cemiface('verify', '--encoder', encoder), '--pairs', '--ijb')

def test_own_network(cemiface, photos, tmp_path):
    (tmp_path/'nets.py').write_text(nets); ijb(tmp_path/'ijb', photos)
    assert as_json(cemiface('verify', '--encoder', 'nets:build', '--ijb', 'ijb', '--json').out)['results'][0]['pairs']==15
    refused(cemiface('verify', '--encoder', 'nets:absent', '--ijb', 'ijb'), 'nets', 'absent')
    r = cemiface('train-generator', '--faces', samples, '-r', 'toy', *sets({k: tiny[k] for k in ('training',)}), '--identity-encoder', 'nets:build',
        '--out', 'G')
    assert r.code==0, r.err
    draw = ['generate', '--generator', 'G', '--inquiries', samples, '--m', 0, '--identities', 2, '--per-identity', 1, '--steps', 2, '--threshold', 1,
        '--out', 'set']
    refused(cemiface(*draw), 'nets:build', 'CEMIFACE_NETWORKS')          # a folder may not choose what code is run
    r = cemiface(*draw, env=dict(CEMIFACE_NETWORKS='nets:build'))
    assert r.code==0 and len(list((tmp_path/'set').glob('*/*.png')))==2, r.err
