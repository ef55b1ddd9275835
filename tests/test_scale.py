"""Memory does not grow with the number of faces. `--faces 1000000` for the real size (a quarter of an hour)"""
import json
import os
from pathlib import Path

import pytest
from conftest import in_process

def simulate(generator, inquiries, folder, n):
    "In a process of its own: a set of n faces by a denoiser that does nothing, whose pictures are thrown away"
    import torch
    from cemiface.data.faces import FaceSet
    from cemiface.generator import denoiser, pipeline
    from cemiface.generator.sampling import SetRequest
    from cemiface.recipe import SamplingConfig
    from cemiface.sets import dataset
    memory, seen = [], []
    def nothing(self, x, t, tokens):
        memory.append(int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE'))
        return torch.zeros_like(x)
    denoiser.FaceUNet.forward = nothing
    dataset.save_image = lambda picture, path: seen.append(1) if len(seen)<3 else None
    pipe = pipeline.load_generator(generator)
    people = FaceSet.from_folder(inquiries, pipe.size)
    request = SetRequest(.9, control='sphere', sampling=SamplingConfig(steps=1, batch=500), per_identity=n//len(people))
    made = dataset.write_set(pipe, people, request, folder/'set')
    after = int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')
    with open(folder/'set'/'manifest.jsonl') as f: lines = sum(1 for _ in f)
    (folder/'memory.json').write_text(json.dumps(dict(memory=memory, after=after, faces=made.total, lines=lines, written=len(seen))))

@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='reads the memory of a process from /proc')
def test_generation(finished, tmp_path, request):
    n = request.config.getoption('--faces')
    in_process(simulate, finished.generator, finished.inquiries, tmp_path, n)
    r = json.loads((tmp_path/'memory.json').read_text())
    early, late = r['memory'][len(r['memory'])//10], r['memory'][-1]
    print(f'{n:,} faces: {early/1e6:.0f} MB after a tenth, {late/1e6:.0f} MB at the end, {r["after"]/1e6:.0f} MB after the manifest')
    assert r['faces']==r['lines']==n//6*6 and r['written']==3 and len(r['memory'])>=n//500
    assert late-early < 40e6 and r['after']-late < 40e6+100*n
