"""The commands of `mav`: click only; each imports the pipeline when it runs."""
