"Mistakes of the user: exit code 2, one sentence that names the file or key, and nothing half-written"
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import contents, in_process, refused, sets
from PIL import Image

@pytest.fixture
def mistake(cemiface, tmp_path):
    "Call, be refused with these words, and find everything as it was"
    def check(args, *words):
        now = lambda: {k: v for k, v in contents(tmp_path).items() if '.cemiface-new' not in k}       # a killed process's may be cleared away
        before = now()
        refused(cemiface(*args), *words)
        assert now()==before
    return check

def verbs(finished, dev, faces, photos=None):
    "A valid call of every verb that reads photos, or one with other photos"
    net, new, some = finished.path/'encoder', ['--out', 'new'], photos or faces
    return dict(train_recogniser=['train-recogniser', '--faces', some, '-r', 'toy', *sets(), *new],
        train_generator=['train-generator', '--faces', some, '--recogniser', net, '-r', 'toy', *sets(), *new],
        generate=['generate', '--generator', finished.path/'generator', '--inquiries', some, '--identities', 2, '--per-identity', 1, '--steps', 1, '--threshold', .9999, *new],
        analyse=['analyse', '--faces', some, '--judge', net], against=['analyse', '--faces', faces, '--judge', net, '--against', some],
        run=['run', '-r', 'lfw-cpu', '--faces', some, '--recogniser', net, '--pairs', dev/'pairs.txt', '--images', dev/'images', *new],
        verify=['verify', '--recogniser', net, '--pairs', dev/'pairs.txt', '--images', dev/'images' if photos is None else photos])

# Photos

@pytest.mark.parametrize('kind', ['missing', 'empty', 'file'])
def test_no_photos(mistake, finished, dev, faces, tmp_path, kind):
    if kind=='empty': (tmp_path/'photos'/'somebody').mkdir(parents=True)
    if kind=='file': (tmp_path/'photos').write_text('')
    for args in verbs(finished, dev, faces, 'photos').values(): mistake(args, 'photos')

def test_one_identity(mistake, finished, dev, faces, tmp_path):
    shutil.copytree(faces/'000000', tmp_path/'photos'/'somebody')
    v = verbs(finished, dev, faces, 'photos')
    mistake(v['train_recogniser'], 'photos holds 1 identity')
    mistake(v['run'], 'photos', 'two people')

def bad_files(folder, face):
    "One of every kind that can't be used"
    shutil.copy(face, folder/'cut.png'); os.truncate(folder/'cut.png', 200)
    (folder/'text.jpg').write_text('no image'); (folder/'nothing.png').write_bytes(b'')
    Image.new('RGB', (1, 1)).save(folder/'dot.png')
    return ['cut.png', 'dot.png', 'nothing.png', 'text.jpg']

def test_bad_photos(mistake, finished, dev, faces, tmp_path):
    shutil.copytree(faces, tmp_path/'photos'); (tmp_path/'bad').mkdir()
    v = verbs(finished, dev, faces, 'photos')
    for i, name in enumerate(bad_files(tmp_path/'bad', faces/'000000'/'000.png')):
        bad = shutil.copy(tmp_path/'bad'/name, tmp_path/'photos'/'000000')
        for k in ('train_recogniser', 'train_generator', 'generate', 'analyse')[:1 if i else 4]: mistake(v[k], '1%', f'photos/000000/{name}')
        os.remove(bad)

def test_few_bad_photos_are_named_and_left_out(cemiface, finished, faces, tmp_path):
    for i in range(23): shutil.copytree(faces, tmp_path/'photos', dirs_exist_ok=True) if not i else [
        shutil.copy(p, p.with_name(f'{i}-{p.name}')) for p in (tmp_path/'photos').glob('*/00?.png')]
    names = bad_files(tmp_path/'photos'/'000000', faces/'000000'/'000.png')
    r = cemiface('analyse', '--faces', 'photos', '--judge', finished.path/'judge', '--json')
    assert r.code==0 and json.loads(r.out)['images']==23*18
    assert all(n in r.err for n in names) and '4 of 418' in r.err and 'Traceback' not in r.err

