"""The tuning job: a Ray Tune search over several objectives, its Pareto front and its pick.

Run it with ``python -m tune_jobs.pareto``.
"""
