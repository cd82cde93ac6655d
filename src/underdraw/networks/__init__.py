"""Networks as plain programs: a backend, a parameter tree, a frozen config and arrays in, arrays out."""
