"""The rules of the storage contract, one module a subject; `contract.py` puts them together."""
