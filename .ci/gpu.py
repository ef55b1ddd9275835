"""What only a GPU can show, in ten minutes, the most valuable first:

    python .ci/gpu.py OUT --photos TRAIN --unseen DEV --pairs PAIRS --identity-encoder F --judge F --autoencoder F [--miniature]

1. images per second of training and sampling, compiled, and the measured ceiling;
2. generators in latents: the recipe `lfw`, the same with similarity matching, and a wide network, each trained for a
   given time and then described by a table of similarity, variety and distance to photos of people it has not seen;
3. the study `volume`: recognisers trained on 3,000, 10,000 and 40,000 faces of the first, beside real photos;
4. two processes on one GPU give the losses of one.

Each part is a process of its own, with the GPU to itself. The last two take another ten minutes:
`--parts lfw@180:80,volume@540:200,processes@590:0`. A part appends lines of JSON to
OUT/facts.jsonl as soon as it knows something, so that a limit of time loses only what has not been measured yet; what
the next call can go on with is in WORK. How long a training may be is decided by the time that its first steps take.
`--miniature` rehearses all of it on a processor, with small networks; give it some dozens of photos.
"""
import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

START = time.monotonic()
WIDE = ['transformer.width=768', 'transformer.depth=12', 'transformer.heads=12', 'training.lr=1e-3']
RECIPES = dict(                            # what differs from the recipe `lfw`
    lfw=[], matching=['training.similarity_fraction=0.125', 'loss.lam=0.05'], wide=WIDE)
ON_GPU = ['training.batch=256', 'training.compile=false']
VOLUMES = ['inquiries.source="synthetic"', 'inquiries.identities=1000', 'inquiries.drawn=12000', 'inquiries.threshold=0.35',
    'generation.per_identity=38', 'generation.copies=2', 'study.volumes=["250x10", "500x18"]', 'study.sphere=[0.9]',
    'sampling.steps=10', 'sampling.batch=500']
SMALL = ['transformer.width=32', 'transformer.depth=1', 'transformer.heads=2', 'training.batch=16', 'training.warmup=0']
FEW = ['inquiries.identities=8', 'inquiries.drawn=12', 'inquiries.threshold=1.0', 'generation.per_identity=8', 'recogniser.epochs=1',
    'study.volumes=["7x6", "8x7"]', 'sampling.steps=2', 'sampling.batch=8', 'recogniser.batch=8']
PARTS = 'bench@330:0,matching@450:60,wide@580:70'


def tell(part, **facts):
    "Append a line to the facts, and print it"
    line = json.dumps(dict(part=part, at=round(time.monotonic()-START, 1), **facts))
    with (OUT/'facts.jsonl').open('a') as f: f.write(line+'\n')
    print(line, flush=True)


def parsed():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path)
    for name in ('photos', 'unseen', 'pairs', 'identity-encoder', 'judge', 'autoencoder'): p.add_argument(f'--{name}', required=True)
    p.add_argument('--work', type=Path, help='what is kept for the next call (by default OUT/work)')
    p.add_argument('--miniature', action='store_true')
    p.add_argument('--part', help='one part only: a name of RECIPES or of OTHERS')
    p.add_argument('--parts', default=PARTS, help='PART@UNTIL:TRAINING, in turn: when a part must end, and how long it may train; '
                                                  'in seconds')
    p.add_argument('--training', type=float, default=60, help='seconds of training, of one part')
    p.add_argument('--set', action='append', default=[], help='a value of the recipe of every generator')
    return p.parse_args()


def recipe_of(args, name):
    from cemiface.recipe import changed, load_recipe
    return changed(load_recipe('lfw'), RECIPES[name]+ON_GPU+(SMALL if args.miniature else [])+args.set)


def photos_of(folder):
    from cemiface.data.faces import FaceSet
    return FaceSet.open(folder, 112)


# ---- one generator, and how good it is

