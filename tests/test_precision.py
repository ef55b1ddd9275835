"What `auto` and compiling came to is decided once, by the first process, and kept"
import json
import signal
from unittest.mock import patch

from conftest import contents, fork, pictures, ranks, refused

HALF_WAY = dict(amx_bf16=False, avx512_bf16=True)              # a processor that does not tell which is faster

def decided(env, out):
    "In a process of its own, whose own measurement the first process does not share: what a training and a set make of `auto`"
    import os
    os.environ.update(env)
    from dataclasses import replace
    import torch
    from cemiface import runtime
    from cemiface.data.toy import toy_faces
    from cemiface.encoders.pretrained import FaceEncoder
    from cemiface.generator.pipeline import load_generator
    from cemiface.generator.sampling import SetRequest
    from cemiface.generator.training import train_denoiser
    from cemiface.recipe import SamplingConfig, TrainingConfig, load_recipe
    from cemiface.sets.dataset import resolve_for_folder
    rank = int(env.get('RANK', 0))
    times = dict(no=1., bf16=.2 if rank==0 else 3.)
    parts = replace(load_recipe('toy').parts, training=TrainingConfig(epochs=.5, batch=12, precision='auto', compile=True))
    def compile(self, mode=None):
        if rank: raise RuntimeError('no compiler')
    with (patch.object(torch.cpu, 'get_capabilities', lambda: HALF_WAY), patch.object(runtime, 'times_by_precision', lambda work: times),
          patch.object(torch.nn.Module, 'compile', compile)):
        computed = train_denoiser(toy_faces(12, 4), FaceEncoder.of('toy'), parts, out/'state', cpu=True)[2]
        pipe, request = load_generator('toy'), SetRequest(1., sampling=SamplingConfig(precision='auto'))
        drawn = resolve_for_folder(pipe, request, out/'set').sampling.precision
    (out/f'{rank}.json').write_text(json.dumps([computed, drawn]))

def test_two_processes_agree(tmp_path):
    for p in [fork(decided, env, tmp_path) for env in ranks(2)]: p.join(100); assert p.exitcode==0
    one, other = (json.loads((tmp_path/f'{k}.json').read_text()) for k in range(2))
    assert one==other
    assert (one[0]['precision'], one[0]['processes'], one[0]['compiled'], one[1])==('bf16', 2, False, 'bf16')

def test_a_set_keeps_its_precision(cemiface, finished, tmp_path):
    ask = ['generate', '--generator', finished.generator, '--inquiries', finished.inquiries, '--identities', 3, '--per-identity', 2,
        '--steps', 2, '--batch', 3, '--threshold', .9999, '--m', .9, '--out']
    stop = dict(event='os.rename', pattern=r'\bset/000001/000\.png$')
    assert cemiface(*ask, 'set', '--precision', 'bf16', stop=stop).code==-signal.SIGKILL
    refused(cemiface(*ask, 'set', '--precision', 'no'), 'set', 'precision = "bf16" where "no" is asked for')
    assert cemiface(*ask, 'set', '--precision', 'auto').code==0
    assert cemiface(*ask, 'whole', '--precision', 'bf16').code==0
    assert pictures(tmp_path/'set')==pictures(tmp_path/'whole')
    assert json.loads(contents(tmp_path/'set')['run.json'])['settings']['precision']=='bf16'
