"""Results in the files of other projects."""
