"""Sets of images as people have them: odd names, depths, suffixes, foreign files. Each image is used, or counted with a reason; nobody is merged
with somebody else; nothing but an image is packed. The inputs are drawn by hypothesis, which also finds the smallest one that fails."""
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import struct
import tarfile
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath
from unittest import mock

import pytest
from conftest import as_json, in_process
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cemiface.core import CemiFaceError
from cemiface.data.formats import IMAGE_SUFFIXES, LeftOut
from cemiface.data.packed import read_bin, record, scan, tar_shards
from cemiface.data.packing import pack, unpack

few = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

@contextlib.contextmanager
def folder():
    with tempfile.TemporaryDirectory() as d: yield Path(d)

def quiet(f, *args):
    "What f returns, or the CemiFaceError, and what it logs"
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try: result = f(*args)
        except CemiFaceError as e: result = e
    return result, err.getvalue()

FORMATS = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.jpe': 'JPEG', '.jfif': 'JPEG', '.png': 'PNG', '.webp': 'WEBP', '.bmp': 'BMP', '.tif': 'TIFF',
    '.tiff': 'TIFF', '.gif': 'GIF', '.ppm': 'PPM', '.pgm': 'PPM', '.pbm': 'PPM', '.pnm': 'PPM'}

def picture(k, suffix='.png'):
    "A small encoded image; another one for each k"
    out = io.BytesIO()
    mode, color = ('L', k%256) if suffix == '.pgm' else ('1', k%2) if suffix == '.pbm' else ('RGB', (k%256, k//256, 77))
    Image.new(mode, (9, 8), color).save(out, FORMATS.get(suffix.lower(), 'PNG'))
    return out.getvalue()

def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

# Names as people give them: dots, blanks, accents, brackets, other scripts; none is hidden, or too long

letters = st.sampled_from([*'abcxyzAB0129', '.', ' ', '-', '_', '[', ']', '*', '{', '%', 'é', 'e\u0301', '李', '\'', '"', '&', '#'])
words = st.lists(letters, min_size=1, max_size=8).map(''.join).filter(lambda o: not o.startswith('.') and o.strip(' .'))
suffixes = st.sampled_from(IMAGE_SUFFIXES).flatmap(lambda o: st.sampled_from([o, o.upper()]))
kinds = st.sampled_from(['image']*6+['text', 'pipe', 'dead link', 'link', 'link to text', 'heic', 'no suffix', 'no image'])
trees = st.lists(st.tuples(st.lists(words, max_size=3), words, suffixes, kinds), min_size=1, max_size=14)

def write_tree(root, tree):
    "Write it; {path: its bytes} of the images that can be read, and the number of images in all"
    written, total = {}, 0
    (root/'outside').mkdir(parents=True)
    put(root/'outside'/'secret.txt', b'a private text')
    put(root/'outside'/'picture', picture(9999))
    for k, (folders, stem, suffix, kind) in enumerate(tree):
        name = stem+{'heic': '.heic', 'no suffix': '', 'no image': '.txt'}.get(kind, suffix)
        path = root.joinpath('in', *folders, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(path): continue
        except (FileExistsError, NotADirectoryError): continue                     # a file of that name stands there
        content = dict(text=b'a private text', heic=b'a photo of a telephone').get(kind, picture(k, suffix.lower()))
        if kind == 'pipe': os.mkfifo(path)
        elif kind == 'dead link': path.symlink_to('nowhere')
        elif kind == 'link': path.symlink_to(root/'outside'/'picture'); content = picture(9999)
        elif kind == 'link to text': path.symlink_to(root/'outside'/'secret.txt')
        elif kind == 'no image': path.write_bytes(b'notes')
        else: path.write_bytes(content)
        total += kind != 'no image'
        if kind in ('image', 'link'): written[PurePosixPath(*folders, name).as_posix()] = content
        if kind == 'no suffix' and Path(name).suffix.lower() in IMAGE_SUFFIXES: written[PurePosixPath(*folders, name).as_posix()] = content
    return written, total

@few
@given(trees)
@example([(['p0'], '1', '.jpg', 'image'), (['p2', 's1'], '1', '.jpg', 'image'), (['p3'], '1', '.gif', 'image'), (['p4'], '1', '.jpg', 'heic')])
@example([(['p0'], 's', '.png', 'link to text'), (['p0'], 'x', '.png', 'pipe'), (['p1'], 'x', '.png', 'image')])
def test_a_folder_is_used_or_accounted_for(tree):
    with folder() as d:
        written, total = write_tree(d, tree)
        (d/'in').mkdir(exist_ok=True)
        account = LeftOut()
        entries, _ = quiet(scan, d/'in', account)
        if isinstance(entries, CemiFaceError):
            assert not any(o.count('/') < 2 for o in written)                 # nothing in IDENTITY/FILE, and nothing flat
            return
        assert len(entries)+len(account) == total
        labelled = any(o.identity for o in entries)
        for o in entries: assert o.name.count('/') == labelled and (o.identity or '') == o.name.rpartition('/')[0]
        good = {k for k in written if k.count('/') == labelled}
        assert good <= {o.name for o in entries} and not good & {name for _, name in account}
        facts, _ = quiet(pack, d/'in', d/'out'/'x.tar')
        if isinstance(facts, CemiFaceError):
            assert not good
            return
        assert facts['images'] == len(good) and facts['images']+sum(facts.get('left_out', {}).values()) == total
        packed = (d/'out'/'x.tar').read_bytes()
        assert b'private' not in packed and b'telephone' not in packed
        dropped = d/'out'/'dropped.txt'
        assert len(dropped.read_text().splitlines() if dropped.exists() else []) == total-len(good)
        assert {o.name: (o.identity, o.read()) for o in scan(d/'out'/'x.tar')} == {k: (k.rpartition('/')[0] or None, written[k]) for k in good}

# Tars. A sample: person, stem, suffix; is there a label, a foreign JSON, a mask beside it?

samples = st.lists(st.tuples(st.integers(0, 4), words, st.sampled_from(IMAGE_SUFFIXES), st.booleans()), min_size=1, max_size=10,
    unique_by=lambda o: (o[0], o[1]))

def clean(samples):
    "None extends the name of another one of the same person, for then it would be an extra"
    return [o for o in samples if not any(p[0] == o[0] and o[1].startswith(p[1]+'.') for p in samples)]

def tar_of(path, files):
    with tarfile.open(path, 'w') as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            if content is None: member.type, member.linkname = tarfile.SYMTYPE, '/etc/passwd'
            else: member.size = len(content)
            tar.addfile(member, io.BytesIO(content or b''))
    return path

def used_of(entries): return Counter((o.identity, o.read()) for o in entries)

@few
@given(samples, st.sampled_from(['cls', 'folder']), st.booleans(), st.randoms(use_true_random=False), st.integers(1, 3))
@example([(0, '22.00', '.jpg', True), (0, '22.01', '.jpg', False), (1, 'Mr. Person 1', '.jpg', True)], 'cls', True, mock.Mock(shuffle=lambda o: o.reverse()), 1)
def test_a_tar_is_used_or_accounted_for(drawn, labels, foreign, random, shards):
    drawn, files, expected, images = clean(drawn), [], Counter(), 0
    for k, (who, stem, suffix, mask) in enumerate(drawn):
        base, content = f'person {who}/{stem}', picture(k, suffix)
        sample = [(base+suffix, content)]
        if mask: sample.append((f'{base}.mask.png', picture(500+k)))
        if labels == 'cls': sample.append((f'{base}.cls', str(who).encode()))
        if foreign: sample.append((f'{base}.json', json.dumps(dict(file=f'/raw/{k}.jpg', format_version='2', identity='x')).encode()))
        images += 1+mask
        expected[f'{who:06d}' if labels == 'cls' else f'person {who}', content] += 1
        random.shuffle(sample)
        files.append(sample)
    random.shuffle(files)
    with folder() as d:
        for k in range(shards): tar_of(d/f'x-{k}.tar', itertools.chain(*files[k::shards], [('person 0/link.png', None)] if k == 0 else []))
        account = LeftOut()
        entries, _ = quiet(scan, d/'x-*.tar', account)
        assert used_of(entries) == expected
        assert len(account) == images-len(drawn)+1
        assert account.counts() == {k: v for k, v in {'an extra of another image': images-len(drawn), 'not a regular file': 1}.items() if v}
        assert len({o.name for o in entries}) == len(entries)
        facts, _ = quiet(unpack, d/'x-*.tar', d/'new')
        assert facts['images'] == len(drawn) and used_of(scan(d/'new', LeftOut())) == expected

paths = st.lists(st.tuples(st.lists(st.sampled_from(['p0', 'p1', 'p2', '0', '1']), max_size=4).map(tuple), st.sampled_from(['1', '2', 'x.y'])),
    min_size=1, max_size=8, unique=True)

def never_merged(entries, account, places):
    "Used and left out are all; with several levels each label is one folder of one and the same level"
    if isinstance(entries, CemiFaceError): return
    assert len(entries)+len(account) == len(places)
    of = {content: folders for folders, content in places}
    used = [(o.identity, of[o.read()]) for o in entries]
    assert len({len(folders) for _, folders in used}) == 1
    for (a, fa), (b, fb) in itertools.combinations(used, 2): assert (a == b) == (fa == fb) or a is None

@few
@given(paths, st.booleans())
@example([(('p0', '1'), '1'), (('p0', '2'), '1'), (('p1', '1'), '1'), (('p1', '2'), '1')], False)
def test_levels_of_a_tar_never_merge_people(drawn, dot):
    with folder() as d:
        files = [('/'.join([*(['.'] if dot else []), *folders, stem+'.png']), picture(k)) for k, (folders, stem) in enumerate(drawn)]
        tar_of(d/'x.tar', files)
        account = LeftOut()
        entries, _ = quiet(scan, d/'x.tar', account)
        never_merged(entries, account, [(folders, picture(k)) for k, (folders, _) in enumerate(drawn)])
        if {len(folders) for folders, _ in drawn} == {1}: assert {o.identity for o in entries} == {folders[-1] for folders, _ in drawn}

@few
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=12), st.integers(1, 4))
def test_one_name_in_two_shards(drawn, shards):
    "The same bytes under one name count once; other bytes are another image"
    with folder() as d:
        for k in range(shards): tar_of(d/f'{k}.tar', [(f'p{who}/same.png', picture(content)) for _, who, content in drawn[k::shards]])
        assume(len({who for _, who, _ in drawn}) > 1)
        account = LeftOut()
        entries, _ = quiet(scan, d/'*.tar', account)
        assert used_of(entries) == Counter({(f'p{who}', picture(content)): 1 for _, who, content in drawn})
        assert len(entries)+len(account) == len(drawn) and len({o.name for o in entries}) == len(entries)

# RecordIO

def image_record(label, key, image): return record(struct.pack('<IfQQ', 0, label, key, 0)+image)

separators = st.sampled_from(['/', '\\'])
roots = st.sampled_from(['', '/raid/faces/', 'D:\\faces\\', './', 'faces/'])

@few
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), words, st.booleans()), min_size=1, max_size=9), separators, roots,
    st.sampled_from(['', '_0', '.bin']), st.booleans(), st.booleans())
