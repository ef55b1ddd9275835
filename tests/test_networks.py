"""Face encoders, recognisers, pairs and kept embeddings as others bring them: inputs of every kind are made by hypothesis, and end in
the right value or in one sentence. Damaged files are in test_fuzz.py."""
import io
import itertools
import json
import math
import os
import pickle
import shutil
import string
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import as_json, in_process, refused
from hypothesis import given, settings, strategies as st
from PIL import Image
from test_recognisers import encoder, ijb, photos                          # noqa: F401, a fixture

often = settings(deadline=None, max_examples=60)
seldom = settings(deadline=None, max_examples=15)

def told(f, *args, **kw):
    "The one sentence of a refusal, or None where there is a result"
    from cemiface.core import CemiFaceError
    try: f(*args, **kw)
    except CemiFaceError as e:
        assert str(e) and '\n' not in str(e), e
        return str(e)

# Pairs

def picture(k):
    out = io.BytesIO(); Image.new('RGB', (8, 8), (k, 9*k % 256, 0)).save(out, 'PNG')
    return out.getvalue()

ways_to_write_images = bytes, bytearray, lambda o: np.frombuffer(o, np.uint8), lambda o: np.array(list(o), np.uint8), lambda o: np.frombuffer(o, np.int8)
ways_to_write_labels = [list, tuple, lambda o: list(map(int, o))] + [f for k in ('?', 'i1', 'u1', '<i2', '>u2', '<i4', '>i4', '<u8', '>i8')
    for f in (lambda o, k=k: np.array(o).astype(k), lambda o, k=k: list(np.array(o).astype(k)), lambda o, k=k: np.array(o).astype(k)[:, None])]

@often
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.booleans()), min_size=1, max_size=6), st.sampled_from(ways_to_write_images),
    st.sampled_from(ways_to_write_labels), st.integers(0, 5), st.booleans())
def test_bin_of_any_kind(pairs, image, label, protocol, once):
    "Images as bytes, bytearrays or arrays, labels of every kind of truth value and whole number, each protocol"
    from cemiface.data.packed import read_bin
    kept = {k: image(picture(k)) for k in range(256)} if once else None
    images = [kept[k] if once else image(picture(k)) for a, b, _ in pairs for k in (a, b)]
    at = Path('x.bin'); at.write_bytes(pickle.dumps((images, label([same for *_, same in pairs])), protocol))
    entries, same = read_bin(at)
    assert [o.read() for o in entries] == [picture(k) for a, b, _ in pairs for k in (a, b)] and same == [same for *_, same in pairs]

values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5) |
    st.sampled_from([np.float32(1), np.arange(3.), np.array(['a']), np.array([None]), np.datetime64('2020-01-01'), 1j, len, os.system, Path('x'), range(3)]),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=12)

@settings(deadline=None, max_examples=100)
@given(values, st.integers(0, 5))
def test_bin_of_anything(o, protocol):
    from cemiface.data.packed import read_bin
    at = Path('y.bin'); at.write_bytes(pickle.dumps(o, protocol))
    assert (at.name in told(read_bin, at)) and not Path('ran').exists()

def test_bin_runs_nothing_and_takes_no_memory():
    "Calls with a number where bytes belong, and one large text that is used again and again"
    from cemiface.data.packed import read_bin
    calls = [b'cnumpy.core.numeric\n_frombuffer\n', b'cbuiltins\nbytearray\n', b'c__builtin__\nbytearray\n', b'cnumpy.core.multiarray\nscalar\n',
        b'cnumpy\ndtype\n']
    at = Path('z.bin')
    for call in calls:
        at.write_bytes(b'(](' + call + b'(L99999999999L\ntRe](I01\net.'); assert 'z.bin is no .bin' in told(read_bin, at)
    text = b'X' + (10**6).to_bytes(4, 'little') + b'a'*10**6
    encoded = b'c_codecs\nencode\n(h\0X\x06\0\0\0latin1tR'
    at.write_bytes(b'](' + text + b'q\0' + encoded*20_000 + b'e](' + b'I01\n'*10_000 + b'e\x86.')           # 20 GB if each were a copy
    told(read_bin, at)

