"""From a completion to a verdict: extracting, comparing, running programs, counting."""
