"""What steers a pass of the base, beside `aligned_lm`, which hooks it in.

`strengths` are the alphas of several heads, `trained_heads` loads heads that steer together, and
`pass_output` changes the logits that a pass returns, and the loss with them.
"""
