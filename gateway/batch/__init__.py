"""Batch jobs: the whole job is planned before a cent is spent; it then runs within its budget and can be resumed.

    source -> read -> estimate -> dedupe -> pilot -> arms -> assign -> frontier -> plan          run (plan -> results)

`types` defines the nouns. Planning decides with two pure functions of gateway/batch/assign.py:

    assign(estimates, budget_usd, *, deadline_s=inf, capacities=(), objective=Objective()) -> Assignment
        Every prompt gets an arm; raises Impossible where budget or deadline can't be kept.
    replan(estimates, rest, budget_usd, *, deadline_s=inf, capacities=(), objective=Objective()) -> Assignment
        The same for the prompts `rest` (an array of row numbers) with the money and time that are left; never raises.
        Prompts that the rest doesn't suffice for, and those outside `rest`, stay UNASSIGNED. `shortfall` counts the
        former.

Where the route has a trained cascade, `with_climbs` of gateway/batch/climbs.py adds arms that escalate to better
models: always for clients' batches, as for live traffic, and for the command where `--cascade` is given.

`plan_job(path, folder, options, context) -> Plan` of gateway/batch/plan.py makes a plan from a file, for the command
and for clients' batches (/v1/batches, /v1/messages/batches); `open_context(config, book)` of gateway/batch/context.py
supplies the routes and what they have learnt.
"""