class Person:
    "Pairs and images of people whose names and suffixes are drawn"
    names = st.text(string.ascii_letters+'éü _-.', min_size=1, max_size=9).filter(lambda o: o.strip(' .') == o and o)
    suffixes = st.sampled_from(['.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff']).flatmap(
        lambda o: st.sampled_from([o, o.upper(), o.title()]))

@often
@given(st.lists(Person.names, min_size=2, max_size=2, unique_by=str.lower), st.lists(Person.suffixes, min_size=3, max_size=3),
    st.sampled_from(['', '\t', '\t\t\t', ' \t ']), st.sampled_from(['\n', '\r\n']))
def test_pairs_find_images_of_every_suffix(tmp_path_factory, names, suffixes, tail, end):
    from cemiface.data.formats import pair_files, read_pairs
    (a, b), d = names, tmp_path_factory.mktemp('pairs')
    files = [d/who/f'{who}_{k:04d}{suffix}' for (who, k), suffix in zip([(a, 1), (a, 2), (b, 1)], suffixes)]
    for file in files: file.parent.mkdir(exist_ok=True); file.write_bytes(b'')
    rows = ['1\t1', f'{a}\t1\t2', f'{a}\t1\t{b}\t1', tail]
    (d/'pairs.txt').write_bytes(end.join(o+tail for o in rows).encode())
    assert pair_files(read_pairs(d/'pairs.txt'), d) == [(files[0], files[1], True), (files[0], files[2], False)]
    files[2].unlink()
    assert f'{b}_0001' in told(pair_files, read_pairs(d/'pairs.txt'), d)

def test_pairs_of_a_bin_come_back():
    "Also images that are neither JPEG nor PNG"
    from cemiface.data.faces import PairSet
    from cemiface.data.packing import unpack
    raws = []
    for k, form in enumerate(['WEBP', 'BMP', 'PNG', 'TIFF']):
        out = io.BytesIO(); Image.radial_gradient('L').rotate(20*k).resize((16, 16)).convert('RGB').save(out, form)
        raws.append(out.getvalue())
    Path('w.bin').write_bytes(pickle.dumps((raws, [True, False])))
    unpack('w.bin', 'w')
    one, two = PairSet.from_files('w.bin'), PairSet.from_files('w/pairs.txt', 'w/images')
    assert (one.images[one.left] == two.images[two.left]).all() and (one.same == two.same).all()

# Checkpoints

@pytest.fixture(scope='module')
def mobile(tmp_path_factory):
    "A small network of a known kind, its weights, and its embeddings of two faces"
    import torch
    from cemiface.encoders.pretrained import FaceEncoder, embed
    torch.manual_seed(0)
    net = FaceEncoder.of('mobilefacenet', height=32, width=32)
    faces = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8)
    return net.backbone.state_dict(), lambda o: embed(o, faces), embed(net, faces)

def saved(o, name='net.pth', **kw):
    import torch
    torch.save(o, name, **kw)
    return Path(name)

@seldom
@given(st.lists(st.sampled_from(['state_dict', 'model', 'ema', 'net', 'model_state_dict', 'params', 'weights', 'shadow', '0', 'a.b']), max_size=3),
    st.booleans(), st.sampled_from(['', 'module.', 'backbone.', 'model.net.']), st.booleans())
