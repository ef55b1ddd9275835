"The one way to make README.md, from nbs/index.ipynb (`nbdev_readme` is switched off in settings.ini); `--check` only tells whether it is stale"
import re
import sys

import nbformat
import yaml
from execnb.nbio import read_nb
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from nbdev.processors import FilterDefaults
from nbformat.v4.rwbase import rejoin_lines

class Filter(FilterDefaults):
    "As for the docs, but symbols stay plain: which ones link where depends on what is installed"
    def base_procs(self): return [o for o in super().base_procs() if o.__name__!='add_links']

MOST = 700   # words that a first page may have

def readme():
    cfg = get_config()
    nb = read_nb(cfg.nbs_path/'index.ipynb')
    Filter()(nb)
    nb = rejoin_lines(nbformat.from_dict(nb))
    nb.metadata['language_info'] = dict(name='python')
    front = yaml.safe_load(nb.cells.pop(0).source.strip().strip('-'))
    body,_ = MarkdownExporter().from_notebook_node(nb)
    body = re.sub(r'^#\|.*\n', '', body, flags=re.M)
    beside = rf'\1{cfg.nbs_path.name}/\2'   # pictures and notebooks lie beside the index
    body = re.sub(r'(!\[[^]]*\]\()(?!\w+:|/)([^)]+)', beside, body)
    body = re.sub(r'(\]\()(?!\w+:|/)([^)#]+\.ipynb)', beside, body)
    return cfg.config_path/'README.md', f"# {front['title']}\n\n> {front['description'].strip()}\n\n{body.strip()}\n"

if __name__ == '__main__':
    path, text = readme()
    if len(text.split()) >= MOST: sys.exit(f'README.md would have {len(text.split())} words; keep it under {MOST}')
    if '--check' not in sys.argv: path.write_text(text, encoding='utf-8')
    elif not path.exists() or path.read_text(encoding='utf-8') != text: sys.exit('README.md is stale: python .ci/readme.py writes it')
