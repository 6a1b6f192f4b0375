"""Rolling-origin backtests: folds, baselines and tests of significance."""