def test_network_under_any_key(mobile, keys, beside, prefix, new):
    import torch
    from cemiface.encoders.pretrained import load_encoder
    state, embedded, e = mobile
    o = {prefix+k: v for k, v in state.items()}
    for k in keys:
        o = {k: o}
        optimiser = dict(state={0: dict(step=torch.tensor(1.))}, param_groups=[dict(lr=.1)])
        if beside: o |= dict(epoch=3, lr=np.float64(.1), optimizer=optimiser, head=dict(weight=torch.zeros(9, 4)))
    np.testing.assert_allclose(embedded(load_encoder(saved(o, _use_new_zipfile_serialization=new))), e, atol=1e-4)

def test_several_networks(mobile, capsys):
    "One under a usual key is taken, with a note; otherwise the user is asked"
    from cemiface.encoders.pretrained import load_encoder
    state, embedded, e = mobile
    other = {k: v*2 if v.is_floating_point() else v for k, v in state.items()}
    np.testing.assert_allclose(embedded(load_encoder(saved(dict(ema=other, state_dict=state)))), e, atol=1e-4)
    assert 'ema left out' in capsys.readouterr().err
    for o in (dict(ema=other, net=state), dict(model=state, state_dict=other), [state, other]):
        why = told(load_encoder, saved(o))
        assert 'several networks' in why and all(str(k) in why for k in (o if isinstance(o, dict) else (0, 1)))
    assert 'its keys are fc.weight' in told(load_encoder, saved(dict(fc=dict(x=1), net={'fc.weight': state['conv1.conv.weight']})))
    around = {}; around.update(model=around, ema=[around, state])
    np.testing.assert_allclose(embedded(load_encoder(saved(around))), e, atol=1e-4)         # a dictionary that holds itself

