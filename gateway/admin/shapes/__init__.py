"""Request and response bodies of the admin API, typed for OpenAPI: one file per page.

Money is in US dollars, times are Unix seconds, intervals have a confidence of 95 % unless stated otherwise.
"""
