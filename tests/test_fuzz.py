"""Files that somebody has damaged, or made to do damage. Every case ends in a result or in one sentence that names the file: never in another
exception, 1 GB of memory, code, a connection, or a write outside its folder. A case that hangs is killed.

Each format has its own process, which watches itself: an audit hook sees what is opened, imported, started or connected. `--fuzz N` sets the
number of cases (2,000 by default, and a tenth of it for what is a whole folder); case k of a format is the same in every run."""
import contextlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import time

import pytest
from conftest import in_process, root

# Mutations

NUMBERS = [0, 1, 2, 7, 8, 127, 128, 255, 256, 0x7fff, 0xffff, 2**24, 2**29-1, 2**29, 2**30, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff, 0xced7230a]
WORDS = [b'..', b'../', b'/', b'/etc/passwd', b'\\', b'\0', b'\t', b'\n', b'\r\n', b' ', b'-1', b'9'*30, b'9'*5000, b'1e309', b'nan', b'NaN', b'inf',
    b'0x10', b'null', b'true', b'"', b"'''", b'{', b'[', b'['*3000, b'[[x]]', b'{"a":'*2000, b'}', b']', b'=', b'.', b'#', b'\xff', b'\xc3',
    '\u2028'.encode(), '²'.encode(), b'\xef\xbb\xbf']

def spot(r, raw, head):
    "A place in a file; half of the time among its first bytes, where lengths stand"
    return r.randrange(min(len(raw), head) if head and r.random() < .5 else len(raw)) if raw else 0

def mutate(r, raw, other, head=0, text=False):
    "A file with one to four things wrong"
    raw = bytearray(raw)
    for _ in range(r.randint(1, 4)):
        i, n = spot(r, raw, head), r.choice([1, 2, 4, 8, 30, 300])
        kind = r.choice(['word']*4+['bit', 'cut', 'drop', 'twice', 'splice'] if text else
            ['bit', 'byte', 'number', 'number', 'wide', 'cut', 'drop', 'twice', 'insert', 'zero', 'splice'])
        if kind == 'bit' and raw: raw[i] ^= 1 << r.randrange(8)
        elif kind == 'byte': raw[i:i+1] = bytes([r.randrange(256)])
        elif kind == 'number': raw[i:i+4] = struct.pack(r.choice('<>')+'I', r.choice(NUMBERS))
        elif kind == 'wide': raw[i:i+8] = struct.pack(r.choice('<>')+'Q', r.choice(NUMBERS+[2**40, 2**63-1, 2**64-1]))
        elif kind == 'cut': del raw[i:]
        elif kind == 'drop': del raw[i:i+n]
        elif kind == 'twice': raw[i:i] = raw[i:i+n]
        elif kind == 'insert': raw[i:i] = r.randbytes(n)
        elif kind == 'zero': raw[i:i+n] = bytes(n)
        elif kind == 'word': raw[i:i+r.choice([0, 0, 1, 2, 9])] = r.choice(WORDS)
        elif kind == 'splice' and other: k = r.randrange(len(other)); raw[i:i+n] = other[k:k+n]
    return bytes(raw)

# Seeds: small good files. Each format gives its seeds and what is done with a damaged one; `d` is its folder

def encoded(im, fmt, **kw):
    out = io.BytesIO(); im.save(out, fmt, **kw)
    return out.getvalue()

def pictures():
    "Encoded images of every kind"
    from PIL import Image
    im, exif = Image.radial_gradient('L').resize((20, 16)), Image.Exif()
    exif[0x0112] = 6
    rgb = Image.merge('RGB', [im, im.transpose(0), im.rotate(90)])
    alpha = rgb.convert('RGBA'); alpha.putalpha(im)
    frames = dict(save_all=True, append_images=[rgb.rotate(k) for k in (90, 180)])
    sixteen = im.convert('I').point(lambda v: v*257).convert('I;16')
    return [encoded(rgb, 'JPEG'), encoded(im, 'JPEG', progressive=True), encoded(rgb.convert('CMYK'), 'JPEG'), encoded(rgb, 'JPEG', exif=exif),
        encoded(rgb, 'PNG'), encoded(im, 'PNG'), encoded(alpha, 'PNG'), encoded(rgb.quantize(8), 'PNG', transparency=3), encoded(im.convert('1'), 'PNG'),
        encoded(sixteen, 'PNG'), encoded(rgb, 'PNG', **frames), encoded(rgb.quantize(8), 'GIF', save_all=True, append_images=[im, im]),
        encoded(rgb, 'WEBP'), encoded(alpha, 'WEBP', lossless=True), encoded(rgb, 'WEBP', **frames), encoded(rgb, 'BMP'), encoded(rgb, 'TIFF'),
        encoded(rgb, 'TIFF', compression='tiff_lzw'), encoded(rgb.convert('CMYK'), 'TIFF'), encoded(im.convert('F'), 'TIFF'), encoded(rgb, 'PPM'),
        encoded(rgb, 'TIFF', **frames)]

