"""What several test files share: random arrays, oracles, and compiled metrics."""
