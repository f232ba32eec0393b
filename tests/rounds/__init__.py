"""Tests of rounds of one's own pairs."""
