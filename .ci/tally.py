"Close with `N passed, N failed`: notebooks and tests counted in the log of the test steps, plus the other failing steps"
import re
import sys
from collections import Counter
from pathlib import Path

from cells import notebooks

def count(log, total):  # the log's text; how many notebooks nbdev_test finds
    m = re.search(r'nbdev Tests Failed On The Following Notebooks:\n=+\n((?:\t.+\n)+)', log)
    bad = len(m.group(1).splitlines()) if m else 0
    good = total-bad if m or re.search(r'^Success\.$', log, re.M) else 0
    ends = re.findall(r'^=+ (.*\d (?:passed|failed|error).*) in [\d.]+s', log, re.M)
    tests = Counter()
    for n, k in re.findall(r'(\d+) (passed|failed|error)', ' '.join(ends)): tests[k] += int(n)
    return good+tests['passed'], bad+tests['failed']+tests['error']

log, *steps = sys.argv[1:]
log = Path(log).read_text(encoding='utf-8', errors='replace') if Path(log).exists() else ''
good, bad = count(log, len(notebooks()))
bad += sum(not o.endswith('tests') for o in steps) or (bool(steps) and not bad)
print(f'{good} passed, {bad} failed')
sys.exit(bool(bad))
