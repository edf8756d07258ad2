"""What tests and benchmarks share: every loss, its textbook form and its eager form."""