def test_a_rec_is_used_or_accounted_for(drawn, slash, top, end, levels, odd_list):
    "Labels decide; a list of any system adds names; what the index does not name is counted"
    with folder() as d:
        rec, idx, lst, at, total = b'', [], [], 0, len(drawn)
        for k, (who, video, stem, listed) in enumerate(drawn, 1):
            raw = image_record(who, k, picture(k))
            if listed or k == 1: idx.append(f'{k}\t{at}\n')
            place = slash.join([f'p{who}', *([f'v{video}'] if levels else []), f'{stem}.jpg{end}'])
            lst.append(f'{k}\t{who}\t{top}{place}\n')
            rec, at = rec+raw, at+len(raw)
        put(d/'x.rec', rec)
        put(d/'x.idx', ''.join(idx).encode())
        if odd_list: put(d/'x.lst', ''.join(lst).encode())
        account = LeftOut()
        entries, err = quiet(scan, d/'x.rec', account)
        used = [(who, picture(k)) for k, (who, _, _, listed) in enumerate(drawn, 1) if listed or k == 1]
        if isinstance(entries, CemiFaceError):
            assert not any(who for who, _ in used)           # every label is 0, and the folders do not say who it is
            return
        assert len(entries)+len(account) == total
        of = {o.read(): o.identity for o in entries}
        if any(who for who, _ in used):
            assert len(entries) == len(used)
            for (a, x), (b, y) in itertools.combinations(used, 2): assert (a == b) == (of[x] == of[y])
        facts, _ = quiet(unpack, d/'x.rec', d/'new')
        assert facts['images'] == len(entries)

