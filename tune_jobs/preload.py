"""What a worker needs before it can train: Ray's workers import this module when they start, before they get work."""

import os

from tune_jobs.startup import only_imports

# Ray sets this number when a worker gets its first task, but libraries read it when they are imported. A trial on
# several cores sets torch's own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

with only_imports():
    import tune_jobs.trial  # noqa: F401
