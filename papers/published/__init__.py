"""The papers' own numbers, quoted with source and conditions, and the verdict beside ours."""
