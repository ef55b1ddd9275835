"How the command line behaves towards people: help that fits a screen, examples that run, bars that can be silenced, completion"
import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import termios

import pytest
from conftest import as_json, child, root, sets, shell

sys.path.insert(0, str(root))
from cemiface.cli import build_parser, completion_script   # which imports nothing heavy

verbs = next(o for o in build_parser()._actions if isinstance(o, argparse._SubParsersAction)).choices
example = {v: re.search(r'example: cemiface (.+)', p.epilog)[1] for v, p in verbs.items()}

def rows(text, width=100): return sum(max(1, -(-len(o)//width)) for o in text.splitlines())

@pytest.mark.parametrize('verb', ['', *verbs])
def test_help_fits_a_screen(verb, monkeypatch):
    monkeypatch.setenv('COLUMNS', '100')
    assert rows((verbs[verb] if verb else build_parser()).format_help()) <= 40

def test_examples_run(cemiface, finished, dev, tmp_path):
    "Those that take seconds, in a folder where what they name lies"
    for name, at in dict(set=finished.faces, faces=finished.inquiries, G=finished.generator).items(): (tmp_path/name).symlink_to(at)
    (tmp_path/'set.inquiries').symlink_to(finished.inquiries)
    for name in ('net.safetensors', 'judge.safetensors', 'eid.safetensors'): (tmp_path/name).symlink_to(finished.judge)
    assert cemiface('pack', '--from', dev/'images', '--to', 'lfw.bin', '--pairs', dev/'pairs.txt').code==0
    for name in ('cfp_fp', 'agedb_30', 'calfw', 'cplfw'): shutil.copy(tmp_path/'lfw.bin', tmp_path/f'{name}.bin')
    small = {'verify': ['--folds', '2'], 'unpack': ['--to', 'again'], 'train-recogniser': [*sets(), '--out', 'trained'],
             'generate': ['--generator', 'G', '--identities', '3', '--threshold', '1', '--steps', '2', '--batch', '4', '--out', 'drawn']}
    for verb in ('recipes', 'doctor', 'completion', 'pack', 'unpack', 'analyse', 'verify', 'generate', 'train-recogniser'):
        args = shlex.split(example[verb])
        r = cemiface(*args, *small.get(verb, []))
        assert r.code==0 and r.out, (verb, r)
        assert '--json' not in args or json.loads(r.out)

def test_bars_on_a_terminal_unless_quiet(finished, tmp_path):
    args = ['generate', '--generator', finished.generator, '--inquiries', finished.inquiries, '--m', 0, '--identities', 3, '--per-identity', 2, '--steps', 2,
            '--batch', 4, '--threshold', 1]
    seen = {}
    for name, more in dict(loud=[], quiet=['--quiet']).items():
        master, slave = os.openpty(); termios.tcsetwinsize(slave, (40, 100))
        p = child([*args, '--out', name, *more], tmp_path, tmp_path/f'{name}.out', os.ttyname(slave))
        p.join(100); os.set_blocking(master, False)
        assert p.exitcode==0
        seen[name] = b''.join(drained(master)).decode(errors='replace')
        assert '6 faces of 3 identities' in (tmp_path/f'{name}.out').read_text()
        os.close(slave); os.close(master)
    assert 'drawing loud' in seen['loud'] and 'img/s' in seen['loud']       # what is done, and how fast
    assert 'drawing' not in seen['quiet'] and 'img/s' not in seen['quiet']

def drained(fd):
    "What can be read at once"
    try:
        while (o := os.read(fd, 65536)): yield o
    except BlockingIOError: return

def test_doctor(tmp_path):
    r = shell('doctor', '--json', cwd=tmp_path)
    facts = as_json(r.out)
    assert r.code==0 and facts['data']==[] and facts['disk']['free_gb'] > 0 and facts['runs']['toy'].startswith('on the ')

@pytest.mark.parametrize('name', ['bash', 'zsh', 'fish'])
def test_completion_is_a_script_of_that_shell(name):
    if not shutil.which(name): pytest.skip(f'{name} is not here')
    subprocess.run([name, '-n'], input=completion_script(name), text=True, check=True)
