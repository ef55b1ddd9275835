"The detector of facenet-pytorch, on photos of real people: turned, enlarged and off-centre"
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import as_json
from PIL import Image

FACES = Path(os.environ.get('CEMIFACE_SHARED', '../shared'))/'faces/lfw/dev'

@pytest.mark.skipif(not FACES.exists(), reason='CEMIFACE_SHARED holds no faces')
def test_mtcnn(cemiface, tmp_path):
    pytest.importorskip('facenet_pytorch', reason='pip install --no-deps facenet-pytorch')
    (tmp_path/'photos').mkdir()
    known = {}
    for k, file in enumerate(sorted(FACES.glob('*/*.jpg'))[:40:4]):
        photo, face = Image.new('RGB', (700, 600), (90, 110, 90)), Image.open(file).resize((336, 336), Image.Resampling.BICUBIC)
        photo.paste(face.rotate(4*k-18, Image.Resampling.BICUBIC, fillcolor=(90, 110, 90)), (20+30*k, 180))
        photo.save(tmp_path/f'photos/{k}.png')
        known[f'{k}.png'] = np.array(Image.open(file), float)
    facts = as_json(cemiface('align', '--from', 'photos', '--to', 'faces', '--detector', 'mtcnn', '--json').out)
    assert facts['images']==10 and facts['aligned'] >= 8, facts
    # upright again, and where it was
    alike = []
    for name, face in known.items():
        if not (tmp_path/'faces'/name).exists(): continue
        found = np.array(Image.open(tmp_path/'faces'/name), float)
        middle = [o[28:-28, 28:-28].ravel() for o in (found, face)]
        alike.append(np.corrcoef(*middle)[0, 1])
    assert np.median(alike) > .8, alike
