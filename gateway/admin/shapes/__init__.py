"""What the admin API says and takes, typed for OpenAPI: one file per page.

Money is in dollars, times are Unix seconds.
"""
