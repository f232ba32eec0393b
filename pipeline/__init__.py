"""The two stages and the online decoder.

Stage one: preferences -> tokenizing -> packing -> base_model -> extract. Stage two: stream -> head,
objective -> train, evaluate. Online: aligned_lm -> generate. Stages never import each other.
"""

from pipeline.cpu_environment import set_cpu_environment

set_cpu_environment()
