"""Guards taken away one by one, each in a copy of the sources, and the named test that must go red.

`hazards`, `rules`, `ends` and `others` are the tables. `workshop` makes the copies and judges, `foreman` runs
the tests, and `witness` is loaded into those runs to write down why a test failed.
"""
