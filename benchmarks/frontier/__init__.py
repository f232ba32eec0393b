"""Gold reward against distance from the base: controlled sentiment, for every method on one base.

The experiment is that of Rafailov et al. 2023, "Direct Preference Optimization", section 6.1, at a
size that two cores can bear: answers are sampled from the base, their reward is known, pairs are
drawn from it, every method is trained on the same pairs, and what each then writes is scored by
the reward that drew them. Begin with `methods`, which lists what is compared.
"""
