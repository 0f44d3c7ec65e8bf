"""What `import nngp_plugins` costs over `import jax`: whole processes."""

import subprocess
import sys
from functools import partial

from harness import Case, Contender, ratio


def process(statement):
    def run():
        subprocess.run([sys.executable, "-c", statement], check=True)

    return run


CASES = [
    Case(
        "import",
        {
            "floor": Contender(partial(process, "import jax"), "`python -c 'import jax'`"),
            "ours": Contender(partial(process, "import nngp_plugins"), "`python -c 'import nngp_plugins'`"),
        },
        [ratio("ours", "floor", at_most=1.1)],
        rounds=15,
    )
]
