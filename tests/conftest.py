"""Commands of cemiface as processes of their own.

Importing torch, diffusers and fastai costs ten seconds of a core, so most commands are forked from one process that has
imported them (`cemiface`, `start`), and a few are started from scratch, as a user would (`shell`). Both kinds have their own
memory, files and exit code, and both can be killed."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import forkserver, get_context
from pathlib import Path
from types import SimpleNamespace

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)      # a shell's background jobs ignore it, and so would all that is started here

root = Path(__file__).resolve().parents[1]
os.environ.setdefault('OMP_NUM_THREADS', '1')          # several commands often share the cores
os.environ.update(MPLBACKEND='agg', PYTHONWARNINGS='ignore:resource_tracker')     # the killed leave semaphores
os.environ['PYTHONPATH'] = os.pathsep.join([str(root), *filter(None, [os.environ.get('PYTHONPATH')])])
os.environ.pop('CEMIFACE_QUIET', None)

# Recipe values

# A run with every stage and figure, of a few seconds: its numbers mean nothing. Its precision does not depend on the machine
tiny = dict(toy=dict(identities=20, per_identity=6, candidates=30, test_identities=40, test_pairs=200), identity_encoder=dict(epochs=3, batch=32),
    training=dict(epochs=1, batch=16, checkpoint_minutes=0, precision='no'), inquiries=dict(identities=6, threshold=.99),
    sampling=dict(steps=2, batch=6, precision='no'),
    generation=dict(per_identity=3, copies=1), recogniser=dict(epochs=1, batch=16), study=dict(scalar=[1, 0], sphere=[.9, .5]))

def sets(stages=tiny):
    "Recipe values as `-s` options"
    return [o for s, d in stages.items() for k, v in d.items() for o in ('-s', f'{s}.{k}={json.dumps(v)}')]

# What comes back

def as_json(text):
    "The one JSON object of standard output"
    assert text.endswith('}\n') and text.count('\n')==1, text
    return json.loads(text)

def refused(r, *words):
    "A mistake of the user: exit code 2, nothing on standard output, and at the end of standard error one sentence with these words"
    assert (r.code, r.out)==(2, '') and 'Traceback' not in r.err, r
    last = r.err.splitlines()[-1]
    assert last.startswith('cemiface: ') and all(str(w) in last for w in words), (last, words)

def contents(folder):
    "Every file of a folder with its bytes, to find what has changed or was left half-written"
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in sorted(Path(folder).rglob('*'))}

def pictures(folder):
    "Faces and manifest of a set"
    return {k: v for k, v in contents(folder).items() if k.endswith(('.png', '.jsonl'))}

# Starting

def stop_at(event, pattern, nth=1, sig=signal.SIGKILL, delay=0):
    "Interrupt this process just before the nth `event` (of sys.addaudithook) whose arguments match: no kill comes closer"
    left, match = [nth], re.compile(pattern).search
    def hook(name, args):
        if name!=event or not left[0] or not match(' '.join(map(str, args[:2]))): return
        left[0] -= 1
        if not left[0]: time.sleep(delay); sig and os.kill(os.getpid(), sig)
    sys.addaudithook(hook)

def _child(args, folder, env, stop, names):
    os.chdir(folder); os.environ.update(env)
    for fd, name in zip((1, 2), names): os.dup2(os.open(name, os.O_WRONLY|os.O_CREAT|os.O_TRUNC), fd)
    from cemiface.cli import main
    if stop: stop_at(**stop)
    sys.exit(main(args))

_forks = get_context('forkserver')
_forks.set_forkserver_preload(['cemiface.experiment.run', 'pytest'])

def child(args, folder, out, err):
    "Begin a command whose outputs go to these two files, or terminals"
    p = _forks.Process(target=_child, args=([str(o) for o in args], folder, {}, None, [out, err]))
    p.start()
    return p

HANG = 1800     # seconds, far more than the slowest machine needs: it ends what hangs, and measures nothing

class Command:
    "A command that was started: `kill` it, or `wait` for its exit code and outputs"
    count = 0
    def __init__(self, folder, args, env=None, stop=None):
        Command.count += 1
        self.names = [folder.with_name(f'{folder.name}-{Command.count}.{o}') for o in ('out', 'err')]
        for o in self.names: o.touch()                         # it may be killed before it writes
        self.process = _forks.Process(target=_child, args=([str(o) for o in args], folder, env or {}, stop, self.names))
        self.process.start()
    def kill(self, sig): os.kill(self.process.pid, sig)
    def wait(self):
        self.process.join(HANG)
        if self.process.exitcode is None: self.process.kill(); pytest.fail(f'no end after {HANG} s')
        out, err = (o.read_text() for o in self.names)
        return SimpleNamespace(code=self.process.exitcode, out=out, err=err)

def ranks(n):
    "The environment of each of n processes, as torch's launcher sets it"
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = dict(WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), ACCELERATE_USE_CPU='true')
    return [dict(env, RANK=str(k), LOCAL_RANK=str(k)) for k in range(n)]

def several(start, *args, n=2, stop=None):
    "Start a command in n processes; `stop` is for the last"
    return [start(*args, env=env, stop=stop if k==n-1 else None) for k, env in enumerate(ranks(n))]

def fork(does, *args):
    "Begin to call a function where torch is imported, which it is not here"
    p = _forks.Process(target=does, args=args)
    p.start()
    return p

def in_process(does, *args):
    "Call it, and wait for its end; one that hangs is killed"
    p = fork(does, *args); p.join(HANG)
    if p.exitcode is None: p.kill(); pytest.fail(f'no end after {HANG} s')
    assert p.exitcode==0

def shell(*args, cwd, module='cemiface.cli', **env):
    "`python -m cemiface.cli args...`, from scratch"
    cmd = [sys.executable, '-m', module, *map(str, args)]
    r = subprocess.run(cmd, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=HANG)
    return SimpleNamespace(code=r.returncode, out=r.stdout, err=r.stderr)

# Fixtures

def pytest_addoption(parser):
    parser.addoption('--fuzz', type=int, default=2000, help='cases of each format in test_fuzz.py')
    parser.addoption('--faces', type=int, default=20000, help='faces of the simulation in test_scale.py')
    parser.addoption('--kills', type=int, default=5, help='kills of each kind in test_kills.py')
    parser.addoption('--kills-seed', type=int, default=0, help='decides the moments of the kills')

LONG = {'test_studies.py', 'test_labs.py', 'test_cli.py', 'test_processes.py', 'test_kills.py', 'test_hostile.py', 'test_resume.py'}

def pytest_collection_modifyitems(items):
    "Files with long tests begin first: with several processes, all of them end at about the same time"
    items.sort(key=lambda o: o.path.name not in LONG)

@pytest.fixture(scope='session', autouse=True)
def warm(): forkserver.ensure_running()                # so that the imports begin at once, beside the first tests

@pytest.fixture
def start(tmp_path):
    "Start `cemiface args...` in an empty folder"
    return lambda *args, **kw: Command(tmp_path, args, **kw)

@pytest.fixture
def cemiface(start):
    "Start it, and wait for its end"
    return lambda *args, **kw: start(*args, **kw).wait()

@pytest.fixture(scope='session')
def finished(tmp_path_factory):
    "A finished run of toy faces, which serves many tests: nobody writes into it"
    folder = tmp_path_factory.mktemp('finished')
    r = shell('run', '-r', 'toy', *sets(), '--json', '--out', 'run', cwd=folder)
    places = {k: folder/'run'/k for k in ('judge', 'generator', 'inquiries')} | dict(encoder=folder/'run'/'identity_encoder')
    return SimpleNamespace(path=folder/'run', faces=folder/'run'/'sets'/'scalar_+1.00', **places, **vars(r))      # 6 people, 3 faces each

@pytest.fixture(scope='session')
def dev(finished, tmp_path_factory):
    "Four people with two photos each, and pairs of them in two folds"
    d = tmp_path_factory.mktemp('dev')
    for k, who in enumerate(('A', 'B', 'C', 'Zoë D')):
        (d/'images'/who).mkdir(parents=True)
        for i in (1, 2): shutil.copy(finished.faces/f'{k:06d}'/f'{i:03d}.png', d/'images'/who/f'{who}_{i:04d}.png')
    fold = lambda a, b: f'{a}\t1\t2\n{b}\t1\t2\n{a}\t1\t{b}\t1\n{a}\t2\t{b}\t2\n'
    (d/'pairs.txt').write_text('2\t2\n'+fold('A', 'B')+fold('C', 'Zoë D'), encoding='utf-8')
    return d