def small_and_large(name):
    "Files of a few kilobytes whose tensors would take gigabytes, in 3 GB of data"
    import resource
    import warnings
    import torch
    from cemiface.encoders.pretrained import FaceEncoder, load_encoder
    from safetensors.torch import save_file
    warnings.simplefilter('ignore')
    state = FaceEncoder.of('mobilefacenet', height=32, width=32).backbone.state_dict()
    zero = {k: torch.zeros(1).expand(v.shape) for k, v in state.items() if v.dim()}
    ir = {f'body.{i}.res_layer.3.weight': torch.zeros(1) for i in range(49)} | {'input_layer.0.weight': torch.zeros(64, 3, 3, 3)}
    files = [saved(zero, 'zero.pth'), saved(zero|{'linear1.conv.weight': torch.zeros(1).expand(2**31, 512, 1, 1)}, 'wide.pth'),
        saved({f'{i}': torch.zeros(1).expand(2**40) for i in range(9)}, 'many.pth'), saved(zero, 'old.pth', _use_new_zipfile_serialization=False),
        saved({k: state['linear7.conv.weight'] for k in ('linear7.conv.weight', *map(str, range(10**4)))}, 'shared.pth')]
    for shape in ((2**33, 0), (2**62, 0)):
        save_file(ir|{'output_layer.3.weight': torch.zeros(shape)}, f'{shape[0]}.safetensors'); files.append(Path(f'{shape[0]}.safetensors'))
    with zipfile.ZipFile(saved(dict(a=torch.zeros(2**26)), 'plain.pth')) as z, zipfile.ZipFile('deflated.pth', 'w', zipfile.ZIP_DEFLATED) as out:
        for o in z.namelist(): out.writestr(o, z.read(o))
    os.remove('plain.pth')
    assert Path('deflated.pth').stat().st_size < 5e5
    resource.setrlimit(resource.RLIMIT_DATA, (3*2**30, 3*2**30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for f in [*files, Path('deflated.pth')]: assert f.name in told(load_encoder, f), f
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18       # kilobytes
    Path(name).touch()

def test_memory_from_a_small_file(): in_process(small_and_large, os.path.abspath('done')); assert Path('done').exists()

@pytest.mark.parametrize('there', [['diffusion_pytorch_model.fp16.safetensors'], ['model.safetensors'], ['pytorch_model.bin'], [],
    ['diffusion_pytorch_model-00001-of-00002.safetensors', 'diffusion_pytorch_model-00002-of-00002.safetensors']])
def test_folder_without_its_weights(there):
    from cemiface.encoders.pretrained import load_encoder
    shutil.rmtree('net', ignore_errors=True); shutil.copytree(encoder, 'net')
    for name in there: shutil.copy(encoder/'diffusion_pytorch_model.safetensors', f'net/{name}')
    os.remove('net/diffusion_pytorch_model.safetensors')
    why = told(load_encoder, 'net')
    assert 'net lacks its weights, diffusion_pytorch_model.safetensors' in why and all(o in why for o in there) and 'damaged' not in why
    os.mkfifo('net/diffusion_pytorch_model.safetensors'); assert 'net lacks its weights' in told(load_encoder, 'net')
    os.mkfifo('fifo.pth') if not os.path.exists('fifo.pth') else None; assert 'fifo.pth is no file' in told(load_encoder, 'fifo.pth')

@seldom
@given(st.data())
def test_weights_that_are_no_numbers(data):
    "In any tensor of a folder, by both ways of loading it"
    import torch
    from cemiface.encoders.pretrained import FaceEncoder, load_encoder
    from safetensors.torch import load_file, save_file
    shutil.rmtree('net', ignore_errors=True); shutil.copytree(encoder, 'net')
    file = 'net/diffusion_pytorch_model.safetensors'
    state = load_file(file)
    k = data.draw(st.sampled_from(sorted(k for k in state if 'num_batches' not in k)))
    state[k].view(-1)[data.draw(st.integers(0, state[k].numel()-1))] = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
    save_file(state, file)
    assert k in told(load_encoder, 'net') and k in told(FaceEncoder.from_pretrained, 'net')

# Autoencoders

def middle_file(name, changes=()):
    "A single file of a known family, some of its tensors of another shape; None takes one away"
    import torch
    from cemiface.generator.autoencoder import MiddleAutoencoder
    from safetensors.torch import save_file
    torch.manual_seed(0)
    state = {}
    for k, v in MiddleAutoencoder(4).state_dict().items():
        part, _, i, rest = k.split('.', 3)
        state[f'{part}.{int(i)+(part == "decoder")}.{rest}'] = v.contiguous()
    for k, shape in changes: state[k] = None if shape is None else torch.zeros(shape)
    save_file({k: v for k, v in state.items() if v is not None}, name)
    return Path(name)

def autoencoder_folder(kind, **changes):
    "A folder of diffusers whose settings are others than those of its weights"
    import diffusers
    few, blocks = dict(num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)), dict(norm_num_groups=4, block_out_channels=(8,))
    made = dict(AutoencoderTiny=few|dict(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8)), AutoencoderKL=blocks, VQModel=blocks)
    shutil.rmtree('folder', ignore_errors=True)
    getattr(diffusers, kind)(**made[kind]).save_pretrained('folder')
    at = Path('folder/config.json'); at.write_text(json.dumps(json.loads(at.read_text())|changes))
    return Path('folder')

def countable(shape): return math.prod(max(1, o) for o in shape) < 2**60      # torch itself makes no larger shape, even without a byte
hollow = st.lists(st.integers(0, 2**31), max_size=3).filter(countable).map(lambda o: [*o, 0])            # as large as may be
shapes = st.none() | st.lists(st.integers(0, 5), max_size=5) | hollow
tensors = st.sampled_from(['encoder.14.weight', 'encoder.14.bias', 'decoder.1.weight', 'encoder.0.weight', 'encoder.11.pool.0.weight', 'more.0'])
sizes = st.sampled_from(['latent_channels', 'block_out_channels', 'layers_per_block', 'norm_num_groups', 'sample_size', 'in_channels', 'num_vq_embeddings',
    'down_block_types', 'upsampling_scaling_factor', 'num_decoder_blocks', 'decoder_block_out_channels', 'encoder_block_out_channels', '_class_name'])
