"""The service: models over HTTP, and a page to look at them.

    routes     what can be asked, checked            -> Job
    engine     a bounded queue; jobs of one key are computed together, groups take turns on a device
    work       what the models do for a group of jobs, a step at a time
    models     the models that are served, and what each of them can do
    limits, keys, pictures, metrics, server          what keeps it up: sizes, callers, uploads, numbers, signals

`app.create_app` wires them; `twofold serve` runs it.
"""
