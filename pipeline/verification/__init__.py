"""`mav verify`: whether a cache is whole, and whether it is what the live base gives.

`verify` compares digests and marks damage, `against_base` runs pairs again the plain way.
"""
