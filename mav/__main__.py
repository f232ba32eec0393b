"""`python -m mav`, which launchers of several processes run."""

from mav.cli import main

main(prog_name="mav")
