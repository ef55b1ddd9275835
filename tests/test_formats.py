"Sets and pairs in the formats of others: their programs read what we write, we read what they write, and no file does harm"
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import as_json, contents, in_process, refused, root, sets
from PIL import Image

shared = Path(os.environ.get('CEMIFACE_SHARED', root/'..'/'shared'))

def images(folder): return {k: v for k, v in contents(folder).items() if k.endswith(('.png', '.jpg'))}

# Packing and unpacking from the command line

@pytest.mark.parametrize('to, back', [('train.rec', 'train.rec'), ('one.tar', 'one.tar'), ('some-%03d.tar', 'some-{000..000}.tar'), ('shards', 'shards')])
def test_there_and_back(cemiface, finished, tmp_path, to, back):
    r = cemiface('pack', '--from', finished.faces, '--to', f'new/{to}', '--json')
    assert r.code==0 and r.err=='', r
    assert as_json(r.out)==dict(out=f'new/{to}', images=18, identities=6)
    r = cemiface('unpack', '--from', f'new/{back}', '--to', 'back')
    assert r.code==0 and r.out=='back: 18 images, 6 identities\n', r
    assert images(tmp_path/'back')==images(finished.faces)
    before = contents(tmp_path)
    refused(cemiface('pack', '--from', finished.faces, '--to', f'new/{to}'), 'exists already')
    refused(cemiface('unpack', '--from', f'new/{back}', '--to', 'back'), 'back exists already')
    assert contents(tmp_path)==before and not [k for k in before if '.cemiface' in k]

def test_a_killed_pack_leaves_no_rec(start, cemiface, finished, tmp_path):
    args = ['pack', '--from', finished.faces, '--to', 'new/train.rec']
    assert start(*args, stop=dict(event='os.rename', pattern=r'train\.idx$')).wait().code==-9
    assert not (tmp_path/'new'/'train.rec').exists()
    for o in (tmp_path/'new').iterdir(): o.unlink()
    assert cemiface(*args).code==0
    assert sorted(o.name for o in (tmp_path/'new').iterdir())==['property', 'train.idx', 'train.lst', 'train.rec']

@pytest.mark.parametrize('verb, to', [('pack', 'new/one.tar'), ('pack', 'new/shards'), ('pack', 'new/some-%03d.tar'), ('unpack', 'new/back')])
def test_what_a_kill_left_is_swept(start, cemiface, finished, tmp_path, verb, to):
    assert cemiface('pack', '--from', finished.faces, '--to', 'one.tar').code==0
    args = [verb, '--from', finished.faces if verb=='pack' else 'one.tar', '--to', to]
    assert start(*args, stop=dict(event='os.rename', pattern=r'new/(one|shards|some|back)[^/]*$')).wait().code==-9
    left = [o for o in contents(tmp_path/'new') if o.startswith('.cemiface')]
    assert left and cemiface(*args).code==0
    assert not [o for o in contents(tmp_path) if '.cemiface' in o]

def test_copies_of_the_inquiries(cemiface, finished, tmp_path):
    shutil.copytree(finished.faces, tmp_path/'lone')
    refused(cemiface('pack', '--from', 'lone', '--to', 'train.rec', '--copies', 5), 'lone.inquiries')
    for where in (['--from', 'lone', '--inquiries', finished.inquiries], ['--from', finished.faces]):       # a set of a run knows where they are
        r = cemiface('pack', *where, '--to', f'{len(where)}/train.rec', '--copies', 5, '--json')
        assert as_json(r.out)['images']==18+6*5 and (tmp_path/str(len(where))/'property').read_text().startswith('6,24,24')

def test_packed_faces_serve_every_verb(cemiface, finished, dev, tmp_path):
    "A .rec, tars and the folder that they were packed from give the same numbers"
    for to in ('x/train.rec', 'x-%03d.tar'): assert cemiface('pack', '--from', finished.faces, '--to', to).code==0
    def analysed(faces):
        args = ['--faces', faces, '--judge', finished.judge, '--against', faces, '--inquiries', finished.inquiries, '--json']
        return as_json(cemiface('analyse', *args).out)
    folder = analysed(finished.faces)
    assert analysed('x/train.rec')==folder and analysed('x')==folder and analysed('x-{000..000}.tar')==folder
    def trained(faces, out):
        assert cemiface('train-recogniser', '--faces', faces, '-r', 'toy', *sets(), '--out', out, '--device', 'cpu').code==0
        return (tmp_path/out/'diffusion_pytorch_model.safetensors').read_bytes()
    assert trained('x/train.rec', 'a')==trained(finished.faces, 'b')
    refused(cemiface('analyse', '--faces', 'x.bin', '--judge', finished.judge), 'x.bin', '--pairs')
    small = dict(training=dict(epochs=1, batch=6), inquiries=dict(identities=4, threshold=.999), study=dict(scalar=[1], sphere=[]),
        sampling=dict(steps=2, batch=8), generation=dict(per_identity=2, copies=1), recogniser=dict(epochs=1, batch=4))
    assert cemiface('pack', '--from', dev/'images', '--pairs', dev/'pairs.txt', '--to', 'dev.bin').code==0
    photos = ['--faces', 'x-*.tar', '--inquiries', 'x/train.rec', '--pairs', 'dev.bin']
    r = cemiface('run', '-r', 'toy', '-s', 'faces.source=folder', *sets(small), *photos, '--identity-encoder', finished.encoder, '--out', 'run')
    assert r.code==0, r.err

