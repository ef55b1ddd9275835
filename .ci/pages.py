"Pages of studies for the docs: `python .ci/pages.py LAB [FOLDER]` takes README.md and figure.png of each study of a lab into nbs/FOLDER (studies)"
import json
import shutil
import sys
from pathlib import Path

WHERE = """```
photos ──> faces ──> embeddings ──> generator ──> labelled set ──> recogniser ──> figures
═════════════════════════════════════════════════════════════════════════════════════════
```

One of the studies that [studies](../75_experiment.study.ipynb) defines and `cemiface study` runs.
"""

def page(text):
    "A notebook that holds nothing but the text"
    cell = dict(cell_type='markdown', id='page', metadata={}, source=text.strip().splitlines(keepends=True))
    kernel = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    return json.dumps(dict(cells=[cell], metadata=kernel, nbformat=4, nbformat_minor=5), indent=1, ensure_ascii=False)+'\n'

def main(lab, folder='studies'):
    "Write the pages, and say which"
    pages, images = Path('nbs', folder), Path('nbs/images', folder)
    up = '../'*len(pages.relative_to('nbs').parts)
    for o in (pages, images): o.mkdir(parents=True, exist_ok=True)
    for home in sorted(Path(lab, 'studies').iterdir()):
        if (home/'figure.png').exists(): shutil.copy(home/'figure.png', images/f'{home.name}.png')
        text = (home/'README.md').read_text().replace('(figure.png)', f'({up}images/{folder}/{home.name}.png)')
        title, claim, rest = text.split('\n\n', 2)
        (pages/f'{home.name}.ipynb').write_text(page('\n\n'.join([title, claim, WHERE.replace('../', up), rest])))
        print(home.name)

if __name__ == '__main__': main(*sys.argv[1:])
