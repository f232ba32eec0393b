"""Prompts from a file, and a file of their answers that an interrupted run resumes."""
