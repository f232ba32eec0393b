"""`mav verify`: whether a cache is complete and undamaged, and equal to what the live base gives.

`verify` compares digests and marks damage, `against_base` runs pairs again the plain way.
"""
