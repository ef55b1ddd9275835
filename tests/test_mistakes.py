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
    now = lambda: {k: v for k, v in contents(tmp_path).items() if '.cemiface-new' not in k}       # what a kill left may be cleared away
    def check(args, *words):
        before = now()
        refused(cemiface(*args), *words)
        assert now()==before
    return check

@pytest.fixture
def calls(finished, dev):
    "A good call of every verb: `calls(photos=...)` has one of its parts replaced"
    good = dict(photos=finished.faces, net=finished.encoder, generator=finished.generator, pairs=dev/'pairs.txt', images=dev/'images', out='new')
    def change(**swap):
        o = {**good, **swap}
        train, made = ['--faces', o['photos'], '-r', 'toy', *sets(), '--out', o['out']], ['--identities', 2, '--per-identity', 1, '--steps', 1]
        return dict(train_recogniser=['train-recogniser', *train], train_generator=['train-generator', '--identity-encoder', o['net'], *train],
            generate=['generate', '--generator', o['generator'], '--inquiries', o['photos'], *made, '--m', 0, '--threshold', .9999, '--out', o['out']],
            verify=['verify', '--encoder', o['net'], '--pairs', o['pairs'], '--images', o['images']],
            analyse=['analyse', '--faces', o['photos'], '--judge', o['net']], toy=['run', '-r', 'toy', *sets(), '--out', o['out']],
            against=['analyse', '--faces', finished.faces, '--judge', o['net'], '--against', o['photos']],
            run=['run', '-r', 'toy', '-s', 'faces.source=folder', '--faces', o['photos'], '--identity-encoder', o['net'], '--pairs', o['pairs'],
                '--images', o['images'], '--out', o['out']])
    return change

def edit(path, **kw): path.write_text(json.dumps(json.loads(path.read_text())|kw))

# Photos

@pytest.mark.parametrize('kind', ['missing', 'empty', 'file'])
def test_no_photos(mistake, calls, tmp_path, kind):
    if kind=='empty': (tmp_path/'photos'/'somebody').mkdir(parents=True)
    if kind=='file': (tmp_path/'photos').write_text('')
    c = calls(photos='photos', images='photos')
    for verb in set(c)-{'toy'}: mistake(c[verb], 'photos')

def test_one_identity(mistake, calls, finished, tmp_path):
    shutil.copytree(finished.faces/'000000', tmp_path/'photos'/'somebody')
    c = calls(photos='photos')
    mistake(c['train_recogniser'], 'photos holds 1 identity')
    mistake(c['run'], 'photos', 'two people')

def bad_files(folder, face):
    "One of every kind that can't be used"
    shutil.copy(face, folder/'cut.png'); os.truncate(folder/'cut.png', 200)
    (folder/'text.jpg').write_text('no image'); (folder/'nothing.png').write_bytes(b'')
    Image.new('RGB', (1, 1)).save(folder/'dot.png')
    return ['cut.png', 'dot.png', 'nothing.png', 'text.jpg']

def test_bad_photos(mistake, calls, finished, tmp_path):
    shutil.copytree(finished.faces, tmp_path/'photos'); (tmp_path/'bad').mkdir()
    c = calls(photos='photos')
    for i, name in enumerate(bad_files(tmp_path/'bad', finished.faces/'000000'/'000.png')):
        bad = shutil.copy(tmp_path/'bad'/name, tmp_path/'photos'/'000000')
        for verb in ('train_recogniser', 'train_generator', 'generate', 'analyse')[:1 if i else 4]: mistake(c[verb], '1%', f'photos/000000/{name}')
        os.remove(bad)

