"""What only a GPU can show, in at most nine minutes, the most valuable first:

    python .ci/gpu.py OUT --photos TRAIN --unseen DEV --identity-encoder F --judge F --autoencoder F [--miniature]

1. generators in latents: the recipe `lfw`, and a wide network, each trained for a given time and then described by a
   table of similarity, variety and distance to photos of people it has not seen;
2. images per second of training and sampling, beside the straightforward way and the measured ceiling;
3. two processes on one GPU give the losses of one.

Each part is a process of its own, with the GPU to itself. It appends lines of JSON to OUT/PART.jsonl as soon as it knows
something, so that a limit of time loses only what has not been measured yet. How long a training may be is decided by
the time that its first steps take. `--miniature` rehearses all of it on a processor.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

START = time.monotonic()
MUON = ['training.optimiser=muon', 'training.lr=1.5e-3']
WIDE = ['transformer.width=768', 'transformer.depth=12', 'transformer.heads=12']
RECIPES = dict(                            # what differs from the recipe `lfw`
    lfw=MUON,
    matching=[*MUON, 'training.similarity_fraction=0.125', 'loss.lam=0.05'],
    wide=[*WIDE, *MUON, 'training.batch=256', 'training.lr=1e-3'])
SMALL = ['transformer.width=32', 'transformer.depth=1', 'transformer.heads=2', 'training.batch=16', 'training.warmup=0']
PARTS = 'encode@45:0,lfw@160:60,wide@370:150,bench@430:0,bench_compiled@490:0,processes@540:0'


def tell(part, **facts):
    "Append a line to the part's file, and print it"
    line = json.dumps(dict(part=part, at=round(time.monotonic()-START, 1), **facts))
    with (OUT/f'{part}.jsonl').open('a') as f: f.write(line+'\n')
    print(line, flush=True)


def parsed():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path)
    for name in ('photos', 'unseen', 'identity-encoder', 'judge', 'autoencoder'): p.add_argument(f'--{name}', required=True)
    p.add_argument('--miniature', action='store_true')
    p.add_argument('--part', help='one part only: encode, a name of RECIPES, bench, bench_compiled, or processes')
    p.add_argument('--parts', default=PARTS, help='PART@UNTIL:TRAINING, in turn: when a part must end, and how long it may train; '
                                                  'in seconds')
    p.add_argument('--training', type=float, default=60, help='seconds of training, of one part')
    p.add_argument('--set', action='append', default=[], help='a value of the recipe of every generator')
    return p.parse_args()


def recipe_of(args, name):
    from cemiface.recipe import changed, load_recipe
    return changed(load_recipe('lfw'), RECIPES[name]+(SMALL if args.miniature else [])+args.set)


def photos_of(args, folder):
    from cemiface.data.faces import FaceSet
    faces = FaceSet.open(folder, 112, cache=OUT/'cache'/f'{Path(folder).name}.npy')
    return faces.subset(range(0, len(faces), max(1, len(faces)//48))) if args.miniature else faces


def encode(args):
    "Latents and embeddings of the photos, which all generators share"
    from cemiface.encoders.pretrained import embed_set, load_encoder
    from cemiface.generator.autoencoder import encode_set, load_autoencoder
    from cemiface.runtime import default_device
    (OUT/'cache').mkdir(exist_ok=True)
    photos_of(args, args.unseen)
    photos, device, start = photos_of(args, args.photos), default_device(), time.monotonic()
    encode_set(load_autoencoder(args.autoencoder), photos, OUT/'cache', device)
    encoded = time.monotonic()
    embed_set(load_encoder(args.identity_encoder), photos, OUT/'cache', device)
    tell('encode', faces=len(photos), encode_seconds=encoded-start, embed_seconds=time.monotonic()-encoded)


# ---- one generator, and how good it is

def frechet(a, b):
    "Between the Gaussians of two sets of features, (n,d) each, of which those of the photos are computed once"
    import numpy as np
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(ca@cb).astype(complex)).real.sum()
    return float(np.square(a.mean(0)-b.mean(0)).sum() + np.trace(ca) + np.trace(cb) - 2*root)


class Table:
    "Facts about the faces that a generator draws of people whom it has not seen"
    def __init__(self, args, pipe, judge, unseen):
        import numpy as np
        from cemiface.encoders.backbones import unit
        from cemiface.encoders.pretrained import embed
        from cemiface.generator.sampling import draw_batch, for_sampling, SetRequest
        firsts = np.unique(unseen.labels, return_index=True)[1]
        self.images = unseen.images[firsts[::3]]                 # of every third person, by name
        self.embed = lambda encoder, x: unit(embed(encoder, x, device=pipe.device, batch=256))
        self.pipe, self.judge, self.draw, self.request = pipe, judge, draw_batch, SetRequest
        self.fast = lambda sampling: for_sampling(pipe, sampling)
        self.e_unseen, self.std = self.embed(judge, unseen.images), unseen.images.std()
        self.e_judge, self.e = self.embed(judge, self.images), embed(pipe.identity_encoder, self.images)

    def drawn(self, sampling, m=1., control='sphere', faces=2):
        "uint8 faces (faces*n,3,h,w), the first of each inquiry first, and their inquiries"
        import numpy as np
        n = len(self.images)
        who = [(i, k) for k in range(faces) for i in range(n)]
        request = self.pipe.resolve(self.request(m, control=control, sampling=replace(sampling, batch=len(who))))
        e = np.concatenate([self.e]*faces)
        return self.draw(self.fast(request.sampling), e, who, request)[0].numpy()

    def row(self, x, full=False):
        import numpy as np
        from cemiface.analysis.similarity import between_identity, rank1, similarity_to_inquiry, within_identity
        from cemiface.recognition.verification import bootstrap_interval
        n = len(self.images)
        who, f = np.arange(len(x))%n, self.embed(self.judge, x)
        own = similarity_to_inquiry(f, self.e_judge, who)
        e_own = similarity_to_inquiry(self.embed(self.pipe.identity_encoder, x), self.e, who)
        facts = dict(own=own.mean(), e_id=e_own.mean(), rank1=rank1(f, who, self.e_judge), within=within_identity(f, who),
            between=between_identity(f, who), frechet=frechet(f, self.e_unseen), std=x.std()/self.std)
        out = {k: round(float(v), 4) for k, v in facts.items()}
        if not full: return out
        pairs = (f[:n]*f[n:2*n]).sum(1)                           # the first two faces of each
        return out | dict(own_interval=bootstrap_interval(own, who, who), within_interval=bootstrap_interval(pairs, who[:n], who[:n]))


def fitted(args, recipe, photos, eid, autoencoder):
    "The recipe with as many epochs as fit the time, from the time of its first steps"
    from cemiface.generator.autoencoder import encode_set
    from cemiface.generator.training import train_denoiser
    from cemiface.recipe import changed
    latents, batch = encode_set(autoencoder, photos, OUT/'cache'), recipe.training.batch
    def seconds(steps):
        brief, start = changed(recipe, [f'training.epochs={steps*batch/len(photos)}', 'training.warmup=0']), time.monotonic()
        with tempfile.TemporaryDirectory() as d: train_denoiser(latents, eid, brief.parts, d, OUT/'cache')
        return time.monotonic()-start
    few, many = (1, 4) if args.miniature else (20, 80)
    seconds(few)                                                # the first one loads and allocates
    rate = batch*(many-few)/max(1e-3, -seconds(few)+seconds(many))
    return changed(recipe, [f'training.epochs={max(batch, rate*args.training)/len(photos)}']), rate


def generator(args, name):
    import numpy as np
    import torch
    from cemiface.encoders.pretrained import load_encoder
    from cemiface.generator.autoencoder import load_autoencoder
    from cemiface.generator.pipeline import train_generator
    from cemiface.plots import face_grid
    from cemiface.runtime import default_device, hardware
    device = default_device()
    photos, unseen = photos_of(args, args.photos), photos_of(args, args.unseen)
    eid, judge, autoencoder = load_encoder(args.identity_encoder), load_encoder(args.judge), load_autoencoder(args.autoencoder)
    recipe, rate = fitted(args, recipe_of(args, name), photos, eid, autoencoder)
    tell(name, hardware=hardware(), torch=torch.__version__, faces=len(photos), images_per_second=rate,
        epochs=recipe.training.epochs, sets=RECIPES[name]+args.set)

    start = time.monotonic()
    pipe = train_generator(photos, eid, recipe.parts, OUT/'generators'/name, autoencoder, cache=OUT/'cache').to(device)
    seconds, views = time.monotonic()-start, pipe.config.trained['views']
    log = [json.loads(line) for line in (OUT/'generators'/name/'training'/'log.jsonl').read_text().splitlines()]
    millions = sum(p.numel() for p in pipe.unet.parameters())/1e6
    tell(name, seconds=seconds, views=views, millions=millions, loss={o['step']: o['mse'] for o in log[::max(1, len(log)//12)]},
        last=log[-1])

    table, base = Table(args, pipe, judge.to(device), unseen), recipe.sampling
    tell(name, photos=table.row(np.concatenate([table.images]*2)))
    def row(full=False, m=1., control='sphere', **changes):
        faces = table.drawn(replace(base, **changes), m, control)
        tell(name, m=m, control=control, **changes, **table.row(faces, full))
        return faces[:12]
    pictures, some = [table.images[:12]], slice(0, 1 if args.miniature else None)
    for g in (1., 1.5, 2., 2.5, 3., 4.)[some]:
        pictures.append(row(guidance=g, full=True))
        face_grid(np.concatenate(pictures), len(pictures[0])).save(OUT/f'{name}.jpg', quality=85)
    for low, high in ((0, .8), (.2, 1), (.1, .8), (.2, .9), (.3, .8))[some]:
        for g in (3., 4.)[some]: row(guidance=g, guidance_low=float(low), guidance_high=float(high))
    for steps in (2, 4, 8, 50)[some]:
        for g in (1., 2.)[some]: row(guidance=g, steps=steps)
    for g in (2., 3.)[some]:
        for m in (.9, .7, .5, 0.)[some]: row(m=m, guidance=g)


# ---- speed

def bench_parts(args, what):
    from cemiface.experiment.bench import bench
    from cemiface.generator.autoencoder import load_autoencoder
    from cemiface.recipe import changed, load_recipe
    autoencoder = load_autoencoder(args.autoencoder)
    latent = [*WIDE, 'training.precision=bf16',
              'sampling.precision=bf16', 'training.batch=512', 'sampling.batch=512', 'sampling.steps=4', 'sampling.guidance=1.0']
    tiny = ['faces.size=32', 'training.batch=4', 'sampling.batch=4', 'recogniser.batch=4', 'sampling.steps=2', 'training.precision=no',
            'sampling.precision=no', 'recogniser.precision=fp32']
    if args.miniature: latent = SMALL+tiny[1:-1]
    pixels = tiny+['unet.channels=[32,32]', 'unet.groups=8', 'unet.head_width=8', 'recogniser.arch=mobilefacenet'] if args.miniature else []
    compiled = what != 'bench'
    either = [f'{o}.compile={str(compiled).lower()}' for o in ('training', 'sampling', 'recogniser')]
    def rows(name, sets, work, with_=None):
        try: found = bench([changed(load_recipe(name), sets+either)], [work], not compiled, None, autoencoder=with_)
        except Exception as e: tell(what, recipe=name, work=work, failed=f'{type(e).__name__}: {e}'[:300])
        else: tell(what, **found['rows'][0], ceilings=found['ceilings_tflops'])
    generate = latent+([] if args.miniature else ['sampling.batch=256'])
    rows('paper', pixels, 'train')
    rows('lfw', latent, 'train', autoencoder)
    rows('paper', pixels, 'sample')
    rows('lfw', latent, 'sample', autoencoder)
    rows('paper', pixels, 'recogniser')
    rows('lfw', generate, 'generate', autoencoder)


# ---- two processes

def losses(args, name, ranks):
    "Train for some steps with so many processes; the losses are in the log"
    sets = ['training.epochs=3' if args.miniature else 'training.epochs=4', 'training.compile=false', 'transformer.depth=2']
    common = dict(os.environ, MASTER_ADDR='127.0.0.1', MASTER_PORT='29517', WORLD_SIZE=str(ranks))
    command = [sys.executable, __file__, *sys.argv[1:], '--part', f'one_of_{name}', *(f'--set={o}' for o in sets)]
    running = []
    for rank in range(ranks):
        env = common | dict(RANK=str(rank), LOCAL_RANK='0')    # the same GPU if ranks > 1 else dict(os.environ)
        running.append(subprocess.Popen(command, env=env))
    return max(p.wait() for p in running)


def one_of(args, name):
    import torch
    from cemiface.encoders.pretrained import load_encoder
    from cemiface.generator.autoencoder import encode_set, load_autoencoder
    from cemiface.generator.training import train_denoiser
    recipe = recipe_of(args, 'lfw')
    if 'RANK' in os.environ: torch.distributed.init_process_group('gloo')      # NCCL wants a GPU for each process
    photos = photos_of(args, args.photos)
    latents = encode_set(load_autoencoder(args.autoencoder), photos, OUT/'cache')
    train_denoiser(latents, load_encoder(args.identity_encoder), recipe.parts, OUT/'processes'/name, cache=OUT/'cache')


def processes(args):
    logs = {}
    for name, ranks in (('one', 1), ('two', 2)):
        (OUT/'processes'/name).mkdir(parents=True, exist_ok=True)
        if code := losses(args, name, ranks): return tell('processes', failed=f'{name}: exit status {code}')
        logs[name] = [json.loads(o) for o in (OUT/'processes'/name/'log.jsonl').read_text().splitlines()]
    one, two = ([o['mse'] for o in logs[k]] for k in ('one', 'two'))
    tell('processes', steps=logs['one'][-1]['step'], one=one, two=two, largest=max(abs(a/b-1) for a, b in zip(one, two)))


def main(args):
    "All parts in turn; says at the end what failed"
    failed = []
    for part in args.parts.split(','):
        name, until, training = re.fullmatch(r'(\w+)@(\d+):(\d+)', part).groups()
        command = [sys.executable, __file__, *sys.argv[1:], '--part', name, '--training', '1' if args.miniature else training]
        try: code = subprocess.run(command, timeout=max(.1, float(until)-(time.monotonic()-START))).returncode
        except subprocess.TimeoutExpired: code = 'stopped by the limit of time'
        if code: failed.append(f'{name}: {code}')
        print(f'-- {name}: {time.monotonic()-START:.0f} s', flush=True)
    print('failed: '+', '.join(failed) if failed else 'all parts ended')
    return bool(failed)


if __name__ == '__main__':
    arguments = parsed()
    OUT = arguments.out
    OUT.mkdir(parents=True, exist_ok=True)
    part = arguments.part
    if not part: sys.exit(main(arguments))
    if part in RECIPES: generator(arguments, part)
    elif part in ('bench', 'bench_compiled'): bench_parts(arguments, part)
    elif part.startswith('one_of_'): one_of(arguments, part.removeprefix('one_of_'))
    else: dict(encode=encode, processes=processes)[part](arguments)