def in_folder(d):
    "Three people in a folder"
    for i, p in enumerate(pictures()[k] for k in (0, 4, 5, 12, 3)):
        (d/'good'/f'{i%3:06d}').mkdir(parents=True, exist_ok=True)
        (d/'good'/f'{i%3:06d}'/f'{i:03d}.png').write_bytes(p)
    return d/'good'

def rec_files(d):
    from cemiface.data.packing import pack
    pack(in_folder(d), d/'good.rec')
    for o in ('rec', 'idx', 'lst'): shutil.copyfile(d/f'good.{o}', d/f'x.{o}')
    (d/'deep').mkdir()

def use_set(d, path, r):
    from cemiface.data.faces import FaceSet
    from cemiface.data.packing import unpack
    FaceSet.open(path, 16, max_bad=1)
    if r.random() < .1:
        try: unpack(path, d/'deep'/'out')
        finally: shutil.rmtree(d/'deep'/'out', ignore_errors=True)

def fuzz_rec(d):
    rec_files(d)
    def case(raw, r):
        (d/'x.rec').write_bytes(raw)
        for o in ('idx', 'lst'): (d/f'x.{o}').unlink(missing_ok=True); r.random() < .5 and shutil.copyfile(d/f'good.{o}', d/f'x.{o}')
        use_set(d, d/'x.rec', r)
    return [(d/'good.rec').read_bytes()], case, dict(head=120)

def fuzz_idx(d):
    rec_files(d)
    def case(raw, r):
        which = r.choice(['idx', 'idx', 'lst'])
        (d/f'x.{which}').write_bytes(raw); use_set(d, d/'x.rec', r); shutil.copyfile(d/f'good.{which}', d/f'x.{which}')
    return [(d/'good.idx').read_bytes(), (d/'good.lst').read_bytes()], case, dict(text=True)

def fuzz_tar(d):
    from cemiface.data.packing import pack
    pack(in_folder(d), d/'good.tar'); (d/'deep').mkdir()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w', format=tarfile.GNU_FORMAT) as t:
        for k in ('x'*150+'/1.jpg', 'b/2.jpg', 'b/2.cls'): m = tarfile.TarInfo(k); m.size = 1; t.addfile(m, io.BytesIO(b'1'))
        m = tarfile.TarInfo('b/3.jpg'); m.type, m.linkname = tarfile.SYMTYPE, '/etc/passwd'; t.addfile(m)
    def case(raw, r): (d/'x.tar').write_bytes(raw); use_set(d, d/'x.tar', r)
    return [(d/'good.tar').read_bytes(), out.getvalue()], case, dict(head=1200)

def fuzz_bin(d):
    import numpy as np
    from cemiface.data.faces import PairSet
    raws, same = [pictures()[k] for k in (4, 5, 0, 12)], [True, False]
    arrays = [np.frombuffer(o, np.uint8) for o in raws]
    labels = [same, np.array(same), np.array([1, 0], '>i8'), list(np.array([1, 0], np.int32))]
    seeds = [pickle.dumps(o, p) for o in zip((raws, arrays, list(map(bytearray, raws)), raws), labels) for p in (0, 2, 4, 5)]
    def case(raw, r): (d/'x.bin').write_bytes(raw); PairSet.from_files(d/'x.bin', size=16)
    return seeds, case, dict(head=200)

def fuzz_manifest(d):
    from cemiface.data.formats import manifest_line, read_manifest, scan_manifest
    from cemiface.data.packing import write_metadata
    in_folder(d)
    facts = dict(index=0, m=.5, control='sphere', seed=1, similarity=.3, inquiry=dict(path='a', sha256='b'))
    good = ''.join(manifest_line(identity=i, file=f'{i:06d}/00{i}.png', **facts) for i in range(3))
    def case(raw, r):
        at = d/'good'/'manifest.jsonl'; at.write_bytes(raw)
        read_manifest(at); write_metadata(d/'good'); list(scan_manifest(at, mend=True))
    return [good.encode()], case, dict(text=True)