@few
@given(st.lists(st.tuples(st.sampled_from(['p0', 'p1', 'p2']), st.sampled_from(['1', '2']), st.integers(0, 9)), min_size=1, max_size=9, unique=True))
def test_three_levels_in_the_list_of_a_rec(drawn):
    with folder() as d:
        rec = [image_record(0, k, picture(k)) for k in range(len(drawn))]
        put(d/'x.rec', b''.join(rec))
        put(d/'list.txt', ''.join(f'{k}\t{"/".join(map(str, o))}.jpg\t0\n' for k, o in enumerate(drawn)).encode())
        account = LeftOut()
        entries, _ = quiet(scan, d/'x.rec', account)
        if len(drawn) > 1 and not isinstance(entries, CemiFaceError):
            never_merged(entries, account, [(o[:2], picture(k)) for k, o in enumerate(drawn)])
            assert len({o[0] for o in drawn}) == 1             # else the choice is the user's

# Names that look alike, and disks that take them for one

@pytest.mark.parametrize('pair', [('Zoë', 'Zoe\u0308'), ('Ann', 'ann'), ('Bo', 'Bo '), ('Bo', 'Ｂｏ'), ('Al  B', 'Al B')])
def test_names_that_look_alike_are_two_people_and_that_is_said(tmp_path, pair):
    for k, who in enumerate(pair): put(tmp_path/'in'/who/f'{k}.png', picture(k))
    entries, err = quiet(scan, tmp_path/'in')
    assert {o.identity for o in entries} == set(pair) and all(ascii(o) in err for o in pair) and 'rename' in err
    for to in ('x.rec', 'x.tar'):
        assert quiet(pack, tmp_path/'in', tmp_path/to[2:]/to)[0]['identities'] == 2
        assert 'count as different people' in quiet(scan, tmp_path/to[2:]/to)[1]
    make = os.mkdir
    def folding(path, *args, **kw):
        "The disk of another system: the second name leads to the first folder"
        same = lambda o: unicodedata.normalize('NFKC', o).casefold().split()
        beside = [o for o in Path(path).parent.iterdir() if o.name != Path(path).name and same(o.name) == same(Path(path).name)]
        if beside: os.symlink(beside[0].name, path)
        make(path, *args, **kw)
    with mock.patch('os.mkdir', folding): refusal, _ = quiet(unpack, tmp_path/'rec'/'x.rec', tmp_path/'new')
    assert 'which this disk takes for one name' in str(refusal) and not (tmp_path/'new').exists()
    assert quiet(unpack, tmp_path/'rec'/'x.rec', tmp_path/'new')[0]['identities'] == 2

