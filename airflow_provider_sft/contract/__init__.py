"""What Airflow and the pod agree on.

Both sides import it, a second trainer can be written from it alone, and it needs nothing but the standard library.
Read `names` (environment variables and files), `codec` (the config on its way in), `exit_codes` and `errors` (how a
run can end), `outcome` and `progress` (what comes back).
"""
