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
from cemiface.data.align import align_folder, ListedFaces
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

# Names as people give them: dots, blanks, accents, brackets, other scripts; some are hidden, none is too long

letters = st.sampled_from([*'abcxyzAB0129', '.', ' ', '-', '_', '[', ']', '*', '{', '%', 'é', 'e\u0301', '李', '\'', '"', '&', '#'])
words = st.lists(letters, min_size=1, max_size=8).map(''.join).filter(lambda o: not o.startswith('.') and o.strip(' .'))
any_words = st.tuples(st.sampled_from(['']*9+['.', '._']), words).map(''.join)
suffixes = st.sampled_from(IMAGE_SUFFIXES).flatmap(lambda o: st.sampled_from([o, o.upper()]))
kinds = st.sampled_from(['image']*6+['text', 'pipe', 'dead link', 'link', 'link to text', 'heic', 'no suffix', 'no image'])
trees = st.lists(st.tuples(st.lists(any_words, max_size=3), any_words, suffixes, kinds), min_size=1, max_size=14)

def hidden(path): return any(o.startswith('.') for o in path.split('/'))

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
    return {k: v for k, v in written.items() if not hidden(k)}, total

@few
@given(trees)
@example([(['p0'], '1', '.jpg', 'image'), (['p2', 's1'], '1', '.jpg', 'image'), (['p3'], '1', '.gif', 'image'), (['p4'], '1', '.jpg', 'heic')])
@example([(['p0'], '.1', '.jpg', 'image'), (['.p1'], '1', '.jpg', 'image'), (['p1'], '1', '.jpg', 'image'), (['p2', '.s'], '1', '.heic', 'heic')])
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

