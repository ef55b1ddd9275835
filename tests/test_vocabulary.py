"Retired words and names do not come back: code, recipes, notebooks, tests and pages use one word for one thing"
import json
import re
import tomllib
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
EXEMPT = {'EXPERIMENTS.md', 'CHANGELOG.md'}            # history keeps the names of its time

def retired():
    "Each retired word as a compiled expression, and what to write instead"
    lists = tomllib.loads((root/'tests'/'vocabulary.toml').read_text(encoding='utf-8'))
    return [(re.compile(word), new) for words in lists.values() for word, new in words.items()]

def sources():
    "The files that are checked"
    yield from sorted((root/'cemiface').rglob('*.py'))
    yield from sorted((root/'cemiface'/'recipes').glob('*.toml'))
    yield root/'cemiface'/'assets'/'studies.toml'
    yield from sorted(p for p in (root/'nbs').rglob('*.ipynb') if not any(d[0] in '._' for d in p.relative_to(root).parts))
    yield from sorted(p for p in (root/'tests').glob('*.py') if p.name != 'test_vocabulary.py')
    yield from sorted(p for p in root.glob('*.md') if p.name not in EXEMPT)
    yield root/'data'/'README.md'

def lines_of(path):
    "Numbered lines: (cell and line, or line; text)"
    text = path.read_text(encoding='utf-8')
    if path.suffix != '.ipynb':
        yield from enumerate(text.splitlines(), 1)
        return
    for i, cell in enumerate(json.loads(text)['cells']):
        for k, line in enumerate(''.join(cell['source']).splitlines(), 1): yield f'cell {i} line {k}', line

def findings(path, words):
    "Each retired word of a file, as `file:line: word -> replacement`"
    for where, line in lines_of(path):
        for word, new in words:
            found = word.search(line)
            if found: yield f'{path.relative_to(root).as_posix()}:{where}: {found[0].strip()!r} -> {new}'

def test_retired_words_are_gone():
    words, files = retired(), list(sources())
    assert len(files) > 80 and len(words) > 20, (len(files), len(words))
    print(f'{len(files)} files checked for {len(words)} retired words')
    found = [line for path in files for line in findings(path, words)]
    assert not found, '\n'.join(found)

@pytest.mark.parametrize('line', ['load_recogniser(path)', 'a noise level of 3', 'with_copies(faces, inquiries, 5)', '    [encoder]',
                                  'cemiface generate --contrast 2', '-s generation.steps=5', 'photos of strangers'])
def test_the_list_finds_an_old_word(line):
    assert any(word.search(line) for word, _ in retired())

@pytest.mark.parametrize('line', ['faces.with_copies(inquiries, 5)', 'def with_copies(self:FaceSet,', 'recogniser = train_recogniser(faces)',
                                  'generation.per_identity', 'raise the contrast of a photo', '[identity_encoder]'])
def test_the_list_leaves_good_words_alone(line):
    assert not [word.pattern for word, _ in retired() if word.search(line)]