def fuzz_pairs(d):
    from cemiface.data.formats import pair_files, read_pairs
    for k in ('A/A_0001.png', 'A/A_0002.JPEG', 'B/B_0001.Jpg'): (d/k).parent.mkdir(exist_ok=True); (d/k).write_bytes(b'')
    def case(raw, r): (d/'x.txt').write_bytes(raw); pair_files(read_pairs(d/'x.txt'), d)
    return [b'1\t1\nA\t1\t2\nA\t1\tB\t1\n', b'1\t1\t\t\nA\t1\t2\t\t\nA\t1\tB\t1\t\n', b'1\nA\t1\t2\nA\t2\tB\t1\n'], case, dict(text=True)

def fuzz_recipe(d):
    from cemiface.recipe import load_recipe, recipes
    def case(raw, r): (d/'x.toml').write_bytes(raw); load_recipe(d/'x.toml')
    return [p.read_bytes() for p in recipes().values()], case, dict(text=True)

def fuzz_safetensors(d):
    from cemiface.encoders.pretrained import load_encoder
    shutil.copytree(root/'cemiface'/'assets'/'toy'/'identity_encoder', d/'net')
    file = d/'net'/'diffusion_pytorch_model.safetensors'
    weights, config = file.read_bytes(), (d/'net'/'config.json').read_bytes()
    head = 8+struct.unpack('<Q', weights[:8])[0]
    def case(raw, r):
        if raw.lstrip()[:1] == b'{': (d/'net'/'config.json').write_bytes(raw); file.write_bytes(weights)
        else: (d/'net'/'config.json').write_bytes(config); file.write_bytes(raw+(b'' if r.random() < .5 else weights[len(raw):]))
        if r.random() < .7: load_encoder(d/'net')
        else: shutil.copyfile(file, d/'x.safetensors'); load_encoder(d/'x.safetensors')
    return [weights[:head], weights[:head+64], config], case, {}

def fuzz_pth(d):
    import torch
    from cemiface.encoders.pretrained import load_encoder
    seeds = []
    for new in (True, False):
        for o in ({'conv.weight': torch.zeros(2, 2)}, {'state_dict': {'a': torch.ones(3), 'n': 3, 's': 'text'}, 'epoch': 1}):
            out = io.BytesIO(); torch.save(o, out, _use_new_zipfile_serialization=new); seeds.append(out.getvalue())
    class Evil:
        def __reduce__(self): return os.system, (f'touch {d.parent/"owned"}',)
    seeds.append(pickle.dumps(dict(a=Evil()))); out = io.BytesIO(); torch.save(dict(a=Evil()), out); seeds.append(out.getvalue())
    def case(raw, r): at = d/r.choice(['x.pth', 'x.ckpt', 'x.pt']); at.write_bytes(raw); load_encoder(at)
    return seeds, case, {}

def fuzz_image(d):
    from PIL import Image
    from cemiface.data.faces import decode_image
    def case(raw, r):
        at = d/f'x{r.choice([".jpg", ".png", ".webp", ".gif", ".bmp", ".tif"])}'; at.write_bytes(raw)
        decode_image(at, r.choice([16, 16, None]))
    bombs = [encoded(Image.new('1', (n, n)), 'PNG') for n in (5500, 12000)]       # as large as is let in, and larger
    return pictures()*2+bombs, case, dict(head=64)

def odd_tensor(r, v):
    "A tensor that no network has in this place"
    import torch
    v = torch.atleast_1d(v).float()
    kinds = [v*torch.nan, v/0, v*0, v.double()*1e300, v[:0], v.flatten(), v[None], v.new_zeros(()), v.int(), v != 0, v.cfloat(),
        v.to(torch.float8_e4m3fn), v.to(torch.float8_e5m2), v.half(), v.bfloat16(), v.double(), v*1e30, -v.abs(), v.new_zeros(2**20, 0), v[:1].clone()]
    return r.choice(kinds)

