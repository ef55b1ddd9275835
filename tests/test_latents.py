"Latents, a transformer and flow matching, from photos to a set: killed, resumed, and in one process or two"
import json
import shutil
import signal

import pytest
from conftest import as_json, contents, fork, pictures, refused, root, sets, several

VALUES = dict(faces=dict(source='folder'), schedule=dict(kind='flow'), transformer=dict(width=32, depth=2, heads=2),
    condition=dict(width=32, tokens=2, mlp=False), loss=dict(lam=0.),
    training=dict(epochs=2, batch=16, warmup=2, m_low=1, m_high=1, precision='no', checkpoint_minutes=0))
LATENT = ['-r', 'toy', '-s', 'denoiser=transformer', '-s', 'autoencoder=given', *sets(VALUES)]

def make_inputs(folder):
    from cemiface.data.faces import save_image
    from cemiface.data.toy import toy_faces
    from cemiface.generator.autoencoder import small_autoencoder
    faces = toy_faces(12, 4, 24)
    for k, image in enumerate(faces.images): save_image(image, folder/'photos'/f'{faces.labels[k]:02d}'/f'{k%4}.png')
    small_autoencoder(faces, steps=300).save_pretrained(folder/'autoencoder')

@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    "Photos of twelve people, and an autoencoder of them"
    folder = tmp_path_factory.mktemp('latents')
    p = fork(make_inputs, folder)
    p.join(100)
    assert p.exitcode == 0
    return folder

@pytest.fixture(scope='module')
def train(inputs):
    return ['train-generator', '--faces', inputs/'photos', '--identity-encoder', 'toy', *LATENT, '--json',
        '--autoencoder', inputs/'autoencoder', '--out']

@pytest.fixture
def made(inputs, train, cemiface):
    "A generator of latents, which serves many tests: nobody writes into it"
    if not (inputs/'generator').exists():
        r = cemiface(*train, inputs/'generator')
        assert r.code == 0, r.err
        assert as_json(r.out)['faces'] == 48
    return inputs/'generator'

def generate(generator, inputs):
    return ['generate', '--generator', generator, '--inquiries', inputs/'photos', '--identities', 5, '--per-identity', 4, '--steps', 2,
        '--batch', 3, '--threshold', .9999, '--control', 'sphere', '--m', .9, '--out']

def weights(folder):
    return {k: v for k, v in contents(folder).items() if k.endswith('.safetensors') or k.endswith('config.json')}

def test_killed_and_resumed(cemiface, train, made, tmp_path):
    "While it encodes, trains and saves"
    moments = [(r'/training/cache/\w+\.json$', 2), (r'/checkpoint\.pt$', 3), ('/autoencoder$', 1), ('/model_index.json$', 1)]
    for pattern, nth in moments:
        r = cemiface(*train, 'new', stop=dict(event='os.rename', pattern=pattern, nth=nth))
        assert r.code == -signal.SIGKILL and 'Traceback' not in r.err, (pattern, r)
    assert cemiface(*train, 'new').code == 0
    assert weights(tmp_path/'new') == weights(made)
    card = (tmp_path/'new'/'README.md').read_text()
    assert '4x12x12 (factor 2), of the autoencoder autoencoder, whose licence is Apache-2.0' in card

def test_trained_by_two(start, train, made, tmp_path):
    assert [c.wait().code for c in several(start, *train, 'double')] == [0, 0]
    one, other = (json.loads((o/'model_index.json').read_text()) for o in (made, tmp_path/'double'))
    assert one['latent_mean'] == other['latent_mean'] and len(one['latent_std']) == 4
    assert abs(other['trained']['last']['mse']/one['trained']['last']['mse']-1) < .001
    assert one['autoencoder'] == ['cemiface.generator.autoencoder', 'Autoencoder']

def test_drawn_by_one_and_two(start, cemiface, made, inputs, tmp_path):
    ask = generate(made, inputs)
    assert cemiface(*ask, 'whole').code == 0
    assert [c.wait().code for c in several(start, *ask, 'set')] == [0, 0]
    stop = dict(event='os.rename', pattern=r'\bcut/000002/000\.png$')
    assert cemiface(*ask, 'cut', stop=stop).code == -signal.SIGKILL
    assert cemiface(*ask, 'cut').code == 0
    whole, both, cut = (pictures(tmp_path/o) for o in ('whole', 'set', 'cut'))
    assert len(whole) == 21 and whole == both == cut

