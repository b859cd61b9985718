"""Any task of lm-evaluation-harness as a benchmark."""