def fuzz_encoder_folder(d):
    from cemiface.encoders.pretrained import embed, load_encoder
    from safetensors.torch import load_file, save_file
    import numpy as np
    good, name = root/'cemiface'/'assets'/'toy'/'identity_encoder', 'diffusion_pytorch_model.safetensors'
    values = [None, True, -1, 0, 1, 3, 24, 10**4, 10**9, 10**30, .5, float('nan'), float('inf'), '', 'toy', 'ir18', '../x', 'os:system', [], [1], [8, 8],
        [0, 0, 0], [1e999]*3, [[1]], {}, {'a': 1}, ['x'], [-100, 100], [.5]*3, 'bgr']
    def change(r, at):
        kind = r.choice(['tensor']*4+['config']*4+['name', 'absent', 'bytes', 'empty', 'folder', 'fifo', 'shards', 'key'])
        file = at/r.choice([name, name, 'config.json'])
        if kind in ('tensor', 'key') and (at/name).is_file():
            state = load_file(at/name); k = r.choice(list(state)); v = state.pop(k)
            if kind == 'tensor': state[k] = odd_tensor(r, v)
            elif r.random() < .5: state[r.choice(['extra', k+'.x', 'backbone.'+k])] = v
            save_file({k: v.contiguous() for k, v in state.items()}, at/name)
        elif kind == 'config' and (at/'config.json').is_file():
            config = json.loads((at/'config.json').read_text())
            (at/'config.json').write_text(json.dumps({**config, r.choice(list(config)): r.choice(values)}))
        elif kind in ('name', 'shards') and (at/name).is_file():
            new = r.choice(['model.safetensors', 'diffusion_pytorch_model.fp16.safetensors', 'pytorch_model.bin']) if kind == 'name' else \
                'diffusion_pytorch_model-00001-of-00002.safetensors'
            (at/name).rename(at/new)
        elif kind == 'bytes' and file.is_file(): file.write_bytes(mutate(r, file.read_bytes(), b'', 400))
        elif kind in ('absent', 'empty', 'folder', 'fifo') and file.is_file():
            file.unlink()
            if kind == 'empty': file.write_bytes(b'')
            if kind == 'folder': file.mkdir()
            if kind == 'fifo' and file.name == name: os.mkfifo(file)
    def case(raw, r):
        shutil.rmtree(d/'x.net', ignore_errors=True); shutil.copytree(good, d/'x.net')
        for _ in range(r.choice([1, 1, 2, 3])):
            try: change(r, d/'x.net')
            except Exception as e:
                if 'safetensors' not in type(e).__module__ and not isinstance(e, (ValueError, OSError)): raise   # damaged by the change before
        assert np.isfinite(embed(load_encoder(d/'x.net'), np.zeros((2, 3, 24, 24), np.uint8))).all()
    return [b''], case, {}

def fuzz_checkpoint(d):
    import warnings
    import torch
    from cemiface.encoders.pretrained import FaceEncoder, embed, load_encoder
    import numpy as np
    state = {k: v.clone() for k, v in FaceEncoder.of('mobilefacenet', height=32, width=32).backbone.state_dict().items()}
    odd = [lambda v: v.to_sparse(), lambda v: torch.quantize_per_tensor(v, .1, 0, torch.quint8), lambda v: v.to('meta'),
        lambda v: torch.nested.nested_tensor([v.flatten(), v.flatten()[:1]]), lambda v: v.flatten()[:1].expand(v.shape),
        lambda v: v.flatten()[:1].expand(2**33), lambda v: v.flatten()[:1].expand(10**5, *v.shape),
        lambda v: torch.nn.Parameter(v), lambda v: v.cfloat().conj(), lambda v: 'text', lambda v: None, lambda v: {'w': v}]
    def case(raw, r):
        net, keys = dict(state), list(state)
        for _ in range(r.choice([0, 1, 1, 2])):
            k = r.choice(keys)
            net[k] = odd_tensor(r, state[k]) if r.random() < .5 else r.choice(odd)(torch.atleast_1d(state[k].float()))
        if r.random() < .2: del net[r.choice(keys)]
        net = {r.choice(['', '', 'module.', 'model.net.', 'student.'])+k: v for k, v in net.items()} if r.random() < .3 else net
        for _ in range(r.randrange(3)):
            key = r.choice(['state_dict', 'model', 'ema', 'net', 'model_state_dict', 0])
            moments = {'state': {0: torch.ones(3)}}
            net = r.choice([{key: net}, {key: net, 'epoch': 3}, [net, 3], {key: net, 'ema': dict(state)}, {key: net, 'optimizer': moments}])
        at = d/r.choice(['x.pth', 'x.ckpt'])
        with warnings.catch_warnings(action='ignore'): torch.save(net, at, _use_new_zipfile_serialization=r.random() < .8)
        if r.random() < .1:
            import zipfile
            if zipfile.is_zipfile(at):
                with zipfile.ZipFile(at) as z: parts = {o: z.read(o) for o in z.namelist()}
                with zipfile.ZipFile(at, 'w', zipfile.ZIP_DEFLATED) as z:
                    for o in parts: z.writestr(o, parts[o])
        assert np.isfinite(embed(load_encoder(at), np.zeros((2, 3, 24, 24), np.uint8))).all()
    return [b''], case, {}