def test_analysed_and_calibrated(cemiface, made, inputs, tmp_path):
    shutil.copytree(made, tmp_path/'own')
    r = cemiface('calibrate', '--generator', 'own', '--faces', inputs/'photos', '--judge', 'toy-judge', '--limit', 6, '--steps', 2, '--control',
        'sphere', '--json')
    assert r.code == 0 and len(as_json(r.out)['calibrations']['sphere']['m']) == 13, r.err
    assert cemiface(*generate('own', inputs), 'set').code == 0
    r = cemiface('analyse', '--faces', 'set', '--judge', 'toy-judge', '--json')
    assert r.code == 0 and as_json(r.out)['images'] == 20, r

def test_refused(cemiface, train, made, inputs, tmp_path):
    without = [o for o in train if o not in ('--autoencoder', inputs/'autoencoder')]
    refused(cemiface(*without, 'new'), 'recipe toy', 'needs --autoencoder')
    refused(cemiface(*train, 'new', '-s', 'autoencoder=none'), 'recipe toy', 'works in pixels')
    refused(cemiface(*train, 'new', '-s', 'faces.size=25'), '25x25', 'multiples of 2')
    refused(cemiface(*train, 'new', '-s', 'transformer.patch=5'), 'transformer.patch = 5')
    assert not (tmp_path/'new').exists()

@pytest.mark.parametrize('change', [dict(latent_std=[1, 1, 0, 1]), dict(latent_mean=None), dict(latent_mean=['a']*4), dict(latent_std=[1.]*3),
    dict(latent_mean=[[0.]*2]*2), dict(latent_std=[1e38]*4), dict(latent_std=[[1.]]*4), dict(latent_mean=[True]*4), dict(autoencoder=None),
    dict(autoencoder=['os', 'system'])])
def test_damaged_index(cemiface, made, inputs, tmp_path, change):
    shutil.copytree(made, tmp_path/'own')
    at = tmp_path/'own'/'model_index.json'
    at.write_text(json.dumps(json.loads(at.read_text())|change))
    refused(cemiface(*generate('own', inputs), 'set'), 'own', 'cannot be read as a generator')

def swap(folder):
    "Other weights of the same shapes"
    from safetensors.torch import load_file, save_file
    file = folder/'diffusion_pytorch_model.safetensors'
    save_file({k: v*1.01 if v.is_floating_point() else v for k, v in load_file(file).items()}, file)

@pytest.mark.parametrize('part', ['autoencoder', 'identity_encoder'])
def test_another_part(cemiface, made, inputs, tmp_path, part):
    "What decodes, or embeds, belongs to a generator: with another, a set is not resumed, and it is said"
    shutil.copytree(made, tmp_path/'own')
    r = cemiface(*generate('own', inputs), 'set')
    assert r.code == 0 and 'trained with' not in r.err, r.err
    before = contents(tmp_path/'set')
    swap(tmp_path/'own'/part)
    r = cemiface(*generate('own', inputs), 'set')
    refused(r, 'set holds another run', 'generator = ')
    assert f'the {part} in it is not the one that it was trained with' in r.err and contents(tmp_path/'set') == before

def test_study_of_the_autoencoder(cemiface, inputs, tmp_path):
    "Killed between two sizes; no generator is trained for it"
    args = ['study', 'autoencoder', '-r', 'toy', '-s', 'autoencoder=given', *sets(dict(toy=dict(test_identities=20, test_pairs=60))), '--out', 'lab']
    refused(cemiface(*args), 'recipe toy', 'needs --autoencoder')
    refused(cemiface(*args, '-s', 'autoencoder=none'), 'study autoencoder', 'it draws pixels')
    args += ['--autoencoder', inputs/'autoencoder', '--json']
    assert cemiface(*args, stop=dict(event='os.rename', pattern=r'stages/autoencoder 24\.json$')).code == -signal.SIGKILL
    r = cemiface(*args)
    assert r.code == 0 and 'autoencoder 24 ...' in r.err and 'autoencoder 20 ...' not in r.err, r.err
    found, = as_json(r.out)['studies']
    before, *rows = found['rows']
    assert [o['size'] for o in rows] == [14, 20, 24, 28, 34] and 'Apache-2.0' in found['says'] and found['held'] in (True, False, None)
    for role in ('identity', 'judge'):
        assert all(o[role]['low'] < o[role]['kept'] < 1 and o[role]['lo'] <= o[role]['difference'] <= o[role]['hi'] for o in rows)
        assert all(abs(before[role]['accuracy']-o[role]['accuracy']-o[role]['difference']) < .01 for o in rows)
        assert rows[0][role]['kept'] < rows[2][role]['kept']
    assert not (tmp_path/'lab'/'generator').exists()

