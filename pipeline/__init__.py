"""The two stages, the online decoder, and what serves them; a room for each task.

A room imports only rooms of a lower floor, and `tests/test_structure.py` holds the table:
`runtime`; `ops`; `preferences`, `loader`, `base`; `head`; `extraction`, `evaluation`, `decoding`;
`training`, `verification`; `reporting`, `serving`; `demo`.

Importing this package sets what torch's CPU kernels read from the environment.
"""

from mav.pipeline.runtime.environment import set_cpu_environment

set_cpu_environment()