def test_unusual_photos_are_converted(cemiface, finished, faces, tmp_path):
    "The same grey picture in every mode is the same picture"
    grey = Image.open(faces/'000000'/'000.png').convert('L')
    d = tmp_path/'photos'/'one'; d.mkdir(parents=True)
    for mode, ext in dict(L='png', LA='png', P='png', RGB='png', RGBA='webp', CMYK='tif').items():
        (grey if mode in ('L', 'LA', 'P') else grey.convert('RGB')).convert(mode).save(d/f'{mode}.{ext}', **dict(lossless=True) if ext=='webp' else {})
    Image.fromarray(np.asarray(grey).astype(np.uint16)*257).save(d/'16bit.png')
    exif = Image.Exif(); exif[0x0112] = 6
    grey.convert('RGB').transpose(Image.Transpose.ROTATE_90).save(d/'turned.png', exif=exif)
    r = cemiface('analyse', '--faces', 'photos', '--judge', finished.path/'judge', '--json')
    assert r.code==0 and r.err=='', r
    assert json.loads(r.out)['images']==8 and json.loads(r.out)['within_identity']['mean'] > .9999

# Pairs

def test_pairs(mistake, cemiface, finished, dev, faces, tmp_path):
    v = verbs(finished, dev, faces)
    ask = lambda text: ((tmp_path/'pairs.txt').write_text(text), ['verify', '--recogniser', finished.path/'encoder', '--pairs', 'pairs.txt', '--images', dev/'images'])[1]
    good = (dev/'pairs.txt').read_text()
    mistake(ask(good.replace('A\t1\t2', 'A\t1\t7')), 'A/A_0007.jpg', '1 of the')
    mistake(ask(good.replace('2\t2\n', '3\t2\n', 1)), 'pairs.txt', 'announces')
    mistake(ask(good.replace('A\t1\t2', 'A\tone\t2')), 'pairs.txt line 2', 'one')
    mistake(ask(good.replace('A\t1\t2', 'A\t1')), 'pairs.txt line 2')
    mistake(ask(good.replace('A\t1\t2', '../A\t1\t2')), 'pairs.txt line 2')
    mistake(ask(good+good[4:]), 'pairs.txt line 10', 'more')
    mistake(ask(''), 'pairs.txt is empty')
    mistake(['verify', '--recogniser', finished.path/'encoder', '--pairs', 'nowhere.txt', '--images', dev/'images'], 'nowhere.txt')
    mistake(['verify', '--recogniser', finished.path/'encoder', '--pairs', dev/'pairs.txt'], '--images')
    mistake([*ask(good), '--folds', 9], 'folds')
    mistake([o if o!=dev/'pairs.txt' else 'pairs.txt' for o in v['run'] if ask(good.replace('A\t1\t2', 'A\t1\t7'))], 'A/A_0007.jpg')
    shutil.copytree(dev/'images', tmp_path/'images'); os.truncate(tmp_path/'images'/'A'/'A_0002.png', 200)
    mistake(['verify', '--recogniser', finished.path/'encoder', '--pairs', dev/'pairs.txt', '--images', 'images'], 'A_0002.png')

# Weights

def with_tensors(path, shapes):
    from torch import zeros
    from safetensors.torch import save_file
    save_file({k: zeros(s) for k, s in shapes.items()}, path)

def with_code(path):
    import torch
    torch.save(dict(weights=torch.nn.Linear(2, 2)), path)

