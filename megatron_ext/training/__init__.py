"""The loop as a table of contents, the step, evaluation, and everything that happens after a step."""
