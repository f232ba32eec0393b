"""The commands of `mav`: click only, each imports what it runs when it runs."""