def test_few_bad_photos_are_named_and_left_out(cemiface, finished, tmp_path):
    for i in range(23):
        for p in finished.faces.glob('*/*.png'):
            (tmp_path/'photos'/p.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(p, tmp_path/'photos'/p.parent.name/f'{i}-{p.name}')
    names = bad_files(tmp_path/'photos'/'000000', finished.faces/'000000'/'000.png')
    r = cemiface('analyse', '--faces', 'photos', '--judge', finished.judge, '--json')
    assert r.code==0 and json.loads(r.out)['images']==23*18
    assert all(n in r.err for n in names) and 'left out: 4 (' in r.err and 'used: 414' in r.err and 'Traceback' not in r.err

def test_unusual_photos_are_converted(cemiface, finished, tmp_path):
    "The same grey picture in every mode is the same picture"
    grey = Image.open(finished.faces/'000000'/'000.png').convert('L')
    d = tmp_path/'photos'/'one'; d.mkdir(parents=True)
    for mode in ('L', 'LA', 'P'): grey.convert(mode).save(d/f'{mode}.png')
    rgb = grey.convert('RGB'); rgb.save(d/'RGB.png'); rgb.convert('RGBA').save(d/'RGBA.webp', lossless=True); rgb.convert('CMYK').save(d/'CMYK.tif')
    Image.fromarray(np.asarray(grey).astype(np.uint16)*257).save(d/'16bit.png')
    exif = Image.Exif(); exif[0x0112] = 6
    rgb.transpose(Image.Transpose.ROTATE_90).save(d/'turned.png', exif=exif)
    r = cemiface('analyse', '--faces', 'photos', '--judge', finished.judge, '--json')
    assert r.code==0 and r.err=='', r
    assert json.loads(r.out)['images']==8 and json.loads(r.out)['within_identity']['mean'] > .9999

# Pairs

def test_pairs(mistake, calls, dev, tmp_path):
    good, c = (dev/'pairs.txt').read_text(encoding='utf-8'), calls(pairs='pairs.txt')
    def wrong(text, *words, verb='verify'): (tmp_path/'pairs.txt').write_text(text, encoding='utf-8'); mistake(c[verb], *words)
    for verb in ('verify', 'run'): wrong(good.replace('A\t1\t2', 'A\t1\t7'), 'A/A_0007.jpg', '1 of the', verb=verb)
    wrong(good.replace('2\t2\n', '3\t2\n', 1), 'pairs.txt', 'announces')
    wrong(good.replace('A\t1\t2', 'A\tone\t2'), 'pairs.txt line 2', 'one')
    wrong(good.replace('A\t1\t2', 'A\t1'), 'pairs.txt line 2')
    wrong(good.replace('A\t1\t2', '../A\t1\t2'), 'pairs.txt line 2')
    wrong(good+good[4:], 'pairs.txt line 10', 'more')
    wrong('', 'pairs.txt is empty')
    mistake(calls(pairs='nowhere.txt')['verify'], 'nowhere.txt')
    mistake(calls()['verify'][:-2], '--images')
    mistake([*calls()['verify'], '--folds', 9], 'folds')
    shutil.copytree(dev/'images', tmp_path/'images'); os.truncate(tmp_path/'images'/'A'/'A_0002.png', 200)
    mistake(calls(images='images')['verify'], 'A_0002.png')

# Weights

def with_tensors(path, shapes):
    from safetensors.torch import save_file
    from torch import zeros
    save_file({k: zeros(s) for k, s in shapes.items()}, path)

def with_code(path):
    import torch
    torch.save(dict(weights=torch.nn.Linear(2, 2)), path)

def test_weights(mistake, calls, finished, tmp_path):
    def wrong(path, *words): mistake(calls(net=path)['verify'], *words)
    wrong('nowhere.pth', 'nowhere.pth does not exist')
    in_process(with_tensors, tmp_path/'other.safetensors', {'conv.weight': (4, 3, 3, 3), 'fc.bias': (4,)})
    wrong('other.safetensors', 'other.safetensors is of no architecture known here')
    in_process(with_code, tmp_path/'code.pth'); wrong('code.pth', 'code.pth holds code')
    (tmp_path/'text.pth').write_text('weights'); wrong('text.pth', 'text.pth')
    (tmp_path/'empty').mkdir(); wrong('empty', 'empty')
    wrong(finished.generator, 'generator')
    def copy(name): return Path(shutil.copytree(finished.encoder, tmp_path/name))
    file = 'diffusion_pytorch_model.safetensors'
    os.truncate(copy('cut')/file, 1000); wrong('cut', f'cut/{file}')
    edit(copy('dim')/'config.json', dim=32); wrong('dim', f'dim/{file} is no toy')
    edit(copy('arch')/'config.json', arch='ir18'); wrong('arch', f'arch/{file} is no ir18')
    edit(copy('odd')/'config.json', arch='resnet'); wrong('odd', 'odd', 'resnet')

def test_generators(mistake, cemiface, calls, finished, tmp_path):
    def wrong(path, *words): mistake(calls(generator=path)['generate'], path, *words)
    def copy(name): return Path(shutil.copytree(finished.generator, tmp_path/name))
    wrong('nowhere', 'holds no generator'); wrong(finished.encoder, 'holds no generator')
    os.truncate(copy('cut')/'unet'/'diffusion_pytorch_model.safetensors', 1000); wrong('cut')
    shutil.rmtree(copy('lacks')/'condition'); wrong('lacks')
    edit(copy('other')/'unet'/'config.json', block_out_channels=[32, 96]); wrong('other')
    assert cemiface(*calls(out='narrow')['train_recogniser'], '-s', 'recogniser.dim=32').code==0
    shutil.rmtree(copy('mixed')/'identity_encoder'); shutil.copytree(tmp_path/'narrow', tmp_path/'mixed'/'identity_encoder'); wrong('mixed', '32', '128')

# Files of a later version

def newer(path):
    import torch
    torch.save(torch.load(path, weights_only=True)|dict(format_version=99), path)

def test_newer_versions(mistake, calls, finished, tmp_path):
    shutil.copytree(finished.path, tmp_path/'run')
    again = calls(out='run')['toy']
    for name, args in {'run.json': again, 'stages/inquiries.json': again, 'stages/analysis real.json': again,
            'stages/recogniser real 0.json': again, 'identity_encoder/config.json': calls(net='run/identity_encoder')['verify'],
            'generator/model_index.json': calls(generator='run/generator')['generate']}.items():
        file = tmp_path/'run'/name; old = file.read_bytes()
        edit(file, **dict(trained=dict(format_version=99)) if 'model_index' in name else dict(format_version=99))
        mistake(args, name.split('/model')[0], 'format_version 99', 'update cemiface')
        file.write_bytes(old)
    (tmp_path/'new.toml').write_text('format_version = 99\n'); mistake(['run', '-r', 'new.toml'], 'new.toml', '99')

@pytest.mark.parametrize('verb, state', [('train_generator', 'new/training/checkpoint.old'), ('train_recogniser', 'new.state')])
def test_newer_and_damaged_checkpoints(mistake, cemiface, calls, tmp_path, verb, state):
    "The generator's is set aside when the next one takes its place, which is when it is killed here"
    args, file = [*calls()[verb], '-s', 'training.epochs=4', '-s', 'recogniser.epochs=2'], tmp_path/state
    assert cemiface(*args, stop=dict(event='os.rename', pattern=r'(\.pt|\.state)$', nth=2)).code==-9
    in_process(newer, file); mistake(args, file.name, '99', 'update cemiface')
    os.truncate(file, 1000); mistake(args, file.name, 'delete it')
    file.unlink(); assert cemiface(*args).code==0
    assert not [k for k in contents(tmp_path) if '.cemiface' in k]

# Recipes and arguments

@pytest.mark.parametrize('values, words', [
    ('sampling.setps=3', 'unknown key "sampling.setps" did "sampling.steps"?'), ('steps=3', 'unknown key "steps"'),
    ('generate.steps=3', 'unknown key "generate'), ('training.epochs', 'section.key=value'), ('=3', 'section.key=value'),
    ('sampling.steps="many"', 'sampling.steps whole number'), ('sampling.steps=2.5', 'sampling.steps whole number'),
    ('study.scalar=1', 'study.scalar list'), ('toy=3', 'toy table'), ('training.precision=bf32', 'training.precision "bf16"'),
    ('study.scalar=[0,2]', 'study.scalar [-1, 1]'), ('study.sphere=[-1.01]', 'study.sphere [-1, 1]'),
    ('training.m_low=-2', 'training.m_low [-1, 1]'), ('training.m_low=1 training.m_high=-1', 'training.m_low training.m_high'),
    ('schedule.steps=0', 'schedule.steps outside'), ('sampling.steps=0', 'sampling.steps outside'),
    ('sampling.steps=-5', 'sampling.steps outside'), ('sampling.steps=1001', 'steps 1001 1000'), ('schedule.steps=1', 'steps 2 1'),
    ('training.epochs=nan', 'training.epochs'), ('recogniser.schedule="step"', 'recogniser.decay_epochs 26'),
    ('recogniser.crop_scale=[1.0]', 'crop_scale'), ('unet.channels=[]', 'unet.channels'), ('unet.groups=7', 'unet.channels unet.groups 7'),
    ('faces.size=25', 'faces.size 25 unet.patch'), ('inquiries.source="synthetic" condition.dropout=0', 'inquiries.source condition.dropout')])
def test_recipe_values(mistake, calls, values, words):
    mistake([*calls()['toy'], *(o for v in values.split() for o in ('-s', v))], *words.split())

def test_demo_values(mistake):
    mistake(['demo', '--out', 'new', '-s', 'study.sphere=[2]'], 'study.sphere', '[-1, 1]')
    mistake(['demo', '--out', 'new', '-s', 'study.spheres=[1]'], 'did you mean "study.sphere"?')

def test_recipe_files(mistake, tmp_path):
    mistake(['run', '-r', 'tiny'], 'recipe tiny', 'lfw')
    mistake(['recipes', 'tiny'], 'recipe tiny')
    mistake(['run', '-r', tmp_path], 'recipe')
    for text, words in {'[study\n': ['not valid TOML'], '[study]\nscalar = [2]\n': ['study.scalar'], 'nme = "x"\n': ['"nme"', '"name"', 'mine.toml']}.items():
        (tmp_path/'mine.toml').write_text(text); mistake(['run', '-r', 'mine.toml'], *words)
    (tmp_path/'mine.toml').write_bytes(b'\xff\xfe\0'); mistake(['run', '-r', 'mine.toml'], 'mine.toml', 'UTF-8')

@pytest.mark.parametrize('option, value, words', [('--m', '1.01', 'm = 1.01 [-1, 1]'), ('--m', '-2', 'm = -2 [-1, 1]'), ('--m', 'nan', 'm [-1, 1]'),
    ('--m', 'much', '--m much'), ('--steps', '0', 'steps = 0'), ('--steps', '-1', 'steps = -1'), ('--steps', '1001', 'steps = 1001 [1, 1000]'),
    ('--control', 'ball', '--control sphere'), ('--identities', '0', '--identities 0'), ('--identities', '19', 'only 18 inquiry faces'),
    ('--seed', '-1', '--seed -1'), ('--eta', '2', 'eta = 2 [0, 1]')])
def test_generate_values(mistake, calls, option, value, words): mistake([*calls()['generate'], option, value], *words.split())

def test_arguments(mistake, calls):
    mistake(['run', '-r', 'lfw', '--out', 'new'], '--faces')
    mistake(['run', '--out', 'new'], '--recipe')
    mistake([*calls()['run'], '--judge', 'nowhere'], 'nowhere does not exist')
    if not Path('/dev/nvidiactl').exists(): mistake([*calls()['verify'], '--device', 'cuda'], '--device cuda', 'no GPU')

# Output folders

def test_output_folders(mistake, calls, finished, tmp_path):
    c = calls()
    making = [c[k] for k in ('train_recogniser', 'train_generator', 'generate', 'run')]+[[*c['toy'], '-s', 'seed=1']]
    (tmp_path/'new').mkdir(); (tmp_path/'new'/'diary.txt').write_text('mine')
    for args in making: mistake(args, 'new', 'choose another')
    shutil.rmtree(tmp_path/'new'); (tmp_path/'new').write_text('mine')
    for args in making: mistake(args, 'new')
    (tmp_path/'new').unlink(); shutil.copytree(finished.path, tmp_path/'new')
    for args in making: mistake(args, 'new', 'choose another')

def test_inquiries_of_another_set(mistake, calls, finished, tmp_path):
    shutil.copytree(finished.inquiries, tmp_path/'new.inquiries')
    mistake(calls()['generate'], 'new.inquiries holds other inquiries')

# The disk

@pytest.fixture
def disk(tmp_path):
    "A small disk of its own: `disk('size=1m')` mounts it, or changes it"
    at = tmp_path/'disk'; at.mkdir()
    def mount(options):
        cmd = ['mount', '-t', 'tmpfs', '-o', ('remount,' if at.is_mount() else '')+options, 'tmpfs', at]
        try: subprocess.run(cmd, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as e: pytest.skip(f'no small disk can be mounted here: {getattr(e, "stderr", e)}')
        return at
    yield mount
    if at.is_mount(): subprocess.run(['umount', '-l', at], check=True)

@pytest.mark.parametrize('verb', ['run', 'toy', 'train_generator', 'train_recogniser', 'generate'])
def test_read_only_disk(mistake, calls, disk, verb):
    at = disk('size=1m,ro')
    mistake(calls(out=at/'new')[verb], at, 'read-only')

@pytest.mark.parametrize('verb, sizes', [('toy', [4, 64, 4000, 12000]), ('train_generator', [4, 64, 14500]), ('train_recogniser', [4, 1000]),
    ('generate', [4, 16])])
def test_full_disk(cemiface, calls, finished, disk, verb, sizes):
    "Sizes, in kB, at which run.json, a cache, a checkpoint, a network or a face has no place any more"
    for size in sizes:
        at = disk(f'size={size}k')
        refused(cemiface(*calls(out=at/'new')[verb]), f'cannot write {at}', 'no space left')
        for k, v in contents(at).items():
            assert '.cemiface' not in k
            if k.endswith('.json'): json.loads(v)
    disk('size=64m')
    r = cemiface(*calls(out=at/'new')[verb])
    assert r.code==0, r.err
    if verb=='toy': assert (at/'new'/'figures'/'faces.png').read_bytes()==(finished.path/'figures'/'faces.png').read_bytes()
