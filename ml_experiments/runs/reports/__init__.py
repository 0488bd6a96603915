"""Reports about runs; they read run folders only."""