def test_run(cemiface, inputs, dev, tmp_path):
    "It says what it will take, loses one row of faces to a kill in it, and everything it writes names the autoencoder"
    shutil.copytree(inputs/'photos', tmp_path/'photos')
    (tmp_path/'photos'/'00'/'more.heic').write_bytes(b'unread')
    few = dict(inquiries=dict(identities=4, threshold=.999), study=dict(scalar=[1], sphere=[]), sampling=dict(steps=2, batch=8),
        generation=dict(per_identity=2, copies=1), recogniser=dict(epochs=1, batch=4))
    args = ['run', *LATENT, *sets(few), '--faces', 'photos', '--identity-encoder', root/'cemiface'/'assets'/'toy'/'identity_encoder', '--autoencoder',
        inputs/'autoencoder', '--pairs', dev/'pairs.txt', '--images', dev/'images', '--out', 'run', '--json']
    r = cemiface(*args, stop=dict(event='os.rename', pattern=r'figures/training/000000003\.jpg$'))
    assert r.code == -signal.SIGKILL and r.err.count('left out: 1 ') == 1 and 'hours here' in r.err and 'are latents' in r.err, r.err
    report = (tmp_path/'run'/'report.html').read_text()
    assert report.count('<img') == 3 and 'in training' in report and 'http:' not in report
    r = cemiface(*args)
    assert r.code == 0 and as_json(r.out)['autoencoder'] == dict(name='autoencoder', licence='Apache-2.0'), r.err
    report = (tmp_path/'run'/'report.html').read_text()
    assert report.count('<img') == 5 and 'autoencoder; licence: Apache-2.0' in report
    for card in ('sets/scalar_+1.00', 'generator'):
        assert 'Apache-2.0' in (tmp_path/'run'/card/'README.md').read_text()

# Distillation

@pytest.fixture
def distil(made, inputs):
    return ['distil', '--generator', made, '--faces', inputs/'photos', *LATENT, '--steps', 2, '--paths', 24, '--json',
        *sets(dict(sampling=dict(steps=4, batch=8, guidance=2., precision='no'))), '--out']

def test_distilled_killed_and_resumed(cemiface, distil, tmp_path):
    "While it draws paths, trains and saves"
    r = cemiface(*distil, 'whole')
    assert r.code == 0 and as_json(r.out)['paths'] == 24, r.err
    for pattern, nth in ((r'/paths-\w+/00001\.npy$', 1), (r'/checkpoint\.pt$', 2), ('/unet$', 1), ('/model_index.json$', 1)):
        r = cemiface(*distil, 'new', stop=dict(event='os.rename', pattern=pattern, nth=nth))
        assert r.code == -signal.SIGKILL and 'Traceback' not in r.err, (pattern, r)
    assert cemiface(*distil, 'new').code == 0
    assert weights(tmp_path/'new') == weights(tmp_path/'whole')
    assert not list(tmp_path.rglob('paths-*'))

def test_distilled_by_two(start, distil, tmp_path):
    one = start(*distil, 'single').wait()
    both = [c.wait() for c in several(start, *distil, 'double')]
    assert [r.code for r in (one, *both)] == [0, 0, 0], both
    one, other = as_json(one.out), as_json(both[0].out)
    assert abs(other['last']['mse']/one['last']['mse']-1) < .001 and not list(tmp_path.rglob('paths-*'))

def test_student_draws_in_its_own_steps(cemiface, distil, inputs, tmp_path):
    assert cemiface(*distil, 'student').code == 0
    draw = ['generate', '--generator', 'student', '--inquiries', inputs/'photos', '--identities', 5, '--per-identity', 2, '--m', 1,
        '--batch', 3, '--threshold', .9999, '--out']
    for name, steps in dict(its_own=[], said=['--steps', 2]).items():
        r = cemiface(*draw, name, *steps)
        assert r.code == 0, r.err
    assert pictures(tmp_path/'its_own') == pictures(tmp_path/'said') != {}
    refused(cemiface(*draw, 'more', '--steps', 5), 'learnt to draw in 2 steps')
    refused(cemiface(*draw, 'guided', '--guidance', 2), 'leave out steps and guidance')
    refused(cemiface(*distil, 'other', '--steps', 3), 'steps of the teacher do not include the timesteps of 3', 'let it take 6')
    refused(cemiface(*distil, 'other', '-s', 'transformer.depth=3'), 'does not fit the recipe', 'the same sections unet and condition')
    assert not any((tmp_path/name).exists() for name in ('more', 'guided', 'other'))
