"""What several commands share: options, answering prompts, errors, logging, options from a file."""