def damaged(raw, how, at, bit):
    "A tar that is damaged outside of its images, or cut off"
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar: starts = [o.offset for o in tar]
    start, blocks = starts[at%len(starts)], len(raw)//512
    if how == 'flip': return raw[:start+bit//8]+bytes([raw[start+bit//8] ^ 1 << bit%8])+raw[start+bit//8+1:]
    after = raw[start+512*(1+bit%3):]
    if how == 'zeros':
        assume(any(after))                                   # else it is a shorter tar
        return raw[:start]+bytes(512*(1+bit%3))+after
    if how == 'cut and filled': return raw[:start]+bytes(2**15+bit)
    if how == 'hole': return raw[:start+512]+raw[start+1024:]
    if how == 'cut between members': return raw[:start]
    if how == 'cut': return raw[:512*(at%blocks)+bit%512]
    return raw+(raw if how == 'twice' else bytes(512*(at%9))+b'more')

@few
@given(st.lists(st.sampled_from(['p0/%d.png', 'p1/%d.png', 'p2/%d.txt']), min_size=2, max_size=9),
    st.sampled_from(['flip', 'zeros', 'hole', 'cut between members', 'cut and filled', 'cut', 'twice', 'more']), st.integers(0, 99), st.integers(0, 4095))
@example(['p0/%d.png']*9, 'flip', 4, 1190)
@example(['p0/%d.png']*9, 'twice', 0, 0)
@example(['p0/%d.png']*9, 'cut between members', 4, 0)
@example(['p0/%d.png']*9, 'cut and filled', 4, 0)
def test_no_member_of_a_damaged_tar_is_lost(names, how, at, bit):
    "It is refused with the byte, or everything is there, or one line says that the end is missing"
    files = [(o%k, b'a text' if o.endswith('txt') else picture(k)) for k, o in enumerate(names)]
    images = sum(o.endswith('png') for o, _ in files)
    assume(images)
    with folder() as d:
        raw = damaged(tar_of(d/'x.tar', files).read_bytes(), how, at, bit)
        put(d/'x.tar', raw or b'0')
        account = LeftOut()
        entries, err = quiet(scan, d/'x.tar', account)
        if isinstance(entries, CemiFaceError): assert 'x.tar' in str(entries) and '\n' not in str(entries)
        else: assert len(entries)+len(account) == images or how.startswith('cut') and 'may be cut off' in err

@few
@given(st.sampled_from(['', ' ', '\n']), st.integers(0, 40), st.sampled_from(['7', '0', '', '-1', '1 7', 'x']), st.sampled_from(['', ' '*30, ' '*40+'7', '\n']))
def test_a_label_is_read_whole_or_refused(before, zeros, number, after):
    text = before+'0'*zeros+number+after
    with folder() as d:
        tar_of(d/'x.tar', [('1.png', picture(1)), ('1.cls', text.encode())])
        entries, _ = quiet(scan, d/'x.tar')
        if isinstance(entries, CemiFaceError): assert '1.cls is no number' in str(entries) and (len(text) > 18 or not text.strip().isdigit())
        else: assert entries[0].identity == f'{int(text):06d}'

@few
@given(st.one_of(st.integers(-3, 9), st.sampled_from(['1', '2', None, 1.5])))
def test_a_later_version_is_refused(version):
    with folder() as d:
        facts = json.dumps(dict(format_version=version, file='Al/1.png', identity='Al')).encode()
        entries, _ = quiet(scan, tar_of(d/'x.tar', [('7.png', picture(1)), ('7.json', facts)]))
        if isinstance(entries, CemiFaceError): assert version > 1 and 'update cemiface' in str(entries) or version < 1 and 'above 0' in str(entries)
        else: assert [o.identity for o in entries] == ['Al' if version == 1 else None]

@few
@given(st.sampled_from(['Al/1.png', 'Bo/1.png', '1.png']), st.sampled_from(['Al', 'Bo', '', None, 7, ['Al'], 'absent']))
def test_a_json_that_names_two_people_is_refused(file, who):
    facts = dict(format_version=1, file=file) | (dict(identity=who) if who != 'absent' else {})
    with folder() as d:
        entries, _ = quiet(scan, tar_of(d/'x.tar', [('7.png', picture(1)), ('7.json', json.dumps(facts).encode())]))
        own = file.rpartition('/')[0] or None
        if who in (own, 'absent'): assert [o.identity for o in entries] == [own]
        else: assert 'name different people' in str(entries)

# Inquiries: each is copied, or counted with a reason

@few
@given(st.dictionaries(st.integers(0, 4), st.integers(1, 3), min_size=1), st.dictionaries(st.integers(0, 6), st.integers(1, 3), min_size=1), st.integers(1, 3))
@example({0: 2, 1: 2}, {0: 1, 1: 2}, 3)
def test_every_inquiry_is_copied_or_accounted_for(faces, inquiries, copies):
    with folder() as d:
        for at, counts in (('set', faces), ('set.inquiries', inquiries)):
            for who, n in counts.items():
                for k in range(n): put(d/at/f'{who:06d}'/f'{k:03d}.png', picture(100*who+10*k+(at == 'set')))
        facts, err = quiet(pack, d/'set', d/'x.tar', None, copies)
        if not faces.keys() <= inquiries.keys(): assert 'no inquiry of' in str(facts) and not (d/'x.tar').exists(); return
        own, others = (sum(n for who, n in inquiries.items() if (who in faces) == of) for of in (True, False))
        left_out = {'an inquiry of nobody in the set': others} if others else {}
        assert facts['images'] == sum(faces.values())+copies*own and facts.get('left_out', {}) == left_out
        assert err.count('\n') == bool(others)
        found = Counter((o.identity, o.read()) for o in scan(d/'x.tar'))
        for who in faces:
            for k in range(inquiries[who]): assert found[f'{who:06d}', picture(100*who+10*k)] in (copies, 1)

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
        entries, err = quiet(scan, d/'x.tar', account)
        never_merged(entries, account, [(folders, picture(k)) for k, (folders, _) in enumerate(drawn)])
        used = [] if isinstance(entries, CemiFaceError) else [folders for k, (folders, _) in enumerate(drawn) if picture(k) in {o.read() for o in entries}]
        if any(len(o) > 1 for o in used): assert 'counts as a person' in err
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
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), any_words, st.booleans(), st.sampled_from(['']*9+['.'])), min_size=1, max_size=9),
    separators, roots, st.sampled_from(['', '_0', '.bin']), st.booleans(), st.booleans(), st.integers(0, 12))
@example([(1, 0, 'a', True, ''), (2, 0, '.b', True, ''), (3, 0, 'c', True, '.')], '/', '', '', False, True, 0)
def test_a_rec_is_used_or_accounted_for(drawn, slash, top, end, levels, odd_list, junk):
    "Labels decide; a list of any system adds names; what the index does not name is counted, and so is what is no image"
    with folder() as d:
        rec, idx, lst, at, total = b'', [], [], 0, len(drawn)
        contents = {k: b'junk'*(k%2) if k == junk else picture(k) for k in range(1, total+1)}
        for k, (who, video, stem, listed, dot) in enumerate(drawn, 1):
            raw = image_record(who, k, contents[k])
            if listed or k == 1: idx.append(f'{k}\t{at}\n')
            place = slash.join([f'{dot}p{who}', *([f'v{video}'] if levels else []), f'{stem}.jpg{end}'])
            lst.append(f'{k}\t{who}\t{top}{place}\n')
            rec, at = rec+raw, at+len(raw)
        put(d/'x.rec', rec)
        put(d/'x.idx', ''.join(idx).encode())
        if odd_list: put(d/'x.lst', ''.join(lst).encode())
        account = LeftOut()
        entries, err = quiet(scan, d/'x.rec', account)
        used = {k: who for k, (who, _, _, listed, _) in enumerate(drawn, 1) if listed or k == 1}
        if isinstance(entries, CemiFaceError):
            assert not any(used.values()) or odd_list        # every label is 0, and the folders do not say who it is; or all are hidden
            return
        assert len(entries)+len(account) == total
        whose = {o: next(who for k, who in used.items() if contents[k] == o.read()) for o in entries}
        if any(used.values()):
            assert len(entries)+account.counts().get('a hidden name', 0) == len(used)
            for a, b in itertools.combinations(entries, 2): assert (a.identity == b.identity) == (whose[a] == whose[b])
        assert not any(hidden(o.name) for o in entries)
        facts, _ = quiet(unpack, d/'x.rec', d/'new')
        if isinstance(facts, CemiFaceError):
            assert 'no image that can be used' in str(facts) and len(entries) == 1
            return
        assert facts['images']+sum(facts.get('left_out', {}).values()) == total
        assert facts['images'] == len((d/'new'/'metadata.jsonl').read_text().splitlines()) == len(scan(d/'new', LeftOut()))

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

