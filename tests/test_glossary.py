"Words that the pages link to the glossary"
import importlib.util
from types import SimpleNamespace

import pytest
from conftest import root

@pytest.fixture(scope='module')
def docs():
    "The script that makes the pages"
    spec = importlib.util.spec_from_file_location('docs', root/'.ci'/'docs.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

@pytest.mark.parametrize('text, expected', [
    ('Two inquiries, an inquiry.', 'Two [inquiries](G#inquiry){.term}, an inquiry.'),
    ('Inquiries of the judge', '[Inquiries](G#inquiry){.term} of the [judge](G#judge){.term}'),
    ('# A judge\n\n> a judge\n| judge |\n\n    a judge', None),
    ('`judge` [a judge](x.ipynb) [`judge` of](y) <b judge> $judge$', None),
    ('```\njudge\n```', None),
    ('misjudged, judge-like', None)])
def test_the_first_use_in_running_text_is_linked(docs, text, expected):
    cell = SimpleNamespace(cell_type='markdown', source=text)
    docs.link_terms([cell], dict(inquiry='inquiry', judge='judge'), 'G')
    assert cell.source==(expected or text)
