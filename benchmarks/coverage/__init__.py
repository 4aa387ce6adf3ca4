"""Can any network be pruned with no hints? Every model of many libraries is tried and proven.

``python -m benchmarks.coverage`` traces each model, removes a random half of every class,
runs the result and compares it with the masked original. See ``docs/coverage.md``.
"""