def frechet(a, b):
    "Between the Gaussians of two sets of features, (n,d) each"
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
    from cemiface.runtime import default_device
    latents, batch = encode_set(autoencoder, photos, WORK/'cache', default_device()), recipe.training.batch
    def seconds(steps):
        brief, start = changed(recipe, [f'training.epochs={steps*batch/len(photos)}', 'training.warmup=0']), time.monotonic()
        with tempfile.TemporaryDirectory() as d: train_denoiser(latents, eid, brief.parts, d, WORK/'cache')
        return time.monotonic()-start
    few, many = (1, 4) if args.miniature else (20, 80)
    seconds(few)                                                # the first one loads and allocates
    rate = batch*(many-few)/max(1e-3, -seconds(few)+seconds(many))
    return changed(recipe, [f'training.epochs={round(max(batch, rate*args.training)/len(photos), 2)}']), rate


def generator(args, name):
    import numpy as np
    import torch
    from cemiface.encoders.pretrained import load_encoder
    from cemiface.generator.autoencoder import load_autoencoder
    from cemiface.generator.pipeline import train_generator
    from cemiface.plots import face_grid
    from cemiface.runtime import default_device, hardware
    device, home = default_device(), WORK/'generators'/name
    photos, unseen = photos_of(args.photos), photos_of(args.unseen)
    eid, judge, autoencoder = load_encoder(args.identity_encoder), load_encoder(args.judge), load_autoencoder(args.autoencoder)
    recipe, rate = fitted(args, recipe_of(args, name), photos, eid, autoencoder)
    sets = [*RECIPES[name], *ON_GPU, *args.set, f'training.epochs={recipe.training.epochs}']
    (WORK/f'{name}.json').write_text(json.dumps(sets))
    tell(name, hardware=hardware(), torch=torch.__version__, faces=len(photos), images_per_second=rate,
        epochs=recipe.training.epochs, sets=sets)

    start = time.monotonic()
    pipe = train_generator(photos, eid, recipe.parts, home, autoencoder, cache=WORK/'cache').to(device)
    seconds, views = time.monotonic()-start, pipe.config.trained['views']
    log = [json.loads(line) for line in (home/'training'/'log.jsonl').read_text().splitlines()]
    millions = sum(p.numel() for p in pipe.unet.parameters())/1e6
    tell(name, seconds=seconds, views=views, millions=millions, loss={o['step']: o['mse'] for o in log[::max(1, len(log)//12)]},
        last=log[-1])
    if name == 'lfw': keep_weights(home)

    table, base = Table(args, pipe, judge.to(device), unseen), recipe.sampling
    def row(full=False, m=1., control='sphere', **changes):
        faces = table.drawn(replace(base, **changes), m, control)
        tell(name, m=m, control=control, **changes, **table.row(faces, full))
        return faces[:12]
    pictures, some = [table.images[:12]], slice(0, 1 if args.miniature else None)
    for changes in (dict(), dict(guidance=2., guidance_high=.8), dict(guidance=1.), dict(guidance=3.), dict(guidance=5.),
                    dict(steps=10), dict(steps=50), dict(steps=4, guidance=1.), dict(steps=3, guidance_high=.5))[some]:
        pictures.append(row(full=True, **changes))
        face_grid(np.concatenate(pictures), len(pictures[0])).save(OUT/f'{name}.jpg', quality=85)
    for m in (.9, .8, .6, .3, 0.)[some]: row(m=m)
    tell(name, photos=table.row(np.concatenate([table.images]*2)))


def keep_weights(home):
    "The generator in pieces of at most 15 MB, without the networks that it was given: cat them, and untar"
    whole = WORK/'generator.tar'
    with tarfile.open(whole, 'w') as tar:
        for part in ('unet', 'condition', 'scheduler', 'model_index.json', 'run.json', 'README.md', 'stages'): tar.add(home/part, part)
    with whole.open('rb') as f:
        for k in range(1000):
            if piece := f.read(15_000_000): (OUT/f'generator.tar.{k}').write_bytes(piece)
            else: break


# ---- recognisers trained on ever more faces

def lab_of(args):
    from cemiface.experiment.arms import open_lab
    from cemiface.recipe import changed, Inputs, load_recipe
    sets = json.loads((WORK/'lfw.json').read_text())+VOLUMES+(SMALL+FEW if args.miniature else [])
    inputs = Inputs(faces=args.photos, identity_encoder=args.identity_encoder, judge=args.judge, pairs=args.pairs, images=args.unseen,
        autoencoder=args.autoencoder)
    return open_lab(changed(load_recipe('lfw'), sets), WORK/'lab', inputs)


def jobs_of(lab):
    "(arm, recogniser seed), the long ones first, all of one seed before the next"
    from cemiface.experiment.practice import STUDIES
    from cemiface.recipe import volume_counts
    def size(arm): return volume_counts(arm.volume).sum() if arm.volume else 10**5
    arms = sorted(STUDIES['volume'].arms(lab.recipe).values(), key=size, reverse=True)
    return [(arm, seed) for seed in range(2) for arm in arms]


def recognisers(args, number):
    "Every fifth job, from this one on"
    from cemiface.experiment.arms import recogniser_similarities
    lab = lab_of(args)
    for arm, seed in jobs_of(lab)[int(number)::5]:
        start = time.monotonic()
        recogniser_similarities(lab, arm, 0, seed)
        tell('volume', arm=arm.name, seed=seed, seconds=round(time.monotonic()-start, 1))


def volume(args):
    from cemiface.experiment.arms import faces_of
    from cemiface.experiment.practice import STUDIES
    from cemiface.experiment.study import make_study
    start = time.monotonic()
    def told(**facts): tell('volume', seconds=round(time.monotonic()-start, 1), **facts)
    lab = lab_of(args)
    for made, to in (('generators/lfw', 'generator'), ('cache', 'cache')):
        shutil.copytree(WORK/made, lab.out/to, dirs_exist_ok=True)
    told(inquiries=len(lab.inquiries))
    for arm in {arm: None for arm, _ in jobs_of(lab) if arm.drawn}:
        told(drawn=arm.name, faces=len(faces_of(lab, arm)))
    workers = [start_part(args, f'recognisers_{k}') for k in range(5)]
    try:
        while time.monotonic()-start < args.training and any(w.poll() is None for w in workers): time.sleep(.5)
    finally:
        for w in workers: w.kill()
    codes = [w.wait() for w in workers]
    told(codes=codes)
    seeds = 1 if any(codes) else 2                              # those of the first seed come first
    found = make_study(STUDIES['volume'], replace(lab, seeds=seeds))
    told(says=found['says'], rows=found['rows'], comparisons=found['comparisons'])


def keep_lab():
    "What the stages found, from which the figures can be computed again, even where time ran out"
    with tarfile.open(OUT/'lab.tgz', 'w:gz') as tar:
        for part in ('stages', 'studies'):
            if (WORK/'lab'/part).exists(): tar.add(WORK/'lab'/part, part)


# ---- speed

def bench_parts(args):
    "A row of `bench` each"
    from cemiface.experiment.bench import bench
    from cemiface.generator.autoencoder import load_autoencoder
    from cemiface.recipe import changed, load_recipe
    autoencoder = load_autoencoder(args.autoencoder)
    latent = [*WIDE, 'training.precision=bf16', 'sampling.precision=bf16', 'training.batch=512', 'sampling.batch=512',
              'sampling.steps=4', 'sampling.guidance=1.0']
    pixels = ['training.batch=64', 'sampling.batch=128', 'recogniser.batch=512']
    tiny = ['faces.size=32', 'training.batch=4', 'sampling.batch=4', 'recogniser.batch=4', 'sampling.steps=2', 'training.precision=no',
            'sampling.precision=no', 'recogniser.precision=fp32']
    if args.miniature: latent = SMALL+tiny[1:-1]
    if args.miniature: pixels = tiny+['unet.channels=[32,32]', 'unet.groups=8', 'unet.head_width=8', 'recogniser.arch=mobilefacenet']
    either = [f'{o}.compile=true' for o in ('training', 'sampling', 'recogniser')]
    def rows(name, sets, work, with_=None):
        try: found = bench([changed(load_recipe(name), sets+either)], [work], autoencoder=with_)
        except Exception as e: tell('bench', recipe=name, work=work, failed=f'{type(e).__name__}: {e}'[:300])
        else: tell('bench', **found['rows'][0], ceilings=found['ceilings_tflops'])
    rows('paper', pixels, 'recogniser')
    rows('lfw', latent, 'sample', autoencoder)
    rows('paper', pixels, 'sample')
    rows('paper', pixels, 'train')
    rows('lfw', latent, 'train', autoencoder)
    rows('lfw', latent, 'generate', autoencoder)


# ---- two processes

def losses(args, name, ranks):
    "Train for some steps with so many processes; the losses are in the log"
    sets = [f'training.epochs={3 if args.miniature else 4}', 'transformer.depth=2']
    common = dict(os.environ, MASTER_ADDR='127.0.0.1', MASTER_PORT='29517', WORLD_SIZE=str(ranks))
    command = [sys.executable, __file__, *sys.argv[1:], '--part', f'one_of_{name}', *(f'--set={o}' for o in sets)]
    running = []
    for rank in range(ranks):
        env = common | dict(RANK=str(rank), LOCAL_RANK='0')    # the same GPU
        running.append(subprocess.Popen(command, env=env if ranks > 1 else dict(os.environ)))
    return max(p.wait() for p in running)


def one_of(args, name):
    import torch
    from cemiface.encoders.pretrained import load_encoder
    from cemiface.generator.autoencoder import encode_set, load_autoencoder
    from cemiface.generator.training import train_denoiser
    from cemiface.runtime import default_device
    recipe = recipe_of(args, 'lfw')
    if 'RANK' in os.environ: torch.distributed.init_process_group('gloo')      # NCCL wants a GPU for each process
    photos, cache = photos_of(args.photos), WORK/'cache'
    latents = encode_set(load_autoencoder(args.autoencoder), photos, cache, default_device())
    train_denoiser(latents, load_encoder(args.identity_encoder), recipe.parts, WORK/'processes'/name, cache=cache)


def processes(args):
    logs = {}
    for name, ranks in (('one', 1), ('two', 2)):
        (WORK/'processes'/name).mkdir(parents=True, exist_ok=True)
        if code := losses(args, name, ranks): return tell('processes', failed=f'{name}: exit status {code}')
        logs[name] = [json.loads(o) for o in (WORK/'processes'/name/'log.jsonl').read_text().splitlines()]
    one, two = ([o['mse'] for o in logs[k]] for k in ('one', 'two'))
    tell('processes', steps=logs['one'][-1]['step'], one=one, two=two, largest=max(abs(a/b-1) for a, b in zip(one, two)))


# ---- all of it

OTHERS = dict(bench=bench_parts, volume=volume, processes=processes)


def start_part(args, name, training='0', **options):
    command = [sys.executable, __file__, *sys.argv[1:], '--part', name, '--training', '1' if args.miniature and name in RECIPES else training]
    return subprocess.Popen(command, **options)


def main(args):
    "All parts in turn; says at the end what failed"
    failed = []
    for part in args.parts.split(','):
        name, until, training = re.fullmatch(r'(\w+)@(\d+):(\d+)', part).groups()
        process = start_part(args, name, training, start_new_session=True)
        try: code = process.wait(max(.1, float(until)-(time.monotonic()-START)))
        except subprocess.TimeoutExpired: code = 'stopped by the limit of time'
        with suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)      # and all that it has started
        if code: failed.append(f'{name}: {code}')
        print(f'-- {name}: {time.monotonic()-START:.0f} s', flush=True)
    if (WORK/'lab'/'stages').exists(): keep_lab()
    print('failed: '+', '.join(failed) if failed else 'all parts ended')
    return bool(failed)


if __name__ == '__main__':
    arguments = parsed()
    OUT = arguments.out
    WORK = arguments.work or OUT/'work'
    for folder in (OUT, WORK/'cache'): folder.mkdir(parents=True, exist_ok=True)
    part = arguments.part
    if not part: sys.exit(main(arguments))
    if part in RECIPES: generator(arguments, part)
    elif part.startswith('one_of_'): one_of(arguments, part.removeprefix('one_of_'))
    elif part.startswith('recognisers_'): recognisers(arguments, part.removeprefix('recognisers_'))
    else: OTHERS[part](arguments)