# Pairs

def test_pairs_in_one_file(cemiface, finished, dev, tmp_path):
    names = ['lfw', 'cfp_fp', 'agedb_30', 'calfw', 'cplfw']
    for n in names: assert cemiface('pack', '--from', dev/'images', '--pairs', dev/'pairs.txt', '--to', f'{n}.bin').code==0
    ask = ['verify', '--encoder', finished.encoder, '--pairs']
    r = cemiface(*ask, *(f'{n}.bin' for n in names))
    assert r.code==0 and r.err=='', r
    columns, figures = (o.split() for o in r.out.splitlines()[-2:])
    assert columns==[*names, 'average'] and len(figures)==6
    text = as_json(cemiface(*ask, dev/'pairs.txt', '--images', dev/'images', '--folds', 4, '--json').out)['results'][0]
    packed = as_json(cemiface(*ask, 'lfw.bin', '--folds', 4, '--json').out)['results'][0]
    assert all(packed[k]==text[k] for k in ('accuracy', 'std', 'threshold', 'tar_at_far', 'folds'))
    assert as_json(cemiface(*ask, 'lfw.bin', '--json').out)['results'][0]['folds']==8        # ten, but there are only eight pairs
    assert cemiface('unpack', '--from', 'lfw.bin', '--to', 'back').code==0
    assert cemiface('pack', '--from', 'back/images', '--pairs', 'back/pairs.txt', '--to', 'again.bin').code==0
    assert (tmp_path/'again.bin').read_bytes()==(tmp_path/'lfw.bin').read_bytes()

def verified_both_ways(folder):
    from cemiface.data.faces import PairSet
    from cemiface.data.packing import pack
    from cemiface.data.formats import read_pairs, write_pairs
    from cemiface.encoders.pretrained import load_encoder
    from cemiface.recognition.verification import verify
    lfw = shared/'faces'/'lfw'
    p = read_pairs(lfw/'dev_pairs.txt')
    same, different = p.rows[:50], p.rows[300:350]
    write_pairs(folder/'pairs.txt', 10, [o for k in range(10) for o in same[k*5:][:5]+different[k*5:][:5]])
    pack(lfw/'dev', folder/'dev.bin', folder/'pairs.txt')
    net = load_encoder(shared/'weights'/'mobilefacenet-ms1m.safetensors')
    text, packed = PairSet.from_files(folder/'pairs.txt', lfw/'dev'), PairSet.from_files(folder/'dev.bin')
    assert (text.images==packed.images).all() and (text.left==packed.left).all() and (text.right==packed.right).all()
    for folds in (10, 2, 1):
        a, b = (verify(net, o, folder/'cache', 'cpu', folds) for o in (text, packed))
        assert a.accuracy > .9 and all(getattr(a, k)==getattr(b, k) for k in ('accuracy', 'std', 'threshold', 'tar_at_far'))

@pytest.mark.skipif(not (shared/'faces'/'lfw'/'dev_pairs.txt').exists(), reason='no real photos here (CEMIFACE_SHARED)')
def test_real_pairs_give_the_same_either_way(tmp_path): in_process(verified_both_ways, tmp_path)

# Other programs

def test_webdataset(finished, tmp_path):
    wds = pytest.importorskip('webdataset')
    from cemiface.data.packed import scan
    from cemiface.data.packing import pack
    pack(finished.faces, tmp_path/'x-%03d.tar')
    rows = list(wds.WebDataset(str(tmp_path/'x-{000..000}.tar'), shardshuffle=False).decode('pil').to_tuple('png', 'cls', 'json'))
    mine = scan(finished.faces)
    assert [(o[1], o[2]['file']) for o in rows]==[(int(e.identity), e.name) for e in mine] and {o[0].size for o in rows}=={(24, 24)}
    with wds.TarWriter(str(tmp_path/'theirs.tar')) as t:
        for i, e in enumerate(mine): t.write(dict(__key__=f'{i:04d}', png=e.read(), cls=int(e.identity), json=dict(note='hm')))
    theirs = scan(tmp_path/'theirs.tar')
    assert [(e.read(), e.identity) for e in theirs]==[(e.read(), e.identity) for e in mine]
    with wds.ShardWriter(str(tmp_path/'s-%02d.tar'), maxcount=5, verbose=0) as t:
        for e in mine: t.write({'__key__': e.name.removesuffix('.png'), 'png': e.read()})
    assert [(e.name, e.read()) for e in scan(tmp_path/'s-*.tar')]==[(e.name, e.read()) for e in mine]

