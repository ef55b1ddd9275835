"""Names that people give, shown on pages and in widgets: none of them is HTML, a column, a line or code of its own.
And kept embeddings, whose process is killed between two writes."""
import ast
import contextlib
import html.parser
import io
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import contents, fork, in_process, stop_at
from hypothesis import HealthCheck, example, given, settings, strategies as st

often = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
parts = st.sampled_from(['<script>alert(1)</script>', '<b>', '">', "'", '"', '|', '\n', '\r', '\t', '\u202e', '\u2066', '\u200f', '\x1b[2J', '&amp;', '$x_{$',
    '$', '\\', '`', '=1+1', 'Zoë', '李', ' ', '{', '}', '%s', '\0', '\u2028', '](javascript:x)', '-->', '\ud800'])
names = st.lists(parts, min_size=1, max_size=6).map(''.join)
file_names = names.filter(lambda o: not set(o) & set('\0\ud800')).map(lambda o: o.replace('/', '')[:60] or 'x')

class Tags(html.parser.HTMLParser):
    "The tags of a page, and its text"
    def __init__(self, text): super().__init__(); self.tags, self.text = [], ''; self.feed(text); self.close()
    def handle_starttag(self, tag, attrs): self.tags.append((tag, attrs))
    def handle_data(self, data): self.text += data

def rows_of(page):
    "The rows of the table of a Markdown page"
    return [o for o in page.split('\n') if o.startswith('|')]

def row_of(name, group): return dict(name=name, what='similarity', kind='file', group=group, mean=.5, lo=.4, hi=.6, faces=9, identities=3)

def study_page(name, group):
    from cemiface.experiment.practice import FAIRNESS
    from cemiface.experiment.study import Finding, markdown_of
    rows = [row_of(name, o) for o in ('plain', group)]
    f = Finding(None, 'Nothing.', None, rows=rows, columns=dict(set='name', group='group', mean='mean:.2f'))
    facts = dict(seeds=1, generator_seeds=1, recognisers=1, pairs=9, all_pairs=0, recipe='toy',
         seed=0, judge='a judge', precision='float32', hardware='a processor', command='cemiface')
    return markdown_of(FAIRNESS, f, facts)

def check_study_pages():
    @often
    @given(names.filter(lambda o: '\ud800' not in o))
    @example('<img src=x onerror=alert(1)>|a\nb')
    def check(group):
        page, plain = study_page('a set', group), study_page('a set', 'other')
        assert Tags(page).tags == Tags(plain).tags and page.count('\n') == plain.count('\n')
        assert [o.count('|') for o in rows_of(page)] == [o.count('|') for o in rows_of(plain)]
        assert all(o.isprintable() for o in rows_of(page))
    check()
    from cemiface.experiment.practice import plot_groups
    groups = '$x_{$ $', '\\$\\frac$', '\n\0<b>\u202e'                           # are drawn, and are no formulas
    plot_groups([row_of('a set', o) for o in groups], 'a judge').savefig(io.BytesIO())

def test_study_pages(): in_process(check_study_pages)

def check_code():
    import numpy as np
    from cemiface.data.faces import FaceSet, save_image
    from cemiface.explore import row_code, RowSettings
    face = np.zeros((1, 3, 8, 8), np.uint8)
    @often
    @given(file_names)
    def check(name):
        save_image(face[0], Path('set')/f'{name}.png')
        code = row_code(SimpleNamespace(name_or_path=name), FaceSet(face, files=[f'{name}.png'], root='set'), RowSettings())
        tree = list(ast.walk(ast.parse(code)))
        called = [o.func.id for o in tree if isinstance(o, ast.Call) and isinstance(o.func, ast.Name)]
        assert called == ['load_generator', 'decode_image', 'pipe', 'print', 'face_grid']
        assert {name, f'set/{name}.png'} <= {o.value for o in tree if isinstance(o, ast.Constant)}
        assert all(o.isprintable() or o == '\n' for o in code)
    check()

def check_captions():
    from PIL import Image
    from cemiface.core import CemiFaceError
    from cemiface.explore import Explorer, RowSettings
    said = []
    def row(settings):
        if settings.seed: raise CemiFaceError(said[-1])
        return Image.new('RGB', (8, 8)), [.5]
    @settings(often, max_examples=10)
    @given(file_names)
    def check(name):
        said.append(name)
        w.seed.value = 1
        with contextlib.suppress(CemiFaceError): w.wait()
        assert w.caption.value and not Tags(w.caption.value).tags
        w.save(f'{name}.png')
        assert not Tags(w.caption.value).tags and 'The row is in' in w.caption.value
        w.seed.value = 0
        w.wait()
    w = Explorer(row, str, RowSettings(steps=1)).wait()
    check()

def in_folder(does, folder): os.chdir(folder); does()

@pytest.mark.parametrize('check', [check_code, check_captions])
def test_explorer(tmp_path, check): in_process(in_folder, check, tmp_path)

# Kept embeddings

def embedded(folder, event=None, pattern='', batches=0):
    "Embed a set in a cache; killed at an event, or after so many batches"
    from cemiface.data.toy import toy_faces
    from cemiface.encoders import pretrained
    embedding_batches = pretrained.embedding_batches
    def some(*args):
        for k, e in enumerate(embedding_batches(*args, 16)):
            if batches and k == batches: os.kill(os.getpid(), signal.SIGKILL)
            yield e
    pretrained.embedding_batches = some
    if event: stop_at(event, pattern)
    pretrained.embed_set(pretrained.load_encoder('toy'), toy_faces(8, 5, size=24), folder)

@pytest.mark.parametrize('kill', [dict(batches=1), dict(batches=2), dict(event='os.rename', pattern=r'\.npy$'), dict(event='os.rename', pattern=r'\.json$')])
def test_a_kill_while_embedding(tmp_path, kill):
    in_process(embedded, tmp_path/'whole')
    p = fork(embedded, tmp_path/'killed', *[kill.get(o, d) for o, d in (('event', None), ('pattern', ''), ('batches', 0))])
    p.join(100)
    assert p.exitcode == -signal.SIGKILL and contents(tmp_path/'killed') != contents(tmp_path/'whole')
    in_process(embedded, tmp_path/'killed')
    assert contents(tmp_path/'killed') == contents(tmp_path/'whole') and len(contents(tmp_path/'whole')) == 2
