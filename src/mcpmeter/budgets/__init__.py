"""What a call may cost: `Limits.reserve` in `reservations.py` computes what a call reserves, `budget.py` finds its
budgets, `period.py` their present periods, `forecast.py` and `status_board.py` their status.

Does not own what is spent: balances belong to the ledger, which reserves or refuses with the call's row, and adds the
true cost at settlement. Reads no configuration.
Invariants: money is integer nano-dollars; a reservation is the upper bound of a call's cost; periods tile the time
line; a balance survives a change of its budget's limit; only `status_board.py` reads the ledger.
"""
