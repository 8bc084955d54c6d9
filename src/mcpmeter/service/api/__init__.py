"""The management API below `/api`: one file of pages per resource, and the OpenAPI description made from their types.

Owns roles and what a caller may see there. Owns no data: it queries ledger, budgets and quota.
"""
