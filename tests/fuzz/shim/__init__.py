"""The C shim under AddressSanitizer: its own sources, with a stand-in for PostgreSQL behind them."""