def test_weights(mistake, finished, dev, faces, tmp_path):
    load = lambda path: ['verify', '--recogniser', path, '--pairs', dev/'pairs.txt', '--images', dev/'images']
    net, file = finished.path/'encoder', 'diffusion_pytorch_model.safetensors'
    mistake(load('nowhere.pth'), 'nowhere.pth does not exist')
    in_process(with_tensors, tmp_path/'other.safetensors', {'conv.weight': (4, 3, 3, 3), 'fc.bias': (4,)})
    mistake(load('other.safetensors'), 'other.safetensors is of no architecture known here')
    in_process(with_code, tmp_path/'code.pth'); mistake(load('code.pth'), 'code.pth holds code')
    (tmp_path/'text.pth').write_text('weights'); mistake(load('text.pth'), 'text.pth')
    (tmp_path/'empty').mkdir(); mistake(load('empty'), 'empty')
    mistake(load(finished.path/'generator'), 'generator')
    shutil.copytree(net, tmp_path/'cut'); os.truncate(tmp_path/'cut'/file, 1000); mistake(load('cut'), f'cut/{file}')
    for key, value in dict(dim=32, arch='ir18').items():
        shutil.copytree(net, tmp_path/key); edit(tmp_path/key/'config.json', **{key: value}); mistake(load(key), f'{key}/{file} is no')
    shutil.copytree(net, tmp_path/'odd'); edit(tmp_path/'odd'/'config.json', arch='resnet'); mistake(load('odd'), 'odd', 'resnet')

def edit(path, **kw): path.write_text(json.dumps(json.loads(path.read_text())|kw))

def test_generators(mistake, cemiface, finished, dev, faces, tmp_path):
    ask = lambda g: [o if o!=finished.path/'generator' else g for o in verbs(finished, dev, faces)['generate']]
    mistake(ask('nowhere'), 'nowhere holds no generator')
    mistake(ask(finished.path/'encoder'), 'encoder holds no generator')
    def changed(name): shutil.copytree(finished.path/'generator', tmp_path/name); return tmp_path/name
    os.truncate(changed('cut')/'unet'/'diffusion_pytorch_model.safetensors', 1000); mistake(ask('cut'), 'cut')
    shutil.rmtree(changed('lacks')/'condition'); mistake(ask('lacks'), 'lacks')
    edit(changed('other')/'unet'/'config.json', block_out_channels=[32, 96]); mistake(ask('other'), 'other')
    r = cemiface('train-recogniser', '--faces', faces, '-r', 'toy', *sets(), '-s', 'recogniser.dim=32', '--out', 'narrow')
    assert r.code==0, r.err
    shutil.rmtree(changed('mixed')/'recogniser'); shutil.copytree(tmp_path/'narrow', tmp_path/'mixed'/'recogniser')
    mistake(ask('mixed'), 'mixed', '32', '64')

# Files of a later version

def newer(path):
    import torch
    state = torch.load(path, weights_only=True)
    torch.save(state|dict(format_version=99), path)

def test_newer_versions(mistake, cemiface, start, finished, dev, faces, tmp_path):
    v = verbs(finished, dev, faces)
    shutil.copytree(finished.path, tmp_path/'run')
    again = ['run', '-r', 'toy', *sets(), '--out', 'run']
    for name, args in {'run.json': again, 'stages/inquiries.json': again, 'analysis/real.json': again, 'recognisers/real-0/verification.json': again,
        'encoder/config.json': ['analyse', '--faces', faces, '--judge', 'run/encoder'],
        'generator/model_index.json': [o if o!=finished.path/'generator' else 'run/generator' for o in v['generate']]}.items():
        file = tmp_path/'run'/name; old = file.read_bytes()
        edit(file, **dict(trained=dict(format_version=99)) if 'model_index' in name else dict(format_version=99))
        mistake(args, name.split('/model')[0], 'format_version 99', 'update cemiface')
        file.write_bytes(old)
    (tmp_path/'new.toml').write_text('format_version = 99\n'); mistake(['run', '-r', 'new.toml'], 'new.toml', '99')

