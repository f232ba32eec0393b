"""EleutherAI's lm-evaluation-harness with a base and a head; needs the extra `eval`.

`run.run_harness` runs the same tasks at several alphas and `report` compares them;
`language_model.SteeredLM` is the model `mav` of lm-eval, and `python -m mav.pipeline.harness` its
own command line with that model.
"""