@few
@given(st.lists(letters.filter(lambda o: o not in '/*{'), min_size=1, max_size=10).map(''.join).filter(lambda o: not o.startswith('.')), st.integers(1, 4))
def test_only_the_star_of_a_pattern_is_a_pattern(name, n):
    with folder() as d:
        for k in range(n): put(d/name/f'x-{k}.tar', b'')
        put(d/'other'/'x-9.tar', b'')
        assert tar_shards(d/name/'x-*.tar') == [d/name/f'x-{k}.tar' for k in range(n)]
        assert tar_shards(d/name/f'x-{{0..{n-1}}}.tar') == [d/name/f'x-{k}.tar' for k in range(n)]

# Sentences

def test_what_cannot_be_opened_is_named(tmp_path):
    put(tmp_path/'in'/'p0'/'1.png', picture(1))
    put(tmp_path/'in'/'p1'/'1.png', picture(2))
    pack(tmp_path/'in', tmp_path/'one'/'a.rec')
    assert 'choose another folder' in str(quiet(pack, tmp_path/'in', tmp_path/'one'/'b.rec')[0])
    shutil.copytree(tmp_path/'one', tmp_path/'two')
    for o in ('rec', 'idx', 'lst'): shutil.copy(tmp_path/'two'/f'a.{o}', tmp_path/'two'/f'b.{o}')
    assert 'holds several sets (a.rec, b.rec)' in str(quiet(scan, tmp_path/'two')[0])
    for o in ('x.tar', 'x.rec', 'x.bin'): os.mkfifo(tmp_path/o)
    assert 'no regular file' in str(quiet(read_bin, tmp_path/'x.bin')[0])
    for name, words in {'x.tar': 'no regular file', 'x.rec': 'no regular file', 'x.tar.gz': 'compressed', 'x.tgz': 'compressed', 'x.zip': 'compressed',
        'one/a.lst': 'a set of faces is a folder, a .rec or tars', 'one/property': 'a set of faces is'}.items():
        assert words in str(quiet(scan, tmp_path/name)[0]), name
    put(tmp_path/'z.tar', b'\x1f\x8b\x08'+bytes(2000))
    assert 'is compressed' in str(quiet(scan, tmp_path/'z.tar')[0])

def test_images_beside_a_packed_set(tmp_path):
    for k in range(4): put(tmp_path/'in'/f'p{k%2}'/f'{k}.png', picture(k))
    pack(tmp_path/'in', tmp_path/'in'/'set.tar')
    entries, err = quiet(scan, tmp_path/'in')
    assert len(entries) == 4 and 'set.tar is left aside' in err
    shutil.move(tmp_path/'in'/'p0', tmp_path/'in'/'deep'/'p0'); shutil.rmtree(tmp_path/'in'/'p1')
    entries, err = quiet(scan, tmp_path/'in')
    assert len(entries) == 4 and '2 beside a packed set' in err

