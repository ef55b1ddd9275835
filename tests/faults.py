"""Faults put into copies of a set of faces, and the table of what `cemiface check` finds of them.

`python tests/faults.py ENCODER SET MEMORY.npz [FAULT...]` prints the table: each fault in 5, 30 and 100% of the files of SET. MEMORY
keeps the embeddings."""
import hashlib
import io
import random
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

def encoded(im, kind='png', **options):
    "An image as the bytes of a file"
    file = io.BytesIO()
    im.save(file, kind, **options)
    return file.getvalue()

def moved(im, turn=0, zoom=1., right=0., down=0.):
    "Turned by degrees, enlarged, shifted by fractions of the side; what lies outside repeats the edge"
    side = im.width
    pad = side//2
    wide = Image.fromarray(np.pad(np.asarray(im), ((pad, pad), (pad, pad), (0, 0)), 'edge'))
    a, b = np.cos(np.deg2rad(turn))/zoom, np.sin(np.deg2rad(turn))/zoom
    x, y = side/2*(1+2*right), side/2*(1+2*down)
    matrix = a, b, side/2+pad-a*x-b*y, -b, a, side/2+pad+b*x-a*y
    return wide.transform(im.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)

# What happens to a picture; each takes its own random numbers

def turned(im, rng): return encoded(im.transpose(Image.Transpose(rng.choice([2, 3, 4]))))

def unaligned(im, rng):
    "By at least a seventh of the side, a quarter in scale, or 20 degrees"
    kind, sign = rng.randrange(3), rng.choice([-1, 1])
    if kind == 0: return encoded(moved(im, turn=sign*rng.uniform(20, 40), zoom=rng.uniform(.9, 1.1)))
    if kind == 1: return encoded(moved(im, zoom=rng.choice([rng.uniform(.55, .75), rng.uniform(1.3, 1.6)])))
    return encoded(moved(im, right=sign*rng.uniform(.14, .25), down=rng.choice([-1, 1])*rng.uniform(.05, .2)))

def bgr(im, rng): return encoded(Image.fromarray(np.asarray(im)[..., ::-1]))

def other_size(im, rng):
    side = round(im.width*rng.choice([.75, .9, 1.2, 1.5]))
    return encoded(im.resize((side, side), Image.Resampling.BICUBIC))

def unreadable(im, rng):
    whole = encoded(im)
    return rng.choice([whole[:len(whole)//3], b'<html>not found</html>', b''])

def blurred(im, rng): return encoded(im.filter(ImageFilter.GaussianBlur(im.width/14)))

PICTURES = dict(turned=turned, unaligned=unaligned, bgr=bgr, sizes=other_size, unreadable=unreadable, blurred=blurred)

# What happens to labels

def people_of(folder):
    people = defaultdict(list)
    for path in sorted(folder.glob('*/*')): people[path.parent.name].append(path)
    return people

def mixed_labels(folder, part, rng):
    "Files get the label of somebody else"
    files, people = sorted(folder.glob('*/*')), sorted(o.name for o in folder.iterdir())
    chosen = rng.sample(files, round(part*len(files)))
    for path in chosen:
        to = rng.choice([o for o in people if o != path.parent.name])
        path.rename(folder/to/f'from-{path.parent.name}-{path.name}')
    return len(chosen)

def split_labels(folder, part, rng):
    "Some of the people with several photos get two labels"
    able = [who for who, files in people_of(folder).items() if len(files) > 1]
    chosen = rng.sample(able, round(part*len(able)))
    for who in chosen:
        files = sorted((folder/who).iterdir())
        (folder/f'{who}-2').mkdir()
        for path in files[::2]: path.rename(folder/f'{who}-2'/path.name)
    return len(chosen)

def duplicates(folder, part, rng):
    "Files become copies of somebody else's photo: compressed anew, cropped, some of them mirrored; of all, every second one"
    files = sorted(folder.glob('*/*'))
    sources, targets = files[::2], files[1::2]
    chosen = rng.sample(targets, min(round(part*len(files)), len(targets)))
    for path in chosen:
        im = Image.open(rng.choice([o for o in rng.sample(sources, 9) if o.parent != path.parent])).convert('RGB')
        if rng.random() < .5: im = im.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        side = im.width
        im = im.crop((1, 1, side-1, side-1)).resize((side, side), Image.Resampling.BICUBIC)
        path.unlink()
        path.write_bytes(encoded(im, 'jpeg', quality=75))
    return len(chosen)

LABELS = dict(mixed=mixed_labels, split=split_labels, duplicates=duplicates)

def spoil(source, folder, fault, part):
    "A copy of a set with one fault in a part of its files; returns the names of the changed files, or their number"
    shutil.copytree(source, folder)
    rng = random.Random(f'{fault} {part}')
    if fault == 'none': return []
    if fault in LABELS: return LABELS[fault](folder, part, rng)
    files = sorted(folder.glob('*/*'))
    chosen = random.Random('files').sample(files, round(part*len(files)))
    for path in chosen:
        im = Image.open(path).convert('RGB')
        path.unlink()
        path.write_bytes(PICTURES[fault](im, random.Random(path.name)))   # the same for every part
    return [o.relative_to(folder).as_posix() for o in chosen]

EXPECTED = dict(turned='turned faces', unaligned='badly cut faces', bgr='colours', sizes='sizes', unreadable='unreadable files', blurred='told apart',
                mixed='labels', split='people', duplicates='copies')

class Remembered:
    "Embeddings by the pixels, so that what many copies share is computed once, and is kept in a file"
    def __init__(self, embed, path):
        self.embed, self.path, self.known = embed, Path(path), {}
        if self.path.exists(): self.known = dict(np.load(self.path))

    def __call__(self, encoder, images, device=None):
        keys = [hashlib.sha256(o.tobytes()).hexdigest() for o in images]
        new = {k: i for i, k in enumerate(keys) if k not in self.known}
        rows = list(new.values())
        for at in range(0, len(rows), 96):
            part = rows[at:at+96]
            self.known |= {keys[i]: e for i, e in zip(part, self.embed(encoder, np.stack([images[i] for i in part]), device=device))}
            np.savez(self.path, **self.known)
        return np.stack([self.known[k] for k in keys]) if keys else np.zeros((0, encoder.config.dim), np.float32)

def main(encoder, source, memory, *faults):
    "A line for each fault and part: files changed, what was found, and of the files named how many were changed"
    from cemiface.analysis import check
    from cemiface.encoders.pretrained import load_encoder
    check.embed, judge = Remembered(check.embed, memory), load_encoder(encoder)
    for fault in faults or ['none', *EXPECTED]:
        for part in [0] if fault == 'none' else [.05, .3, 1]:
            with tempfile.TemporaryDirectory() as home:
                changed = spoil(Path(source), Path(home)/'set', fault, part)
                findings = check.check_set(Path(home)/'set', judge)
            named = {name for o in findings if o.check == EXPECTED.get(fault) for name in o.files}
            right = f'{len(named & set(changed))} right' if isinstance(changed, list) else f'{len(named)}'
            print(f'{fault:10} {part:4.0%} changed {changed if isinstance(changed, int) else len(changed):4} named {len(named):4} ({right});',
                  *(f'{o.check} {o.words.split(" ")[0]}{"!" if o.state == "FOUND" else ""}' for o in findings), flush=True)

if __name__ == '__main__': main(*sys.argv[1:])