def test_hugging_face_imagefolder(finished, tmp_path):
    datasets = pytest.importorskip('datasets')
    from cemiface.data.packed import scan
    from cemiface.data.packing import pack, unpack
    pack(finished.faces, tmp_path/'x.tar'); unpack(tmp_path/'x.tar', tmp_path/'plain')
    shutil.copytree(finished.faces, tmp_path/'set')                                  # with manifest.jsonl, run.json and a card
    bare = datasets.load_dataset('imagefolder', data_dir=str(tmp_path/'set'), split='train', cache_dir=str(tmp_path/'cache'))
    assert bare.features['label'].names==[f'{i:06d}' for i in range(6)] and bare['label']==[i for i in range(6) for _ in range(3)]
    pack(tmp_path/'set', tmp_path/'set'/'metadata.jsonl')
    mine = scan(finished.faces)
    for folder, more in (('plain', set()), ('set', {'m', 'control', 'seed', 'similarity', 'index'})):
        ds = datasets.load_dataset('imagefolder', data_dir=str(tmp_path/folder), split='train', cache_dir=str(tmp_path/'cache'))
        assert len(ds)==18 and {'image', 'identity', 'label'}|more <= set(ds.column_names)
        assert sorted(ds['identity'])==sorted(e.identity for e in mine) and ds[0]['image'].size==(24, 24)
        assert all(o['label']==int(o['identity']) for o in ds)
    assert set(ds['m'])=={1.}

MXNET = os.environ.get('CEMIFACE_MXNET_PYTHON')          # an interpreter with mxnet, which needs a numpy of its own

MX = '''import sys, json, mxnet as mx, numpy as np
from mxnet import recordio as r
rec = r.MXIndexedRecordIO(sys.argv[1]+'.idx', sys.argv[1]+'.rec', 'r')
h, _ = r.unpack(rec.read_idx(0)); a, b = map(int, h.label)
rows = []
for k in range(1, a):
    h, img = r.unpack(rec.read_idx(k)); rows.append([float(h.label), h.id, img.hex()])
ranges = [list(map(int, r.unpack(rec.read_idx(k))[0].label)) for k in range(a, b)]
out = r.MXIndexedRecordIO(sys.argv[2]+'.idx', sys.argv[2]+'.rec', 'w')
for k, (label, _, img) in enumerate(rows):
    raw = bytes.fromhex(img)+(r._IR_FORMAT and b'\\x0a\\x23\\xd7\\xce')*(k%3)
    out.write_idx(k, r.pack(r.IRHeader(0, [label, 1.] if k%2 else label, k, 0), raw))
out.close()
print(json.dumps([rows, ranges]))'''

@pytest.mark.skipif(not MXNET, reason='mxnet is not at hand (CEMIFACE_MXNET_PYTHON names an interpreter that has it)')
def test_mxnet(finished, tmp_path):
    "mxnet reads ours as arcface_torch and AdaFace do, and we read its own, also where the magic stands in a payload"
    from cemiface.data.packed import scan
    from cemiface.data.packing import pack
    pack(finished.faces, tmp_path/'x.rec')
    env = {k: v for k, v in os.environ.items() if k!='PYTHONPATH'}
    r = subprocess.run([MXNET, '-c', MX, tmp_path/'x', tmp_path/'theirs'], capture_output=True, text=True, env=env)
    assert r.returncode==0, r.stderr
    rows, ranges = json.loads(r.stdout)
    mine = scan(finished.faces)
    assert rows==[[float(e.identity), k, e.read().hex()] for k, e in enumerate(mine, 1)]
    assert ranges==[[1+3*k, 4+3*k] for k in range(6)]
    theirs = scan(tmp_path/'theirs.rec')
    assert [(e.identity, e.read()) for e in theirs]==[(e.identity, e.read()+b'\x0a\x23\xd7\xce'*(k%3)) for k, e in enumerate(mine)]

# No harm

class Evil:
    def __init__(self, target): self.target = target
    def __reduce__(self): return os.system, (f'touch {self.target}',)

