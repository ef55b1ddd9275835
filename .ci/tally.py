"Close with `N passed, N failed`: notebooks and tests counted in the log of the test command, plus the other failing steps"
import re
import sys
from pathlib import Path

from cells import notebooks

def count(log, total):  # the log's text; how many notebooks nbdev_test finds
    m = re.search(r'nbdev Tests Failed On The Following Notebooks:\n=+\n((?:\t.+\n)+)', log)
    bad = len(m.group(1).splitlines()) if m else 0
    good = total-bad if m or re.search(r'^Success\.$', log, re.M) else 0
    last = re.findall(r'^=+ (.*\d (?:passed|failed|error).*) in [\d.]+s', log, re.M)
    tests = {k:int(n) for n,k in re.findall(r'(\d+) (passed|failed|error)', last[-1])} if last else {}
    return good+tests.get('passed', 0), bad+tests.get('failed', 0)+tests.get('error', 0)

log, *steps = sys.argv[1:]
log = Path(log).read_text(encoding='utf-8', errors='replace') if Path(log).exists() else ''
good, bad = count(log, len(notebooks()))
bad += sum(o != 'tests' for o in steps) or (bool(steps) and not bad)
print(f'{good} passed, {bad} failed')
sys.exit(bool(bad))
