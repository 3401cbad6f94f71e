"""Batch jobs: the whole job is planned before a cent is spent, then run, resumable, within its budget.

    source -> read -> estimate -> dedupe -> pilot -> arms -> assign -> frontier -> plan          run (plan -> results)

`types` has the nouns. Planning decides with two pure functions of gateway/batch/assign.py:

    assign(estimates, budget_usd, *, deadline_s=inf, capacities=(), objective=Objective()) -> Assignment
        Every prompt gets an arm; raises Impossible where budget or deadline can't be kept.
    replan(estimates, rest, budget_usd, *, deadline_s=inf, capacities=(), objective=Objective()) -> Assignment
        The same for the prompts `rest` (rows, as an index array) with what is left of money and time; never raises:
        prompts that nothing is left for, and those outside `rest`, stay UNASSIGNED. `shortfall` counts the former.

Where the route has a trained cascade, `with_climbs` of gateway/batch/climbs.py adds arms whose answers may be asked
again of better models: always for clients' batches, as live, and for the command where it says `--cascade`.

`plan_job(path, folder, options, context) -> Plan` of gateway/batch/plan.py makes a plan from a file, for the command
and for clients' batches (/v1/batches, /v1/messages/batches); `open_context(config, book)` of gateway/batch/context.py
gives it the gateway as it has learnt.
"""