def test_a_bin_with_code_does_not_run_it(cemiface, finished, tmp_path):
    for protocol in range(6):
        (tmp_path/'x.bin').write_bytes(pickle.dumps(([Evil(tmp_path/'owned'), b''], [True]), protocol))
        refused(cemiface('verify', '--encoder', finished.encoder, '--pairs', 'x.bin'), 'x.bin', 'do not trust it')
        refused(cemiface('unpack', '--from', 'x.bin', '--to', 'new'), 'x.bin')
    assert [o.name for o in tmp_path.iterdir() if '.' not in o.name[:1]]==['x.bin']

@pytest.mark.parametrize('name', ['../out.png', '../../out.png', '/tmp/cemiface-out.png', 'a/../../out.png', '..\\out.png', 'x/\0.png', 'run.sh'])
def test_names_cannot_escape(cemiface, finished, tmp_path, name):
    assert cemiface('pack', '--from', finished.faces, '--to', 'x.rec').code==0
    lst = (tmp_path/'x.lst').read_text()
    (tmp_path/'x.lst').write_text(lst.replace('000002/001.png', name))
    with tarfile.open(tmp_path/'x.tar', 'w') as t:
        for k, v in (('1.png', b'png'), ('1.json', json.dumps(dict(format_version=1, file=name)).encode())):
            m = tarfile.TarInfo(k); m.size = len(v); t.addfile(m, io.BytesIO(v))
    before = contents(tmp_path)
    refused(cemiface('unpack', '--from', 'x.tar', '--to', 'deep/new'), 'names', 'x.')
    if name[0]!='/' and name!='run.sh':
        refused(cemiface('unpack', '--from', 'x.rec', '--to', 'deep/new'), 'names', 'x.')
        assert contents(tmp_path)==before
    else:                                            # lists hold such names beside good records; the labels are enough
        assert cemiface('unpack', '--from', 'x.rec', '--to', 'deep/new').code==0
        written = contents(tmp_path).keys()-before.keys()
        assert all(o.startswith('deep') for o in written) and f'deep/new/000002/{"cemiface-out" if name[0]=="/" else "run.sh"}.png' in written
    assert not Path('/tmp/cemiface-out.png').exists()

def test_links_are_not_followed_out(cemiface, tmp_path):
    with tarfile.open(tmp_path/'x.tar', 'w') as t:
        m = tarfile.TarInfo('a'); m.type, m.linkname = tarfile.SYMTYPE, str(tmp_path); t.addfile(m)
        picture = io.BytesIO(); Image.new('RGB', (8, 8)).save(picture, 'PNG')
        for k in ('a/1.png', 'b/2.png'): m = tarfile.TarInfo(k); m.size = len(picture.getvalue()); t.addfile(m, io.BytesIO(picture.getvalue()))
        m = tarfile.TarInfo('b/3.png'); m.type, m.linkname = tarfile.LNKTYPE, '/etc/passwd'; t.addfile(m)
    assert cemiface('unpack', '--from', 'x.tar', '--to', 'new').code==0
    assert set(images(tmp_path/'new'))=={'a/1.png', 'b/2.png'} and not (tmp_path/'1.png').exists() and not (tmp_path/'new'/'a').is_symlink()

# No connections

def offline(folder, calls):
    os.chdir(folder)
    for k in ('HF_HUB_OFFLINE', 'HF_DATASETS_OFFLINE', 'TRANSFORMERS_OFFLINE'): os.environ.pop(k, None)
    def hook(event, args):
        if event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'socket.sendto'): os.write(2, f'{event} {args}\n'.encode()); os._exit(7)
    sys.addaudithook(hook)
    from cemiface.cli import main
    for a in calls: assert main([str(o) for o in a])==0, a

def test_no_connection_is_made(cemiface, finished, dev, tmp_path):
    copy = shutil.copytree(finished.generator, tmp_path/'generator')
    tiny = ['--m', 0, '--identities', 2, '--per-identity', 1, '--steps', 1, '--threshold', .9999]
    in_process(offline, tmp_path, [['pack', '--from', finished.faces, '--to', 'x.rec'], ['unpack', '--from', 'x.rec', '--to', 'back'],
        ['verify', '--encoder', finished.encoder, '--pairs', dev/'pairs.txt', '--images', dev/'images'],
        ['analyse', '--faces', 'x.rec', '--judge', finished.judge], ['train-recogniser', '--faces', 'x.rec', '-r', 'toy', *sets(), '--out', 'net'],
        ['generate', '--generator', finished.generator, '--inquiries', 'x.rec', *tiny, '--out', 'new'], ['recipes'],
        ['calibrate', '--generator', copy, '--judge', finished.judge, '--faces', 'x.rec', '--control', 'sphere', '--limit', 2, '--steps', 1]])
    refused(cemiface('generate', '--generator', copy/'missing', '--inquiries', 'x.rec', *tiny, '--out', 'more'), 'holds no generator')