@pytest.mark.parametrize('verb, state', [('train_generator', 'new/training/checkpoint.pt'), ('train_recogniser', 'new.state')])
def test_newer_and_damaged_checkpoints(mistake, cemiface, finished, dev, faces, tmp_path, verb, state):
    args = [*verbs(finished, dev, faces)[verb], '-s', 'training.epochs=4']
    assert cemiface(*args, stop=dict(event='os.rename', pattern=Path(state).name+'$', nth=2)).code==-9
    file = tmp_path/state
    in_process(newer, file); mistake(args, file.name, '99', 'update cemiface')
    os.truncate(file, 1000); mistake(args, file.name, 'delete it')
    file.unlink(); assert cemiface(*args).code==0
    assert not [k for k in contents(tmp_path) if '.cemiface' in k]

# Recipes and arguments

@pytest.mark.parametrize('override, words', [
    ('generation.setps=3', 'unknown key "generation.setps" did "generation.steps"?'), ('steps=3', 'unknown key "steps"'), ('generate.steps=3', '"generate'),
    ('generation.steps="many"', 'generation.steps whole number'), ('generation.steps=2.5', 'generation.steps whole number'), ('study.scalar=1', 'study.scalar list'),
    ('toy=3', 'toy table'), ('training.precision=bf32', 'training.precision "bf16"'),
    ('study.scalar=[0,2]', 'study.scalar [-1, 1]'), ('study.sphere=[-1.01]', 'study.sphere [-1, 1]'), ('training.m_low=-2', 'training.m_low [-1, 1]'),
    ('schedule.steps=0', 'schedule.steps outside'), ('generation.steps=0', 'generation.steps outside'), ('generation.steps=-5', 'generation.steps outside'),
    ('generation.steps=1001', 'steps 1001 1000'), ('schedule.steps=5', 'steps 10 5'), ('training.epochs=nan', 'training.epochs'), ('training.epochs', 'stage.key=value'), ('=3', 'stage.key=value'),
    ('training.m_low=1 training.m_high=-1', 'training.m_low training.m_high'), ('recogniser.schedule="step"', 'recogniser.decay_epochs 26'), ('recogniser.crop_scale=[1.0]', 'crop_scale'),
    ('unet.channels=[]', 'unet.channels'), ('unet.groups=7', 'unet.groups 7'), ('faces.size=25', 'faces.size 25 unet.patch'),
    ('inquiries.source="synthetic" condition.dropout=0', 'inquiries.source condition.dropout')])
def test_recipe_values(mistake, override, words):
    mistake(['run', '-r', 'toy', '--out', 'new', *(o for v in override.split() for o in ('-s', v))], *words.split())

def test_demo_values(mistake):
    mistake(['demo', '--out', 'new', '-s', 'study.sphere=[2]'], 'study.sphere', '[-1, 1]')
    mistake(['demo', '--out', 'new', '-s', 'study.spheres=[1]'], 'did you mean "study.sphere"?')

def test_recipe_files(mistake, tmp_path):
    mistake(['run', '-r', 'tiny'], 'recipe tiny', 'lfw-cpu')
    mistake(['recipes', 'tiny'], 'recipe tiny')
    for text, words in {'[study\n': ['not valid TOML'], '[study]\nscalar = [2]\n': ['study.scalar'], 'nme = "x"\n': ['"nme"', '"name"', 'mine.toml']}.items():
        (tmp_path/'mine.toml').write_text(text); mistake(['run', '-r', 'mine.toml'], *words)
    (tmp_path/'mine.toml').write_bytes(b'\xff\xfe\0'); mistake(['run', '-r', 'mine.toml'], 'mine.toml', 'UTF-8')
    mistake(['run', '-r', tmp_path], 'recipe')