numbers = st.sampled_from([0, 1, 7, 64, 10**5, 10**9, 10**30, -1, 1e300, None, 'x'])

def hostile_autoencoders(name):
    "Files of a few kilobytes or megabytes that describe a network, or faces, of any size, in 3 GB of data"
    import resource
    import torch
    from cemiface.generator.autoencoder import load_autoencoder
    resource.setrlimit(resource.RLIMIT_DATA, (3*2**30, 3*2**30))
    assert load_autoencoder(middle_file('good.safetensors')).channels == 4 and load_autoencoder(autoencoder_folder('AutoencoderTiny'))
    def loaded(path):
        why = told(load_autoencoder, path)
        assert why is None or path.name in why, why
        if why is None: assert load_autoencoder(path).decode(load_autoencoder(path).encode(torch.zeros(1, 3, 64, 64))).isfinite().all()
    @settings(deadline=None, max_examples=40, database=None)
    @given(st.lists(st.tuples(tensors, shapes), min_size=1, max_size=2))
    def files(changes): loaded(middle_file('m.safetensors', changes))
    @settings(deadline=None, max_examples=80, database=None)
    @given(st.sampled_from(['AutoencoderTiny', 'AutoencoderKL', 'VQModel']), sizes, numbers | st.lists(numbers, max_size=3))
    def folders(kind, key, value): loaded(autoencoder_folder(kind, **{key: value}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files(); folders()
    for shape in ((), (2**31, 64, 3, 0)): assert 'm.safetensors' in told(load_autoencoder, middle_file('m.safetensors', [('encoder.14.weight', shape)]))
    assert 'folder' in told(load_autoencoder, autoencoder_folder('AutoencoderTiny', upsampling_scaling_factor=1000))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19       # kilobytes
    Path(name).touch()

def test_autoencoders_of_any_size(): in_process(hostile_autoencoders, os.path.abspath('large')); assert Path('large').exists()

def texts_beside(name):
    "Pipes, devices, folders, sparse files and odd bytes where a card or a licence is looked for, in 3 GB of data"
    import resource
    from cemiface.generator.autoencoder import load_autoencoder
    resource.setrlimit(resource.RLIMIT_DATA, (3*2**30, 3*2**30))
    shutil.rmtree('beside', ignore_errors=True); os.mkdir('beside')
    file, before = middle_file('beside/net.safetensors'), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    def sparse(at):
        with open(at, 'wb') as f: f.truncate(10**10)
    odd = dict(pipe=os.mkfifo, folder=os.mkdir, device=lambda at: os.symlink('/dev/zero', at), lost=lambda at: os.symlink('nowhere', at), sparse=sparse)
    for text in ('LICENSE', 'LICENCE.txt', 'README.md'):
        for make in odd.values():
            at = f'beside/{text}'; make(at)
            assert load_autoencoder(file).licence == 'not stated'
            os.rmdir(at) if os.path.isdir(at) else os.remove(at)
    bomb = 'a0: &a0 [lol]\n' + ''.join(f'a{k}: &a{k} [{", ".join([f"*a{k-1}"]*9)}]\n' for k in range(1, 12)) + 'license: *a11\n'
    Path('beside/README.md').write_text(f'---\n{bomb}---\n'); assert load_autoencoder(file).licence == 'not stated'
    os.remove('beside/README.md')
    @settings(deadline=None, max_examples=20, database=None)
    @given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
    def licences(raw):
        Path('beside/LICENSE').write_bytes(raw)
        licence = load_autoencoder(file).licence
        assert licence and '\n' not in licence and len(licence) <= 200
    licences()
    for make in odd.values():
        at = autoencoder_folder('AutoencoderTiny')/'config.json'; at.unlink(); make(at)
        assert 'config.json' in told(load_autoencoder, 'folder')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18
    Path(name).touch()

def test_texts_beside_weights(): in_process(texts_beside, os.path.abspath('texts')); assert Path('texts').exists()

@often
@given(values | st.lists(st.floats() | st.integers(), min_size=4, max_size=4), values | st.lists(st.floats() | st.integers(), min_size=4, max_size=4))
def test_statistics_of_latents(mean, std):
    "What is accepted makes finite numbers of finite ones"
    import torch
    from types import SimpleNamespace
    from cemiface.generator.autoencoder import check_statistics
    if told(check_statistics, SimpleNamespace(channels=4), mean, std): return
    mean, std = torch.tensor([mean, std], dtype=torch.float32)[..., None, None]
    assert mean.shape == (4, 1, 1) and std.min() > 0 and (torch.randn(2, 4, 3, 3)*std + mean).isfinite().all()

# fastai

@pytest.fixture(scope='module')
def learn():
    from dataclasses import replace
    from cemiface.data.faces import PairSet
    from cemiface.data.toy import toy_faces
    from cemiface.recipe import load_recipe
    from cemiface.recognition.training import fit_recogniser, recogniser_learner
    faces, others = toy_faces(10, 7, size=24, seed=0), toy_faces(8, 4, size=24, seed=1, first=500)
    pairs = PairSet.from_faces(others, n_pairs=20, folds=2, seed=0)
    learn = recogniser_learner(faces, replace(load_recipe('toy').recogniser, epochs=1, batch=16), pairs, device='cpu')
    fit_recogniser(learn)
    return learn

def test_fastai_batches(learn):
    import matplotlib.pyplot as plt
    faces = learn.dls.dataset
    for dl in (learn.dls, learn.dls.train, learn.dls.valid):
        x, y, _ = dl.one_batch()
        assert x.shape == (16, 3, 24, 24) and y.shape == (16,)
        dl.show_batch(max_n=4)
        assert [ax.get_title() for ax in plt.gcf().axes if ax.get_title()] == [faces.names[k] for k in dl.one_batch()[1][:4].tolist()]
        plt.close('all')
    learn.show_results(); plt.close('all')

def test_fastai_predictions(learn):
    "Every face once, in order, as the model takes it, whichever loader is asked for; with losses and inputs"
    import torch
    import torch.nn.functional as F
    faces = learn.dls.dataset
    x, y = faces.batch(slice(None)), torch.as_tensor(faces.labels)
    with torch.no_grad(): wanted = learn.model.eval()(x, y)
    for how in ({}, dict(ds_idx=0), dict(dl=learn.dls.train), dict(dl=learn.dls.valid)):
        logits, labels = learn.get_preds(**how)
        torch.testing.assert_close(logits, wanted, atol=1e-3, rtol=1e-3); assert labels.equal(y)
    (inputs, _), _, _, losses = learn.get_preds(with_input=True, with_loss=True)
    assert inputs.equal(x); torch.testing.assert_close(losses, F.cross_entropy(wanted, y, reduction='none'), atol=1e-3, rtol=1e-3)
    learn.validate()

def test_fastai_export(learn):
    "Without faces; the copy predicts the same, and the learner can still be trained"
    from fastai.basics import load_learner
    learn.path = Path.cwd()
    learn.export('learner.pkl')
    back = load_learner('learner.pkl')
    assert len(back.dls.train.dataset) == 0 and len(learn.dls.train.dataset) == 70
    assert back.get_preds(dl=learn.dls.valid)[0].equal(learn.get_preds()[0])
    rows = len(learn.epoch_log.rows); learn.fit(1); assert len(learn.epoch_log.rows) == rows+1

def test_damaged_training_state(learn):
    import torch
    from cemiface.recognition.training import kept_state, restore_learner
    good = dict(format_version=1, key='k', rows=[], model=learn.model.state_dict(), opt=learn.opt.state_dict())
    def restored(o):
        path = saved(o, 'a.state')
        return restore_learner(learn, kept_state(path, 'k'), path)
    for bad in ({'model': {}}, {'model': 3}, {'opt': {}}, {'opt': None}, {'rows': 3}, {'model': {k: v[:0] for k, v in good['model'].items() if v.dim()}}):
        assert 'damaged' in told(restored, good|bad), bad
    for o in (3, [], None, {}): assert 'another run' in told(restored, o)
    assert 'format_version' in told(restored, good|dict(format_version=99))
    assert restored(good) == 0 and torch.isfinite(learn.get_preds()[0]).all()

# Kept embeddings, and faces that are none

@seldom
@given(st.data())
def test_kept_embeddings_are_made_again(data):
    from cemiface.data.toy import toy_faces
    from cemiface.encoders.pretrained import embed_set, load_encoder
    faces, net = toy_faces(2, 2, size=24), load_encoder('toy')
    shutil.rmtree('cache', ignore_errors=True)
    good = np.array(embed_set(net, faces, 'cache'))
    npy, = Path('cache').glob('*.npy'); raw = npy.read_bytes()
    def arrays(): return [good[:1], good.astype(np.float64), good+1, good.T, np.array([None]), np.zeros(10**4)]
    kind = data.draw(st.sampled_from(['cut', 'junk', 'array', 'absent', 'note', 'spot']))
    if kind == 'cut': npy.write_bytes(raw[:data.draw(st.integers(0, len(raw)-1))])
    elif kind == 'junk': npy.write_bytes(data.draw(st.binary(max_size=300)))
    elif kind == 'array': np.save(npy, arrays()[data.draw(st.integers(0, 5))], allow_pickle=True)
    elif kind == 'note':
        npy.with_suffix('.json').write_bytes(data.draw(st.sampled_from([b'', b'[]', b'null', b'{"format_version": "x"}', b'\xff', b'{"a": 1e999}'])))
    elif kind == 'spot': i = data.draw(st.integers(0, len(raw)-1)); npy.write_bytes(raw[:i]+bytes([raw[i] ^ 1])+raw[i+1:])
    else: npy.unlink()
    np.testing.assert_allclose(embed_set(net, faces, 'cache'), good, atol=1e-4)
    assert npy.read_bytes() == raw

@seldom
@given(st.lists(st.integers(0, 23), unique=True, max_size=24), st.tuples(*[st.integers(0, 255)]*3))
def test_no_face_no_similarity(blank, colour):
    "Faces of one colour change no figure of the others, and alone have none"
    from cemiface.analysis.leakage import find_nonmembers, leakage_report
    from cemiface.analysis.similarity import analyse, set_embeddings, set_roc
    from cemiface.data.faces import FaceSet
    from cemiface.data.toy import toy_faces
    from cemiface.encoders.pretrained import load_encoder
    judge, faces, folk = load_encoder('toy-judge'), toy_faces(6, 4, size=24), toy_faces(6, 4, size=24, seed=3, first=90)
    inquiries = FaceSet(faces.images[::4], np.arange(6))
    images = faces.images.copy(); images[blank] = np.array(colour, np.uint8)[:, None, None]
    kept = np.setdiff1d(np.arange(24), blank)
    found = analyse(FaceSet(images, faces.labels), judge, inquiries, folk)
    e, e_folk = set_embeddings(judge, FaceSet(images, faces.labels)), set_embeddings(judge, folk)
    assert np.isnan(e[blank]).all() and np.isfinite(e[kept]).all()
    if not len(kept):
        means = [o['mean'] for o in (found.similarity_to_inquiry, found.leakage, found.within_identity, found.between_identity)]
        assert str(found) and [*means, found.rank1] == [None]*5
        return
    judged, folks, q = (o/np.linalg.norm(o, axis=1, keepdims=True) for o in (e[kept], e_folk, set_embeddings(judge, inquiries)))
    cosines, own = judged @ folks.T, (judged*q[faces.labels[kept]]).sum(1)
    close = dict(atol=1e-4)
    np.testing.assert_allclose([found.leakage['max'], found.leakage['mean']], [cosines.max(1).max(), cosines.max(1).mean()], **close)
    np.testing.assert_allclose([found.similarity_to_inquiry[k] for k in ('mean', 'std')], [own.mean(), own.std()], **close)
    np.testing.assert_allclose(found.rank1, ((judged @ q.T).argmax(1) == faces.labels[kept]).mean())
    pairs = [judged[i] @ judged[j] for i, j in itertools.combinations(range(len(kept)), 2) if faces.labels[kept[i]] == faces.labels[kept[j]]]
    if pairs: np.testing.assert_allclose(found.within_identity['mean'], np.mean(pairs), **close)
    nonmembers = find_nonmembers(e_folk, folk.labels)
    report = leakage_report(e, faces.labels, set_embeddings(judge, inquiries), e_folk, nonmembers)
    np.testing.assert_allclose(report['generated']['max'], cosines.max(), **close)
    assert report['generated']['faces'] == len(kept) and np.isnan(report['cosine'][blank]).all()
    if len(set(faces.labels[kept])) > 1 and len(pairs): assert 0 <= set_roc(e, faces.labels, 200)['eer'] <= 1

def test_a_blank_photo_poisons_nothing():
    "Among the training photos, too"
    from cemiface.analysis.leakage import find_nonmembers
    from cemiface.analysis.similarity import identity_centres, label_margins, nearest, set_embeddings, within_covariance
    from cemiface.data.faces import FaceSet
    from cemiface.data.toy import toy_faces
    from cemiface.encoders.pretrained import load_encoder
    judge, faces = load_encoder('toy-judge'), toy_faces(6, 4, size=24)
    images = faces.images.copy(); images[5] = 0
    some = faces.subset(np.delete(np.arange(24), 5))
    e, rest = set_embeddings(judge, FaceSet(images, faces.labels)), set_embeddings(judge, some)
    for f in (identity_centres, within_covariance): np.testing.assert_allclose(abs(f(e, faces.labels)), abs(f(rest, some.labels)), atol=1e-3)
    np.testing.assert_allclose(np.delete(label_margins(e, faces.labels), 5), label_margins(rest, some.labels), atol=1e-4)
    np.testing.assert_allclose(nearest(rest, e)[0], 1, atol=1e-4)
    assert np.isfinite(find_nonmembers(e, faces.labels).threshold)

# IJB in a cache of links

def test_ijb_in_a_cache_of_links(cemiface, photos, tmp_path):               # noqa: F811
    meta = ijb(tmp_path/'ijb', photos)
    ask = ['verify', '--encoder', encoder, '--ijb', 'ijb', '--json']
    before = as_json(cemiface(*ask).out)
    for k, file in enumerate(sorted(o for o in (tmp_path/'ijb').rglob('*') if o.is_file())):
        (tmp_path/'blobs').mkdir(exist_ok=True); file.rename(tmp_path/'blobs'/f'{k}'); file.symlink_to(tmp_path/'blobs'/f'{k}')
    assert as_json(cemiface(*ask).out) == before
    for name in ('../../photos/p0/0.png', str(tmp_path/'photos/p0/0.png')):
        for file in meta.glob('*_mid.txt'), meta.glob('*score.txt'):
            at, = file; text = at.read_text().replace(photos[0][0], name); at.unlink(); at.write_text(text)
        refused(cemiface(*ask), name, 'loose_crop'); photos[0] = (name, *photos[0][1:])
    assert json.dumps(before)

@pytest.fixture(autouse=True, scope='module')
def folder(tmp_path_factory):
    "Files of examples lie in a folder of this module"
    before = os.getcwd(); os.chdir(tmp_path_factory.mktemp('networks'))
    os.environ['CEMIFACE_QUIET'] = '1'
    yield
    os.chdir(before); del os.environ['CEMIFACE_QUIET']
