"Pages of studies for the docs: `python .ci/pages.py LAB [FOLDER]` takes README.md and figure.png of each study of a lab into nbs/FOLDER (studies)"
import json
import re
import shutil
import sys
from pathlib import Path

TITLES = {
    'another-photo': 'Conditioned on another photo of the person',
    'autoencoder': 'What does an autoencoder cost in identity?',
    'backbone': 'Does a larger recogniser gain?',
    'calibration': 'Does a face get the similarity that was asked for?',
    'centres': 'Centres of identities as inquiries',
    'comparison': 'How much of the gap to real photos is closed?',
    'cost': 'What does a step cost?',
    'data': 'Which inquiries, and how many training faces?',
    'distance': 'Cosine or Euclidean distance in the loss?',
    'dynamics': 'When is a recogniser at its best?',
    'fairness': 'Is it equally good for all groups?',
    'few-steps': 'Are three steps enough?',
    'fid': 'How far are the sets from real photos (FID)?',
    'grid': 'Faces leave their inquiry as m falls',
    'identity-consistency': 'Do faces keep one identity?',
    'identity-encoder': 'Which identity encoder?',
    'lambda': 'How much weight for similarity?',
    'leakage': 'Do sets come near the training photos?',
    'm-mixing': 'One value of m, or a mixture?',
    'm-sweep': 'Which m trains best under scalar control?',
    'm-training': 'Which values of m should the generator train on?',
    'map': 'Where do faces lie around their inquiry?',
    'neighbours': 'One similarity, or a cone?',
    'photos': 'How many photos does a generator need?',
    'reach': 'How far can the similarity be moved?',
    'roc': 'How good at low false acceptance?',
    'similarity-groups': 'Which real photos of a person train best?',
    'similarity-statistics': 'How similar are faces to their inquiry and to each other?',
    'sources': 'Do synthetic people train as well as given ones?',
    'sphere': 'Which m trains best under sphere control?',
    'sphere-training': 'Should the generator train with sphere control?',
    'sphere-variants': 'Does the optimum stay with other inquiries?',
    'steps': 'How many sampling steps are enough?',
    'volume': 'How many faces does it take?',
    'why': 'Why do semi-hard faces train best?',
}

def page(*cells):
    "A notebook of markdown cells"
    rows = [dict(cell_type='markdown', id=f'page{i}', metadata={}, source=o.strip().splitlines(keepends=True)) for i, o in enumerate(cells)]
    kernel = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    return json.dumps(dict(cells=rows, metadata=kernel, nbformat=4, nbformat_minor=5), indent=1, ensure_ascii=False)+'\n'

def bullets(numbers):
    "A sentence a line, and what a long one lists below it"
    for sentence in re.split(r'(?<=\.) (?=\w)', numbers):
        head, _, tail = sentence.partition(': ')
        parts = tail.split('; ')
        if ' against ' in head and ': ' not in parts[0]: head, parts = 'Comparisons', sentence.split('; ')   # a list without a heading
        yield f'- {sentence}' if len(parts) < 3 else f'- {head}:\n'+'\n'.join(f'    - {o}' for o in parts)

def cells(name, text, image, up):
    "Title and claim alone, as nbdev wants it; verdict and figure; then the numbers, with each p after its figure, and the method"
    title, claim, verdict, rest = text.replace('+-', '±').split('\n\n', 3)
    source, claim = claim.removeprefix('> ').split(': ', 1)
    if source == 'beyond': claim = claim.split(': ', 1)[1]                  # without its subject, by which the sidebar orders pages
    held, numbers = re.fullmatch(r'(\*\*.+?\*\*) *(.*)', verdict.strip(), re.S).groups()
    rest = re.sub(r'!\[[^]]*\]\([^)]*\)\s*', '', rest).strip()
    title = TITLES.get(name, title.removeprefix('# '))
    if 'studies/real' in image: title = title.removesuffix('?')+', on real faces'+'?'*title.endswith('?')
    figure = f'![Figure of the study. Its numbers are in the table below.]({image})' if image else ''
    where = 'A question beyond the paper.' if source == 'beyond' else f'The claim comes from the paper ({source}).'
    yield f'# {title}\n\n> The claim: {claim}'
    yield f'{held} {where}\n\n{figure}'
    yield '## The numbers\n\n'+'\n'.join(bullets(numbers))+f'\n\n{rest}'
    yield (f'The study `{name}` is one of those that [studies]({up}75_experiment.study.ipynb) defines. The command above makes '
           'this page again. The *shape* of a claim is the direction of a difference; its size counts only where the claim names one.')

def main(lab, folder='studies'):
    "Write the pages, and say which"
    pages, images = Path('nbs', folder), Path('nbs/images', folder)
    up = '../'*len(pages.relative_to('nbs').parts)
    for o in (pages, images): o.mkdir(parents=True, exist_ok=True)
    for home in sorted(Path(lab, 'studies').iterdir()):
        drawn = (home/'figure.png').exists()
        if drawn: shutil.copy(home/'figure.png', images/f'{home.name}.png')
        image = f'{up}images/{folder}/{home.name}.png' if drawn else ''
        text = (home/'README.md').read_text()
        (pages/f'{home.name}.ipynb').write_text(page(*cells(home.name, text, image, up)))
        print(home.name)

if __name__ == '__main__': main(*sys.argv[1:])
