"Import every module of the installed package, and say beside which versions"
import importlib
import pkgutil
from importlib.metadata import version

import cemiface

names = [o.name for o in pkgutil.walk_packages(cemiface.__path__, 'cemiface.')]
for o in names: importlib.import_module(o)
found = {o:version(o) for o in ['fastai', 'fastcore', 'diffusers', 'torch']}
print(f'{len(names)} modules of {cemiface.__file__} import with', found)
assert int(found['fastcore'].split('.')[0]) >= 2, 'this environment should hold the newest fastcore'