FOLDERS = 'encoder_folder', 'checkpoint'                # a tenth of the cases: each writes megabytes
FORMATS = {k[5:]: v for k, v in list(globals().items()) if k.startswith('fuzz_')}

# Watching

class Hang(BaseException): "A case that does what it must not, or does not end"

def watch(d):
    "Raise on every event that a damaged file must not cause"
    writes, seen, libs = os.O_WRONLY|os.O_RDWR|os.O_CREAT|os.O_TRUNC, [], (str(d), '/dev/null')
    alarms = ('socket.connect', 'socket.getaddrinfo', 'socket.bind', 'subprocess.Popen', 'os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'ctypes.dlopen')
    changes = ('os.symlink', 'os.link', 'os.chmod', 'os.chown', 'os.mkdir', 'os.remove', 'os.rename', 'os.rmdir', 'os.truncate', 'shutil.rmtree')
    def hook(event, args):
        bad = event in alarms or event == 'open' and args[2] & writes and not isinstance(args[0], int) and not os.fsdecode(args[0]).startswith(libs)
        beneath = args and isinstance(args[-1], int) and args[-1] >= 0                 # inside of rmtree, which tells its folder itself
        if event in changes and not beneath: bad = any(isinstance(o, str|os.PathLike) and not str(o).startswith(libs) for o in args[:2])
        if bad: seen.append(f'{event} {args}'); raise Hang(seen[-1])
    sys.addaudithook(hook)
    return seen

def hunt(name, cases, folder):
    "All cases of a format; writes what came of them to folder/NAME/result.json"
    from cemiface.core import CemiFaceError
    d, done, bad = folder/name, dict(result=0, refused=0), []
    d.mkdir(); sys.dont_write_bytecode = True; os.environ['CEMIFACE_QUIET'] = '1'
    os.fsync = lambda fd: None                        # no power cuts here
    seeds, case, how = FORMATS[name](d)
    with contextlib.suppress(CemiFaceError): case(seeds[0], random.Random(0))      # imports what is imported late
    there = {o.name for o in d.iterdir()}
    def late(*_): raise Hang('no end after a minute of computing')
    signal.signal(signal.SIGPROF, late)
    resource.setrlimit(resource.RLIMIT_DATA, (3*2**30, 3*2**30))
    seen, before, start = watch(d), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with open(os.devnull, 'w') as null, contextlib.redirect_stderr(null):
        for k in range(cases):
            r = random.Random(f'{name} {k}')
            raw = mutate(r, r.choice(seeds), r.choice(seeds), **how)
            signal.setitimer(signal.ITIMER_PROF, 60)
            try: case(raw, r); done['result'] += 1
            except CemiFaceError as e:
                done['refused'] += 1
                if '\n' in str(e) or not any(o in str(e) for o in (str(d), 'x.toml', *recipe_words)): bad.append(f'case {k}: {str(e)[:300]!r} names no file')
            except BaseException as e: bad.append(f'case {k}: {type(e).__name__} {str(e)[:300]}')
            finally: signal.setitimer(signal.ITIMER_PROF, 0)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)/2**20
    strays = {o.name for o in d.iterdir() if not o.name.startswith('x.')}-there | {o.name for o in folder.iterdir()}-{name}
    if strays: bad.append(f'written outside: {strays}')
    facts = dict(cases=cases, **done, bad=bad[:20]+seen[:5], gigabytes=round(memory, 2), seconds=round(time.perf_counter()-start, 1))
    (d/'result.json').write_text(json.dumps(facts))

# A value out of range in a recipe is told by its key, not by the file
recipe_words = ('toy autoencoder denoiser identity_encoder schedule unet condition loss training inquiries sampling generation '
    'recogniser study faces seed name about').split()

@pytest.mark.parametrize('name', FORMATS)
def test_fuzz(name, tmp_path, request):
    cases = request.config.getoption('--fuzz')//(10 if name in FOLDERS else 1)
    in_process(hunt, name, cases, tmp_path)
    facts = json.loads((tmp_path/name/'result.json').read_text())
    print(name, facts)
    assert not facts['bad'] and facts['result']+facts['refused'] == cases
    assert facts['gigabytes'] < 1