def test_arguments(mistake, finished, dev, faces, tmp_path):
    v = verbs(finished, dev, faces)
    for more, *words in [('--m', '1.01', 'm', '[-1'), ('--m', '-2', 'm', '[-1'), ('--m', 'nan', 'm', '[-1'), ('--m', 'much', '--m'), ('--steps', '0', 'steps', '1'), ('--steps', '-1', 'steps', '1'),
        ('--steps', '1001', 'steps', '1000'), ('--control', 'ball', 'control', 'sphere'), ('--identities', '0', '--identities'), ('--seed', '-1', '--seed'), ('--eta', '2', 'eta'),
        ('--identities', '19', 'only 18 inquiry faces')]:
        mistake([*v['generate'], more, words[0]], *words[1:])
    if not Path('/dev/nvidiactl').exists(): mistake([*v['verify'], '--device', 'cuda'], '--device cuda', 'no GPU')
    mistake(['run', '-r', 'lfw-cpu', '--out', 'new'], '--faces')
    mistake(['run', '--out', 'new'], '--recipe')
    mistake(v['run'][:-2]+['--judge', 'nowhere', '--out', 'new'], '--judge nowhere')

# Output folders

def test_output_folders(mistake, cemiface, finished, dev, faces, tmp_path):
    v = verbs(finished, dev, faces)|dict(toy=['run', '-r', 'toy', *sets(), '--out', 'new'])
    making = {k: v[k] for k in ('train_recogniser', 'train_generator', 'generate', 'toy', 'run')}
    (tmp_path/'new').mkdir(); (tmp_path/'new'/'diary.txt').write_text('mine')
    for args in making.values(): mistake(args, 'new', 'choose another')
    shutil.rmtree(tmp_path/'new'); (tmp_path/'new').write_text('mine')
    for args in making.values(): mistake(args, 'new')
    (tmp_path/'new').unlink(); shutil.copytree(finished.path, tmp_path/'new')
    v['toy'] += ['-s', 'seed=1']                           # without it the run would be the same, and go on
    for args in [*making.values()]: mistake(args, 'new', 'choose another')

def test_inquiries_of_another_set(mistake, finished, dev, faces, tmp_path):
    shutil.copytree(finished.path/'inquiries', tmp_path/'new.inquiries')
    mistake(verbs(finished, dev, faces)['generate'], 'new.inquiries holds other inquiries')

# The disk

@pytest.fixture
def disk(tmp_path):
    "A small disk of its own: `disk('size=1m')` mounts it, or changes it"
    at = tmp_path/'disk'; at.mkdir()
    def mount(options):
        r = subprocess.run(['mount', '-t', 'tmpfs', '-o', ('remount,' if at.is_mount() else '')+options, 'tmpfs', at], capture_output=True, text=True)
        if r.returncode: pytest.skip(f'a small disk cannot be mounted here: {r.stderr.strip()}')
        return at
    yield mount
    if at.is_mount(): subprocess.run(['umount', '-l', at], check=True)

@pytest.mark.parametrize('verb', ['run', 'toy', 'train_generator', 'train_recogniser', 'generate'])
def test_read_only_disk(mistake, finished, dev, faces, tmp_path, disk, verb):
    at = disk('size=1m,ro')
    args = (verbs(finished, dev, faces)|dict(toy=['run', '-r', 'toy', *sets(), '--out', 'new']))[verb]
    mistake([o if o!='new' else at/'new' for o in args], at, 'read-only')

@pytest.mark.parametrize('verb, sizes', [('toy', [4, 64, 4000, 12000]), ('train_generator', [4, 64, 14500]), ('train_recogniser', [4, 1000]), ('generate', [4, 16])])
def test_full_disk(cemiface, finished, dev, faces, disk, verb, sizes):
    "Sizes, in kB, at which run.json, a cache, a checkpoint, a network or a face has no place any more"
    args = (verbs(finished, dev, faces)|dict(toy=['run', '-r', 'toy', *sets(), '--out', 'new']))[verb]
    for size in sizes:
        at = disk(f'size={size}k')
        args = [o if o!='new' else at/'new' for o in args]
        refused(cemiface(*args), f'cannot write {at}', 'no space left')
        for k, v in contents(at).items():
            assert '.cemiface' not in k
            if k.endswith('.json'): json.loads(v)
    disk('size=64m')
    r = cemiface(*args)
    assert r.code==0, r.err
    if verb=='toy': assert (at/'new'/'figures'/'faces.png').read_bytes()==(finished.path/'figures'/'faces.png').read_bytes()