@pytest.mark.parametrize('name', ['metadata.jsonl', 'Dropped.txt', 'manifest.jsonl', 'RUN.json'])
@pytest.mark.parametrize('to', ['x.rec', 'X.TAR', 'x-%03d.Tar', 'x.REC'])
def test_a_person_called_like_a_file_of_ours(tmp_path, name, to):
    for k, who in enumerate((name, 'Bo')): put(tmp_path/'in'/who/f'{k}.png', picture(k))
    assert quiet(pack, tmp_path/'in', tmp_path/'a'/'..'/'out'/to)[0]['identities'] == 2 and not (tmp_path/'a').exists()
    assert (tmp_path/'out'/to.replace('%03d', '000')).is_file()
    refusal, err = quiet(unpack, tmp_path/'out'/to.replace('%03d', '*'), tmp_path/'new')
    assert f'a person called {name}' in str(refusal) and '.cemiface' not in str(refusal)+err and not (tmp_path/'new').exists()

# Aligning again, after photos changed; one name written in two ways

photo_names = ['a.png', 'a.bmp', 'e\u0301.png', '\xe9.png', 'b.png']

def photo(k):
    out = io.BytesIO()
    Image.radial_gradient('L').resize((112+k, 112)).convert('RGB').save(out, 'BMP')
    return out.getvalue()

def marks_of(k): return ' '.join(f'{x+k} {y}' for x, y in [(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)])

def faces_in(out): return {o.name: o.read_bytes() for o in out.glob('*.png')}

@settings(few, max_examples=30)
@given(st.dictionaries(st.sampled_from(photo_names), st.integers(0, 5), min_size=1), st.lists(st.sampled_from(photo_names), min_size=1, unique=True),
    st.dictionaries(st.sampled_from(photo_names), st.one_of(st.none(), st.integers(0, 5)), max_size=2))
@example({'\xe9.png': 0, 'e\u0301.png': 1}, ['\xe9.png'], {})
@example({'a.png': 0}, ['a.png'], {'a.png': 3})
@example({'a.png': 0, 'b.png': 0}, ['a.png'], {'b.png': None})
@example({'a.png': 0}, ['a.png', 'a.bmp'], {'a.bmp': 1})
def test_a_face_is_of_its_photo_and_its_landmarks(photos, listed, changes):
    with folder() as d:
        for name, k in photos.items(): put(d/'in'/name, photo(k))
        (d/'marks.txt').write_text(''.join(f'{o} {marks_of(k)}\n' for k, o in enumerate(listed)), encoding='utf-8')
        def align(out): return quiet(lambda: align_folder(d/'in', d/out, ListedFaces(d/'marks.txt'), workers=1))
        facts, err = align('faces')
        form = Counter(unicodedata.normalize('NFC', o) for o in photos)
        if isinstance(facts, CemiFaceError): assert not set(listed) & set(photos)
        else:
            extra = [o for o in listed if o not in photos and form[unicodedata.normalize('NFC', o)] != 1]
            assert facts['aligned'] <= len({*photos} & {*listed})+sum(form[unicodedata.normalize('NFC', o)] == 1 for o in listed if o not in photos)
            assert not extra or 'are not here' in err
        for name, k in changes.items():
            (d/'in'/name).unlink(missing_ok=True)
            if k is not None: put(d/'in'/name, photo(k))
        again, _ = align('faces')
        new, _ = align('new')
        if not isinstance(again, CemiFaceError): assert again == new and faces_in(d/'faces') == faces_in(d/'new')
        elif not isinstance(new, CemiFaceError): assert 'holds another run, with photos' in str(again)
        if not changes: assert str(again) == str(facts)

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
