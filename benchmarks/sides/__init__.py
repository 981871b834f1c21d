"""What several benchmarks share: corpora and tokenizers made here, the plain pool they are compared with, measuring."""