# Commands: names that are not UTF-8 or very long, huge photos; one thing that is wrong does not stop the rest

def test_align_and_pack_go_on(cemiface, tmp_path):
    latin = os.fsdecode(b'Zo\xeb.png')
    places = [(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)]
    face = Image.radial_gradient('L').resize((112, 112)).convert('RGB')
    names = ['1.png', latin, 'n'*248+'.png', 'm'*249+'.jpg', 'm'*249+'.png', 'b'*60+'.gif']
    for name in names:
        (tmp_path/'in'/'p0').mkdir(parents=True, exist_ok=True)
        face.save(tmp_path/'in'/'p0'/name)
    big = Image.new('RGB', (8000, 6000)); big.paste(face.resize((1120, 1120)), (5000, 3000)); big.save(tmp_path/'in'/'p0'/'big.jpg')
    Image.new('1', (9000, 9000)).save(tmp_path/'in'/'p0'/'bomb.png')
    numbers = ' '.join(f'{v}' for o in places for v in o)
    scaled = ' '.join(f'{(v+.5)*10-.5+shift}' for x, y in places for v, shift in ((x, 5000), (y, 3000)))
    marks = [f'p0/{o} {numbers}' for o in names if o != latin]+[f'p0/big.jpg {scaled}']
    (tmp_path/'marks.txt').write_text('\n'.join(marks))
    r = cemiface('align', '--from', 'in', '--to', 'faces', '--landmarks', 'marks.txt', '--json')
    assert r.code == 0, r.err
    facts = as_json(r.out)
    assert (facts['images'], facts['aligned']) == (8, 4)
    assert facts['dropped'] == {'a name that is too long': 2, 'no face': 1, 'too many pixels': 1}
    assert 'no face\tp0/Zo\\udceb.png\n' in (tmp_path/'faces'/'dropped.txt').read_text()
    made, drawn = (Image.open(tmp_path/o).convert('L').tobytes() for o in ('faces/p0/big.png', 'in/p0/1.png'))
    assert sum(abs(a-b) for a, b in zip(made, drawn))/len(made) < 4
    r = cemiface('pack', '--from', 'in', '--to', 'out/x.rec', '--json')
    assert r.code == 0 and as_json(r.out)['left_out'] == {'a name that is not UTF-8': 1, 'too many pixels': 2}, r
    assert re.search(r'left out: 3 \(.*\); used: 5; of in\n', r.err)

# Memory: a small file may claim to be a large image. None makes a process large

def headers():
    "Small files that claim to be 30,000 pixels wide and high, or more"
    n = 30000
    yield b'\x89PNG\r\n\x1a\n'+struct.pack('>I4sIIBBBBBI', 13, b'IHDR', n, n, 16, 6, 0, 0, 0, 0)
    yield b'P6 %d %d 255 '%(n, n)
    yield b'GIF89a'+struct.pack('<HHBBB', n, n, 0x70, 0, 0)+b'\x2c'+struct.pack('<HHHHB', 0, 0, n, n, 0)+b'\x08\x00;'
    yield b'BM'+struct.pack('<IIIIiiHHIIIIII', 100, 0, 54, 40, n, n, 1, 24, 0, 0, 0, 0, 0, 0)
    yield b'RIFF'+struct.pack('<I', 22)+b'WEBPVP8X'+struct.pack('<I', 10)+b'\x12\0\0\0'+struct.pack('<I', n-1)[:3]+struct.pack('<I', n-1)[:3]
    for size in (5792, 16000):
        for kind in ({'format': 'PNG'}, {'format': 'TIFF', 'compression': 'tiff_adobe_deflate'}, {'format': 'GIF'}):
            out = io.BytesIO(); Image.new('1' if kind['format'] != 'GIF' else 'L', (size, size)).save(out, **kind)
            yield out.getvalue()

def small_memory(d):
    import resource
    from cemiface.data.faces import FaceSet
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_DATA, (3*2**30, 3*2**30))
    for source in ('in', 'x.tar'):
        faces = FaceSet.open(d/source, 16, max_bad=1)
        assert faces.identities == 2 and {'good.png'} <= {PurePosixPath(o).name for o in faces.files}
    pack(d/'in', d/'out'/'x.tar')
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)/2**20 < 1.2

def test_small_files_need_little_memory(tmp_path):
    files = [('p0/good.png', picture(1)), ('p1/good.png', picture(2)), *((f'p{k%2}/{k}.png', o) for k, o in enumerate(headers()))]
    for name, content in files: put(tmp_path/'in'/name, content)
    tar_of(tmp_path/'x.tar', files)
    in_process(small_memory, tmp_path)
