"""Notebooks in one process, in reverse order, with N threads: `python .ci/variation.py N NOTEBOOK...`

A test must hold for any number of threads. A notebook must restore what it changes: `nbdev_test` reuses its processes,
so the change would reach the notebooks that follow."""
import logging
import os
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from nbdev.config import get_config
from nbdev.test import test_nb

def state():
    "Whatever a notebook could change for those that run after it, by name"
    return dict(gradients=torch.is_grad_enabled(), dtype=torch.get_default_dtype(), threads=torch.get_num_threads(),
        deterministic=torch.are_deterministic_algorithms_enabled(), precision=torch.get_float32_matmul_precision(),
        mkldnn=torch.backends.mkldnn.enabled, anomaly=torch.is_anomaly_enabled(), numpy_errors=np.geterr(),
        folder=os.getcwd(), log_level=logging.getLogger().level,
        environment={k: v for k, v in os.environ.items() if not k.startswith(('KMP_', 'TORCHINDUCTOR_'))},   # torch
        figures={k: v for k, v in matplotlib.rcParams.items() if k not in ('backend', 'interactive')})   # nbdev sets these

def changes(before, after):
    "The names whose values differ, with both values where they are short"
    for name, old in before.items():
        new = after[name]
        if isinstance(old, dict):
            yield from (f'{name} {k}: {old.get(k)!r} -> {new.get(k)!r}' for k in old.keys()|new.keys() if old.get(k) != new.get(k))
        elif old != new: yield f'{name}: {old!r} -> {new!r}'

def main(threads, *notebooks):
    os.environ |= dict(IN_TEST='1', OMP_NUM_THREADS=threads)
    torch.set_num_threads(int(threads))
    config, bad, before = get_config(), 0, state()
    for path in sorted(map(Path, notebooks), reverse=True):
        passed, seconds = test_nb(path.resolve(), skip_flags=config.tst_flags.split(), basepath=config.config_path)
        left = list(changes(before, state()))
        print(f'{path.name}: {"passed" if passed else "FAILED"}, {seconds:.0f} s', *left, sep='\n    changed ', flush=True)
        bad += not passed or bool(left)
        before = state()
    print(f'{len(notebooks)} notebooks in reverse order, {threads} threads: {bad} with an error or a change left behind')
    return bool(bad)

if __name__ == '__main__': sys.exit(main(*sys.argv[1:]))
